"""How long threads of GNU OpenMP, which runs torch's forwards, spin before they sleep."""

import os

SPINS = "2000"
"""Spins of a thread that waits for others: about 0.2 ms, which covers the gaps within a forward.

libgomp's own default of 300,000 lasts 30 ms. Beside another busy process, each thread then spins through its
own time slice while the thread that it waits for has no core: a forward of 20 ms took seconds."""


def limit_spinning() -> None:
    """Limit the spins, unless the environment says otherwise. Call it before torch is imported."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
