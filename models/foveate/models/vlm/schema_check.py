"""Checks JSON schemas in a process of its own, which ends when a schema takes too long to compile.

The grammar library bounds most of its work, but not all of it: a `multipleOf` of six digits, or thirty
patterns in `allOf`, take minutes and gigabytes. It cannot be interrupted: a thread would be lost to it.
"""

import os
import resource
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache

from foveate.core.errors import BadRequest, Overloaded
from foveate.models.vlm.constraints import FIELD, MAX_SCHEMA_BYTES, check_schema

CPU_S = 2
"""Processor seconds of a check, its start of a quarter of a second included. A schema that passes takes no
longer to be compiled for a model, and a compiled one no more memory than such a time can fill."""
MEMORY_BYTES = 2**30
"""Address space of a check, the interpreter included."""
MAX_WAIT_S = 30.0
"""Seconds after which a check is given up. It takes so long only where the processors are busy."""
VERDICTS = 256
"""Schemas whose verdicts are kept: clients send the same one with each request."""
REFUSED = 3
"""Exit status of the process for a schema that is refused; its output is the reason."""

TOO_COMPLEX = f"{FIELD}: the schema is too complex: it takes over {CPU_S} s to compile"


def check_schema_apart(schema: str) -> None:
    """As `constraints.check_schema`, but a schema that takes too long to compile is refused, too.

    It waits for a process: call it off the event loop. Raises BadRequest, Overloaded.
    """
    if len(schema) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{FIELD}: the schema has over {MAX_SCHEMA_BYTES} bytes", FIELD)
    if reason := _reason(schema):
        raise BadRequest(reason, FIELD)


@lru_cache(VERDICTS)
def _reason(schema: str) -> str:
    """Why a schema is refused; empty if it is not. Raises Overloaded."""
    command = [sys.executable, "-P", "-m", __name__]  # -P: nothing is imported from the working directory
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(  # noqa: S603 -- the schema is its input, and no part of the command
            command, input=schema.encode(), capture_output=True, env=environment, timeout=MAX_WAIT_S
        )
    except subprocess.TimeoutExpired:
        raise Overloaded("the server is too busy to check the JSON schema; retry later") from None
    if done.returncode in (0, REFUSED):
        return done.stdout.decode()
    if done.returncode < 0:  # a signal: the time or the memory is used up
        return TOO_COMPLEX
    raise RuntimeError(f"the check of a schema failed: {done.stderr[-2000:].decode(errors='replace')}")


def main() -> int:
    """Check the schema on the standard input. The status is 0, or REFUSED with the reason as output."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not on all systems
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        check_schema(sys.stdin.buffer.read().decode())
    except BadRequest as error:
        sys.stdout.write(error.detail)
        return REFUSED
    except MemoryError:
        sys.stdout.write(TOO_COMPLEX)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
