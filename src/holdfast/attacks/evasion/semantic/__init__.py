"""Semantic attacks: few parameters of a meaningful change, searched as lifted samples."""
