"""Translation at the door: the original systems' flags, settings and weights, and back."""
