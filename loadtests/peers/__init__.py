"""Other serving systems around the same network, weights and pictures: `python -m loadtests.peers`."""
