"""What elastic compute is worth: `make bench-elastic`."""
