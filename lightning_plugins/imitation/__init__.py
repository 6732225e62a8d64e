"""Students beside the training: they imitate the primary, and the primary meets them half-way."""
