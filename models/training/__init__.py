"""How the shipped weights and the held-out scenes were made. Not installed with the package."""
