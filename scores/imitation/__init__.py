"""How well other models learn what the primary does: code lengths, errors, what they say when patched in."""
