"""Attacks that search on a model of their own."""
