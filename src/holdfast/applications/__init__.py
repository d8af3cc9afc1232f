"""What the same methods are good for beside attack and defence."""
