"""Bounds on a graph's output over a region: one table of operations, one propagation, a file for each method."""
