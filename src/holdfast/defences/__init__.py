"""Defences: those that train, detect, sanitise or repair."""
