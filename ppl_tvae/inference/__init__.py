"""What turns any (model, guide) pair into parameters, bounds and samples. Knows nothing of z, u or capsules."""
