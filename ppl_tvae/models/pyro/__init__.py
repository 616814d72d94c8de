"""The programs in Pyro, and what they are put together from."""
