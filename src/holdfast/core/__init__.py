"""Data types of the house; nothing here computes with a model."""
