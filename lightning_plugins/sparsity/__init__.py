"""Steps after the optimizer that make weights exactly zero, and what they take the place of."""
