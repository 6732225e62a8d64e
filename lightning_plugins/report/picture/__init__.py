"""What the page of a model is drawn from, collected from the finished model."""
