"""The bounds of each kind of operation."""
