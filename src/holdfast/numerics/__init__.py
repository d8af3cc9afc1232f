"""Mathematics that acts on sets and answers: distances, projections, steps, losses, searches and intervals."""
