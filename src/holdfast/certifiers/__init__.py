"""Certificates: what is proved safe. Never imports attacks, so that the two sides check each other."""
