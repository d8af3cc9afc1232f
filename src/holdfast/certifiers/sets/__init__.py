"""Certificates over sets beyond the pixel ball: semantic changes, weights, patches."""
