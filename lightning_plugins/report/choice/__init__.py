"""Which scores apply to a finished model, and taking them within a budget of time."""
