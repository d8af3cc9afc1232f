"""The stages of an audit."""
