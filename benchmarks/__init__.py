"""How fast a training step is, beside the same model written without a probabilistic programming language."""
