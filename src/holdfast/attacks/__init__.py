"""Attacks: the engine that runs them, what they share (`common`), and one file for each method."""
