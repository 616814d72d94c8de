"""Inference in Pyro, for any program."""
