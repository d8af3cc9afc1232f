"""Attacks in deployment, by what they may ask of the model."""
