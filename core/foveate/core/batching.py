"""Batch sizes that the whole system uses: policies form them, runners warm them up."""

BATCH_SIZES: tuple[int, ...] = tuple(sorted({base << shift for base in (1, 3) for shift in range(12)}))
"""The allowed batch sizes: 1, 2, 3, 4, 6, 8, 12, ... Kernels are prepared once per size, so there are few of
them. A runner uses those up to its `max_batch`."""
