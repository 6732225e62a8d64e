"""The weights that are acted on: which they are, how they lie over the ranks, what is kept beneath them, who steps them."""
