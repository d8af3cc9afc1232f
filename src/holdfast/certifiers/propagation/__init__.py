"""Bounds carried through a graph: regions, the table of operations, and what rounding may add."""
