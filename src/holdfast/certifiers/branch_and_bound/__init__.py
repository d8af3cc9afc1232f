"""What the complete verifiers share: domains, choices of what to split, bounds of parts."""
