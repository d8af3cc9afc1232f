"""The audit: a plan becomes stages, stages chunks, chunks journal rows, and rows one document with both sides of every sample."""
