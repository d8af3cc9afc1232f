"""The one training loop that every defence that trains stands on."""
