"""Programs in NumPyro, to edit."""
