"""The vocabulary every layer shares. No torch, no web framework."""
