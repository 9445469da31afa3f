"""Sizes in a simulation: what happens all the time in production has to happen within seconds, to dozens of rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import vecraft_shard.collection
import vecraft_shard.short_cut
import vecraft_shard.store
import vecraft_shard.wal

_SIZES = (
    # Files grow and are mapped anew all the time; else they would hardly ever, and be mostly room ahead.
    (vecraft_shard.store, "MIN_STEP_BYTES", 4096),
    (vecraft_shard.wal, "_FIRST_ZERO_AHEAD_BYTES", 2048),
    # Collections grow by many slices of the indexer; else by less than the first one.
    (vecraft_shard.collection, "_FIRST_SLICE_ROWS", 4),
    # There are thousands of rows, few of them fresh or dead, so that most searches need no plan; else none would.
    (vecraft_shard.short_cut, "_ROWS_PER_STEP", 2),
    (vecraft_shard.short_cut, "_FRESH", 2),
    (vecraft_shard.short_cut, "_ALIVE", 0.25),
)


@contextmanager
def in_miniature() -> Iterator[None]:
    """Set the sizes, and whatever else holds only while the body runs: other tests share this process."""
    logger = logging.getLogger("vecraft_shard")
    level = logger.level
    with ExitStack() as sizes:
        for module, name, size in _SIZES:
            sizes.enter_context(patch.object(module, name, size))
        logger.setLevel(logging.CRITICAL)  # a full disk is nothing to report
        try:
            yield
        finally:
            logger.setLevel(level)
