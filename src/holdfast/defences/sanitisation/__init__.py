"""Filters of training sets."""
