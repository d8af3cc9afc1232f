"""Universal attacks: one perturbation for many inputs, models or transformations."""
