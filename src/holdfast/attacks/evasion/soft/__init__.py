"""Attacks that ask scores."""
