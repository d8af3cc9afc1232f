"""Attacks that ask gradients."""
