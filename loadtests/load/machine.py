"""The machine a run was made on, and what it must allow."""

import resource
from importlib.metadata import version

from loadtests.report import machine


def described() -> str:
    """In one line; server and generator share it."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("locust", "gevent"))
    return f"{machine()}, {packages}; the server and the generator share the machine"


def more_files() -> None:
    """Raise the limit on open files as far as allowed: a stalled server keeps a connection a request."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
