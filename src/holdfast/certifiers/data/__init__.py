"""Certificates for training sets: how many edits change no prediction."""
