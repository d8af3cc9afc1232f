"""Inspection and repair of models that may hold a backdoor."""
