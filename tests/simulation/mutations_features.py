"""Planted bugs in names, pins, filters, indexes, deletions by filter, damage and full disks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import vecraft_shard.background
import vecraft_shard.collection
import vecraft_shard.compaction
import vecraft_shard.integrity
import vecraft_shard.participant
import vecraft_shard.reads
import vecraft_shard.search
import vecraft_shard.short_cut
import vecraft_shard.wal_replay
from tests.simulation.mutations import Patch, mutant, nothing
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.hlc import timestamp
from vecraft_shard.admission import Admission
from vecraft_shard.catalog import Catalog
from vecraft_shard.collection import Collection
from vecraft_shard.indexes.documents import DocumentIndex
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.locations import Locations
from vecraft_shard.page_sums import PageSums
from vecraft_shard.participant import Participant
from vecraft_shard.search import _Execution
from vecraft_shard.state import ShardState
from vecraft_shard.timeline import Timeline
from vecraft_shard.wal import Wal
from vecraft_shard.wal_format import FRAME_HEADER_BYTES, FrameReader, decode_frame_header
from vecraft_shard.wal_replay import LogReader

# --------------------------------------------------------------------------------------------------------- identity


@mutant("◆ one id with another content is refused")
def contents_not_compared() -> list[Patch]:
    return [(vecraft_shard.participant, "check_same", nothing)]


@mutant("◆ ids older than outcomes are kept are refused")
def old_ids_accepted() -> list[Patch]:
    return [(vecraft_shard.participant, "check_fresh", nothing)]


@mutant("◆ an abort is durable before it is told")
def abort_in_memory_only() -> list[Patch]:
    original = Participant._log_abort

    class Immediate:
        """Carries out at once what should wait for the log."""

        def add(self, kind: Any, pieces: Any, finish: Any, *rest: Any, **options: Any) -> None:
            finish()

    def log_abort(self: Participant, txn_id: str, content_hash: bytes, group: Any, *rest: Any) -> None:
        known = txn_id in self._state.prepared
        original(self, txn_id, content_hash, group if known else Immediate(), *rest)  # type: ignore[arg-type]

    return [(Participant, "_log_abort", log_abort)]


# ------------------------------------------------------------------------------------------------------------ names


@mutant("names that a prepared transaction changes are locked")
def names_not_locked() -> list[Patch]:
    return [(Admission, "_check_name_free", nothing)]


@mutant("an alias means one thing until all who write by it are decided", focus="names")
def aliases_not_locked() -> list[Patch]:
    return [(Catalog, "is_alias", lambda self, name: False)]


@mutant("a name means at a snapshot what it meant then")
def names_as_of_now() -> list[Patch]:
    original: Any = Catalog.resolve

    def resolve(self: Catalog, name: str, snapshot: int = 2**63 - 2) -> Any:
        alias = self._current_aliases.get(name)
        return original(self, alias.name if alias else name, snapshot)

    return [(Catalog, "resolve", resolve)]


@mutant("the end of an alias is kept, so that the past knows it")
def alias_overwritten() -> list[Patch]:
    def end_alias(self: Catalog, alias: str, ts: int) -> None:
        self.aliases = [entry for entry in self.aliases if entry.alias != alias]

    return [(Catalog, "_end_alias", end_alias)]


@mutant("a checkpoint holds names as they are")
def catalog_lost_at_checkpoint() -> list[Patch]:
    original = Locations.save_catalog

    def save_catalog(self: Locations, collections: Any, aliases: Any) -> None:
        original(self, collections, [entry for entry in aliases if entry.end_ts == 2**63 - 1][:0])

    return [(Locations, "save_catalog", save_catalog)]


@mutant("a collection that was dropped is kept for as long as its past can be read", focus="names")
def dropped_at_once() -> list[Patch]:
    def forget_dropped(state: ShardState, now_ms: int) -> int:
        gone = state.catalog.forget(2**63 - 2)
        state.retired += [state.collections.pop(collection_id) for collection_id in gone]
        return len(gone)

    return [(vecraft_shard.background, "forget_dropped", forget_dropped)]


@mutant("a catalog change waits for those who are writing to the collection", focus="names")
def dropped_under_writers() -> list[Patch]:
    return [(Admission, "_check_unused", nothing)]


@mutant("a name that a transaction used means the same when it commits", focus="names")
def meaning_not_compared() -> list[Patch]:
    return [(Catalog, "meant_the_same", lambda *_: True)]


# ---------------------------------------------------------------------------------------------- pins and history


@mutant("a pin holds the safe point back", focus="history")
def pins_ignored() -> list[Patch]:
    return [(Timeline, "pin", nothing)]


@mutant("the safe point is durable before what lies below it goes")
def safe_point_forgotten() -> list[Patch]:
    def raise_safe_point(state: ShardState, now_ms: int) -> int:
        return state.timeline.next_safe_point(now_ms, int(state.config.history_retention_s * 1000))

    return [(vecraft_shard.compaction, "raise_safe_point", raise_safe_point)]


@mutant("undecided transactions hold the safe point back")
def safe_point_passes_prepared() -> list[Patch]:
    def next_safe_point(self: Timeline, now_ms: int, retention_ms: int) -> int:
        pins = [snapshot for snapshot, _ in self._pins.values()]
        return max(self.safe_point, min([timestamp(now_ms - retention_ms // 8), *pins]))

    return [(Timeline, "next_safe_point", next_safe_point), (Timeline, "check_readable", nothing)]


@mutant("compaction takes over what was written meanwhile")
def late_rows_lost_by_compaction() -> list[Patch]:
    def fill(state: Any, collection: Any, target: Any, kept: Any, copied: int) -> Iterator[None]:
        for first in range(0, len(kept), 4):
            vecraft_shard.compaction._copy(collection, target, kept[first : first + 4])
            yield
        with state.latch.writer(), state.latch.exclusive():
            state.shadows.remove(target)
            if state.collections.get(collection.collection_id) is collection:
                target.versions.refresh_ends(collection.versions.end[kept])
                state.collections[collection.collection_id] = target
                state.retired.append(collection)

    return [(vecraft_shard.compaction, "_fill", fill)]


@mutant("a compaction leaves its files alone once its shard was given up", focus="graphs")
def given_up_compaction_cleans_up() -> list[Patch]:
    original = vecraft_shard.compaction.compact

    def compact(state: ShardState, *rest: Any) -> Iterator[None]:
        try:
            yield from original(state, *rest)
        except GeneratorExit:
            for target in state.shadows:
                target.close()
                for name in target.files:
                    state.disk.remove(f"{target.folder}/{name}")
            raise

    return [(vecraft_shard.background, "compact", compact)]


# --------------------------------------------------------------------------------------------- filters and indexes


@mutant("a filter is combined with the visibility of the snapshot, not of now")
def filtered_reads_see_the_present() -> list[Patch]:
    def visible_rows(collection: Any, rows: Any, snapshot: int) -> Any:
        return rows[collection.versions.end[rows] == 2**63 - 1]

    return [(vecraft_shard.reads, "_visible_rows", visible_rows)]


@mutant("what a text condition found is brought up to date with later rows")
def text_answers_kept() -> list[Patch]:
    original = DocumentIndex._text

    def text(self: DocumentIndex, condition: Any, n_rows: int) -> RowSet:
        kept = self._answers.get(condition)
        return kept[1] if kept is not None and kept[0] <= n_rows else original(self, condition, n_rows)

    return [(DocumentIndex, "_text", text)]


@mutant("texts are read until the tables have them")
def texts_settled_early() -> list[Patch]:
    return [(DocumentIndex, "settle", lambda self, rows: setattr(self, "settled", rows + 2))]


@mutant("a checkpoint holds the postings of its rows")
def postings_lost_at_checkpoint() -> list[Patch]:
    return [(Locations, "save_postings", nothing)]


@mutant("rows that are not in the graph yet are scanned")
def tail_not_scanned() -> list[Patch]:
    return [(_Execution, "_scan_tail", nothing)]


@mutant("a search without a plan scans them, too", focus="graphs")
def tail_cut_short() -> list[Patch]:
    def no_rows(source: Any, queries: Any, k: int, lo: int, hi: int, keep: Any) -> Any:
        return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)

    return [(vecraft_shard.short_cut, "scan_range", no_rows)]


@mutant("rows leave the tail when they are in the graph, not before", focus="graphs")
def out_of_the_tail_early() -> list[Patch]:
    original = Collection.index_slice

    def index_slice(self: Collection, budget_ms: float, stopwatch: Any) -> int:
        moved = original(self, budget_ms, stopwatch)
        self.indexed = self.versions.rows
        return moved

    return [(Collection, "index_slice", index_slice)]


def all_of_them(view: Any, rows: Any) -> Any:
    """Take all rows for visible."""
    return np.ones(view.begin[rows].shape, bool)


@mutant("candidates of the graph are held to the snapshot")
def graph_shows_dead_rows() -> list[Patch]:
    return [(vecraft_shard.search, "seen", all_of_them)]


@mutant("so are those of a search without a plan", focus="graphs")
def short_cut_shows_dead_rows() -> list[Patch]:
    return [(vecraft_shard.short_cut, "seen", all_of_them)]


# ------------------------------------------------------------------------------------------------- deletion by filter


@mutant("a deletion by filter checks again what it found")
def deletion_not_validated() -> list[Patch]:
    return [(Admission, "_still_matching", lambda self, collection_id, ids, matched: (ids, []))]


@mutant("what a deletion by filter passes over stays as it is until it is decided", focus="deletions")
def passed_over_not_locked() -> list[Patch]:
    original = Admission._still_matching

    def still_matching(self: Admission, *rest: Any) -> Any:
        return original(self, *rest)[0], []

    return [(Admission, "_still_matching", still_matching)]


@mutant("all shards delete what one snapshot found", focus="deletions")
def snapshots_mixed() -> list[Patch]:
    return [(vecraft_shard.participant, "check_same_part", nothing)]


# ---------------------------------------------------------------------------------------- damage, torn ends, full disks


@mutant("a frame counts only if its body matches its checksum")
def torn_frames_accepted() -> list[Patch]:
    def frames(self: FrameReader) -> Iterator[tuple[Any, memoryview, int]]:
        while (header := decode_frame_header(self._bytes(self.offset, FRAME_HEADER_BYTES), self.seed)) is not None:
            end = self.offset + FRAME_HEADER_BYTES + header.body_length
            body = self._bytes(self.offset + FRAME_HEADER_BYTES, header.body_length)
            if end > self._size or len(body) < header.body_length:
                return
            self._check_order(header)
            offset, self.offset = self.offset, end
            self.chain, self.next_lsn, self.epoch = header.crc, header.last_lsn + 1, header.epoch
            yield header, body, offset

    return [(FrameReader, "frames", frames)]


@mutant("only what is torn is cut off")
def last_frame_cut() -> list[Patch]:
    original = FrameReader.frames

    def frames(self: FrameReader) -> Iterator[tuple[Any, memoryview, int]]:
        before = (self.offset, self.chain, self.next_lsn, self.epoch)
        held = None
        for frame in original(self):
            if held is not None:
                yield held
            held, last = frame, before
            before = (self.offset, self.chain, self.next_lsn, self.epoch)
        if held is not None and held[0].records > 1:
            self.offset, self.chain, self.next_lsn, self.epoch = last
        elif held is not None:
            yield held

    return [(FrameReader, "frames", frames), (LogReader, "check_mark", nothing)]


@mutant("a torn end is cut off before anything is written after it", log_alone=True)
def torn_end_left() -> list[Patch]:
    original = LogReader.repair

    def repair(self: LogReader) -> None:
        self._torn = False
        original(self)

    return [(LogReader, "repair", repair)]


@mutant("damage in the middle of the log is told from a torn end", focus="damage")
def damage_cut_off() -> list[Patch]:
    def judge_end(self: LogReader, reader: FrameReader, name: str, *, is_last: bool) -> None:
        self._torn = True

    return [(LogReader, "_judge_end", judge_end), (LogReader, "check_mark", nothing)]


@mutant("records are verified when they are read", focus="damage")
def records_not_verified() -> list[Patch]:
    return [
        (vecraft_shard.collection, "verify_payloads", nothing),
        (vecraft_shard.integrity, "verify_payload", nothing),
    ]


@mutant("searches over damaged vectors are refused", focus="damage")
def vectors_not_verified() -> list[Patch]:
    return [(vecraft_shard.integrity.Integrity, "refuse_vectors", nothing)]


@mutant("the pages of the checkpoint are verified", focus="damage")
def pages_not_verified() -> list[Patch]:
    return [(PageSums, "_compare", nothing)]


@mutant("a write that failed stops the log")
def failed_write_forgotten() -> list[Patch]:
    original = Wal._write

    def write(self: Wal, chunks: Any, size: int) -> None:
        try:
            original(self, chunks, size)
        except VecraftError:
            self._zeroed_to = max(self._zeroed_to, self._offset + size)

    return [(Wal, "_write", write)]
