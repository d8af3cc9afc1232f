"""Backdoors: a trigger, and the samples that teach a model to obey it."""
