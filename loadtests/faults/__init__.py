"""The bench of faults: memory, start-up, slow clients, hung forwards and shutdown, measured from outside."""
