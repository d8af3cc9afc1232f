"""Certificates of randomly smoothed classifiers."""
