"""How fast a training step and importance weights are, beside the same model without a probabilistic language."""
