"""Studies: one question about a model each, with its own page."""
