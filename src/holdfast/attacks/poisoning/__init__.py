"""Attacks on training data that change samples or labels."""
