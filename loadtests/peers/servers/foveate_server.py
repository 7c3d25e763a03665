"""Foveate itself, which takes each request's promise from its `x-slo-ms` header and needs no tuning to it."""

import sys

from foveate.gateway.cli.main import main
from loadtests.peers.job import Job

if __name__ == "__main__":
    job = Job.read()
    serve = ["serve", "--model", job.weights, "--precision", job.precision, "--port", str(job.port)]
    sys.argv = ["foveate", *serve, *sys.argv[1:]]
    main()
