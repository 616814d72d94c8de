"""Programs in Pyro, to edit."""
