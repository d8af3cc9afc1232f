"""A differentiable scene: where a printed thing lies in a picture, how it bends, how it is lit, what a printer can do."""
