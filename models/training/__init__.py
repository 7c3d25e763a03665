"""The code that made the shipped weights and the held-out media. Not installed with the package."""
