"""Verification that ends with an answer: branch and bound, mixed-integer programming."""
