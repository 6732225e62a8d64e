"""What a layer's activations look like: how many directions, how well predicted, how near the output."""
