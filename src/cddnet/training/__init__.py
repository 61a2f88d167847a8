"""Training: pairs of low and full dose, and checkpoints."""
