"""The programs in NumPyro, and what they are put together from."""
