"""What users edit: the generative story and its guide. `lattice.py` is W; the programs: `pyro/` and `numpyro/`."""
