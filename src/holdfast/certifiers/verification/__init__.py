"""Questions about a network, their answers, and the proofs of those."""
