"""What is wrong with a shard's files that a start, and reads of what is current, would pass over.

A start already checks ``shard.sqlite`` page by page, the log, the headers of the store files, the vectors and the saved
graphs. What is left:

* files that only protect others, and are made again without a word when they are missing or damaged;
* records that nobody reads at present, because they were replaced or deleted: history, for ``as_of``.

Findings are sentences. Nothing is repaired here.
"""

from __future__ import annotations

from collections.abc import Iterator

from vecraft_data_model.ports import Disk
from vecraft_shard.ballast import damage_of
from vecraft_shard.page_sums import SUFFIX, PageSums
from vecraft_shard.sqlite_errors import DATABASE
from vecraft_shard.state import ShardState
from vecraft_shard.wal_mark import mark_name, read_mark

_LOG = "wal"
_ROWS_AT_ONCE = 1024


def audit_guards(disk: Disk) -> Iterator[str]:
    """Yield what is wrong with the files that protect others, before a start makes them again.

    Args:
        disk: The directory of a shard that nobody has open.
    """
    if not disk.exists(DATABASE):
        return  # nothing was ever started here, or a start will say what is missing
    path = disk.path(DATABASE)
    if path is not None and not PageSums(path).known:
        yield f"{DATABASE}{SUFFIX} is missing or damaged: the pages of {DATABASE} cannot be checked this once"
    damage = damage_of(disk)
    if damage is not None:
        yield damage
    if read_mark(disk, _LOG) is None:
        yield f"{mark_name(_LOG)} is missing or damaged: a log whose end was cut off cannot be told from a whole one"


def audit_records(state: ShardState) -> Iterator[str]:
    """Yield every version of every record, history included, that does not match its digest."""
    for collection in list(state.collections.values()):
        rows = collection.versions.rows
        for first in range(0, rows, _ROWS_AT_ONCE):
            found = collection.integrity.damaged(range(first, min(rows, first + _ROWS_AT_ONCE)))
            yield from found.values()
