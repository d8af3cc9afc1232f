"""A network over a box as a program: lines, duals, expressions, semidefinite relaxations."""
