"""Attacks of clients on a federated training."""
