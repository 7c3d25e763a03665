"""Foveate, which reads each deadline from the header `x-slo-ms` and needs no tuning to it."""

import sys

from foveate.gateway.cli.main import main
from loadtests.peers.config import PeerConfig

if __name__ == "__main__":
    config = PeerConfig.read()
    serve = ["serve", "--model", config.weights, "--precision", config.precision, "--port", str(config.port)]
    sys.argv = ["foveate", *serve, *sys.argv[1:]]
    main()
