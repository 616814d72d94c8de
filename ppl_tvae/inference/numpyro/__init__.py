"""Inference in NumPyro, for any program."""
