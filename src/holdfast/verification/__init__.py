"""Verification of networks against written properties, one or a list."""
