"""HTTP in, HTTP out. No torch."""
