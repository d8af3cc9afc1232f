"""Branch and bound, once for all complete verifiers: domains and their queue, choices of splits, bounds of parts."""
