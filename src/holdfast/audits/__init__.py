"""The audit: a plan becomes stages, stages chunks, chunks journal rows, rows one document with both sides of each sample."""
