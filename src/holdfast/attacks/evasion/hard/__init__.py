"""Attacks that ask labels."""
