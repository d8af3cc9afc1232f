"""What ``import holdfast`` gives: one function a verb, and the results that they answer with."""
