"""Transforms of inputs: what semantic attacks, expectation over transformation, physical scenes and their certificates share."""
