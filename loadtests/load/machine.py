"""The machine of a run, and its limit on open files."""

import resource

from loadtests.report import PACKAGES, machine, versions


def describe_machine() -> str:
    """The machine and the versions in one line. The server and the generator share the machine."""
    installed = versions((*PACKAGES, "locust", "gevent"))
    return f"{machine()}, {installed}; the server and the generator share the machine"


def raise_file_limit() -> None:
    """Raise the limit on open files: while a server stalls, each request keeps a connection open."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
