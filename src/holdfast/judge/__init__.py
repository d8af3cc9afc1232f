"""Oracles that answer attacks and count what they ask, and the referee that judges what they claim."""
