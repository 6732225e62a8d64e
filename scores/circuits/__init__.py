"""How little of the primary does what all of it does."""
