"""Detectors of adversarial inputs."""
