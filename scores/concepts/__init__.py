"""Where labelled concepts are in a model, and whether it uses them."""
