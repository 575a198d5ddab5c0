"""Plumbing that knows nothing of images or texts."""
