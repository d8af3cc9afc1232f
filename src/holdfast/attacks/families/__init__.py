"""Loops that several attacks inherit."""
