"""Estimates of the least distortion: never certificates."""
