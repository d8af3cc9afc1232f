"""Training on the worst inputs of a set; a method is a loss for the one training loop."""
