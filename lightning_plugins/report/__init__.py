"""What only watches: questions asked of the finished model, its scores with their controls, the run record."""
