"""Files of records: what is exported reads back equal, an import is atomic, and goes on after a crash."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket
from vecraft_data_model.errors import (
    InvalidDataException,
    ShardUnavailableError,
    VecraftError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_db.bulk import export_records, import_records
from vecraft_db.bulk_formats import Fields, open_source
from vecraft_db.client.vecraft_client import VecraftClient

RECORDS = 25


@pytest.fixture
def client() -> Any:
    """A database with a collection that holds every kind of record, and an empty one."""
    rng = np.random.default_rng(3)
    with VecraftClient(root=":memory:", shards=2) as opened:
        opened.create_collection(CollectionSchema(name="full", dim=5))
        opened.create_collection(CollectionSchema(name="copy", dim=5))
        opened.upsert("full", [make_packet(i, rng) for i in range(RECORDS)])
        yield opened


def make_packet(i: int, rng: np.random.Generator) -> DataPacket:
    """Return a record; metadata and document take turns in being absent, empty, nested, text, JSON."""
    metadatas: list[Any] = [None, {}, {"n": i, "deep": {"é": [1, 2.5, None, True]}}]
    documents: list[Any] = [None, "", "naïve “text”\n", {"a": i}]
    vector = (rng.normal(size=5) * 10.0 ** rng.integers(-20, 15)).astype(np.float32)
    return DataPacket(f"id-{i:03}", vector, metadata=metadatas[i % 3], document=documents[i % 4])


def contents(client: VecraftClient, collection: str) -> list[DataPacket]:
    return list(client.scan(collection))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out.npy"])
def test_what_is_exported_reads_back_equal(client: VecraftClient, tmp_path: Path, name: str) -> None:
    told: list[tuple[int, int]] = []
    count, paths = export_records(
        client, "full", tmp_path / name, progress=lambda done, total: told.append((done, total))
    )
    assert (count, told) == (RECORDS, [(RECORDS, RECORDS)])
    assert sorted(paths) == sorted(tmp_path.iterdir())  # and no partial file
    source = open_source(paths[0], records=paths[1] if len(paths) > 1 else None)
    assert source.rows == RECORDS
    result = import_records(client, "copy", source)
    assert (result.written, result.skipped) == (RECORDS, 0)
    assert contents(client, "copy") == contents(client, "full")
    assert sorted(paths) == sorted(tmp_path.iterdir())  # and no journal


def test_an_export_takes_a_filter_and_an_empty_one_is_a_file_too(client: VecraftClient, tmp_path: Path) -> None:
    count, _ = export_records(client, "full", tmp_path / "some.jsonl", where={"n": {"$gte": 10}})
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert count == len(lines) == sum(1 for i in range(10, RECORDS) if i % 3 == 2)
    assert all(line["metadata"]["n"] >= 10 for line in lines)
    for name in ("none.jsonl", "none.parquet", "none.npy"):
        assert export_records(client, "full", tmp_path / name, where={"n": -1})[0] == 0
        assert open_source(tmp_path / name).rows == 0


def test_an_export_that_fails_leaves_nothing(client: VecraftClient, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_records(client, "full", tmp_path / "out.npy", progress=fail)
    with pytest.raises(InvalidDataException, match="must end in"):
        export_records(client, "full", tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_other_field_names_and_the_rest_as_metadata(client: VecraftClient, tmp_path: Path) -> None:
    values = [{"key": f"k{i}", "emb": [i, 0, 0, 0, 0], "text": f"t{i}", "lang": "fr", "n": i} for i in range(3)]
    source = open_source(write_lines(tmp_path / "a.jsonl", values), Fields("key", "emb", "text"))
    import_records(client, "copy", source)
    packet = client.get("copy", "k2")
    assert (packet.metadata, packet.document) == ({"lang": "fr", "n": 2}, "t2")


def test_npy_without_names_gets_row_numbers(client: VecraftClient, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.arange(50, dtype=np.float64).reshape(10, 5))
    import_records(client, "copy", open_source(tmp_path / "m.npy"), batch_size=4)
    assert [packet.record_id for packet in contents(client, "copy")] == sorted(map(str, range(10)))
    packet = client.get("copy", "7")
    assert packet.vector is not None
    assert packet.vector.to_list() == [35, 36, 37, 38, 39]


def test_parquet_of_others_with_lists_structs_and_plain_columns(client: VecraftClient, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {"id": ["a", "b", "c"], "embedding": [[1.0] * 5, [2.0] * 5, [3.0] * 5], "lang": ["en", None, "fr"]}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    import_records(client, "copy", open_source(tmp_path / "t.parquet"), batch_size=2)
    assert [packet.metadata for packet in contents(client, "copy")] == [{"lang": "en"}, {"lang": None}, {"lang": "fr"}]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": "x"', r"bad.jsonl:2 is not JSON"),
        ("[1]", r"bad.jsonl:2 must be an object, got list"),
        ('{"vector": [1]}', r"must have a field 'record_id' or 'id', and has none"),
        ('{"id": "x"}', r"must have a field 'vector' or 'embedding', and has 'id'"),
        ('{"id": "x", "vector": "1,2"}', r"the vector must be a list of numbers, got str"),
        ('{"id": "x", "vector": [1,2,3,4,5], "metadata": {}, "more": 1}', r"beside it 'more'"),
    ],
)
def test_a_faulty_line_is_named_and_nothing_is_written(
    client: VecraftClient, tmp_path: Path, line: str, named: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "good", "vector": [1,2,3,4,5]}\n' + line + "\n")
    with pytest.raises(InvalidDataException, match=named):
        import_records(client, "copy", open_source(path))
    assert client.count("copy") == 0


def test_a_value_that_the_database_refuses_stops_the_whole_import(client: VecraftClient, tmp_path: Path) -> None:
    values = [{"id": str(i), "vector": [0.5] * (4 if i == 7 else 5)} for i in range(9)]
    with pytest.raises(VectorDimensionMismatchException):
        import_records(client, "copy", open_source(write_lines(tmp_path / "a.jsonl", values)))
    assert client.count("copy") == 0


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", b"", "must end in"),
        ("a.npy", b"nonsense", "is not a .npy file"),
        ("a.parquet", b"nonsense", "is not a parquet file"),
        ("a.jsonl.gz", b"nonsense", "cannot be read"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDataException, match=named):
        open_source(tmp_path / name)
    with pytest.raises(InvalidDataException, match="there is no file"):
        open_source(tmp_path / "missing.jsonl")


def test_npy_and_its_lines_must_be_equally_long(client: VecraftClient, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 5), np.float32))
    for lines, named in ((2, "has 2 lines, and 'm.npy' 3 rows"), (4, "has more lines than the 3 rows")):
        records = write_lines(tmp_path / "r.jsonl", [{"id": str(i)} for i in range(lines)])
        with pytest.raises(InvalidDataException, match=named):
            import_records(client, "copy", open_source(tmp_path / "m.npy", records=records))


class Interrupted:
    """A client whose connection is lost at the n-th upsert, before or after the database has done it."""

    def __init__(self, client: VecraftClient, at: int, after: bool) -> None:
        self._client, self._left, self._after = client, at, after
        self.txn_ids: list[str] = []

    def upsert(self, collection: str, **arguments: Any) -> Any:
        self.txn_ids.append(arguments["txn_id"])
        self._left -= 1
        if self._left == 0 and not self._after:
            raise ShardUnavailableError("lost on the way there")
        result = self._client.upsert(collection, **arguments)
        if self._left == 0:
            raise ShardUnavailableError("lost on the way back")
        return result


@pytest.mark.parametrize("after", [False, True])
def test_an_import_goes_on_where_it_was_interrupted(client: VecraftClient, tmp_path: Path, after: bool) -> None:
    values = [{"id": f"{i:02}", "vector": [i, 1, 2, 3, 4]} for i in range(10)]
    source = open_source(write_lines(tmp_path / "a.jsonl", values))
    first = Interrupted(client, at=3, after=after)
    with pytest.raises(ShardUnavailableError):
        import_records(first, "copy", source, batch_size=3)
    assert client.count("copy") == (9 if after else 6)
    # What somebody else writes meanwhile to a batch that was committed must not be undone by its repetition.
    client.insert("copy", DataPacket("08", np.full(5, 9.0)))
    second = Interrupted(client, at=-1, after=False)
    result = import_records(second, "copy", source, batch_size=3)
    assert (result.written, result.skipped) == (4, 6)
    assert second.txn_ids[0] == first.txn_ids[-1]
    vector = client.get("copy", "08").vector
    assert vector is not None
    assert (vector.to_list()[0] == 9.0) is after
    assert client.count("copy") == 10
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


class Refusing:
    """A client whose first upserts are aborted, each of which spends its id for good."""

    def __init__(self, client: VecraftClient, *errors: VecraftError) -> None:
        self._client, self._errors = client, list(errors)
        self.txn_ids: list[str] = []

    def upsert(self, collection: str, **arguments: Any) -> Any:
        assert arguments["txn_id"] not in self.txn_ids, "an id that was aborted can never be carried out"
        self.txn_ids.append(arguments["txn_id"])
        if self._errors:
            raise self._errors.pop(0)
        return self._client.upsert(collection, **arguments)


def test_an_import_takes_another_id_when_one_is_spent(client: VecraftClient, tmp_path: Path) -> None:
    values = [{"id": f"{i:02}", "vector": [i, 1, 2, 3, 4]} for i in range(4)]
    source = open_source(write_lines(tmp_path / "a.jsonl", values))
    locked = [WriteConflictException("a record is locked", outcome="aborted") for _ in range(3)]
    assert import_records(Refusing(client, *locked), "copy", source).written == 4
    client.delete_many("copy", [value["id"] for value in values])
    down = Refusing(client, ShardUnavailableError("down; it was aborted", outcome="aborted"))
    with pytest.raises(ShardUnavailableError):
        import_records(down, "copy", source)
    again = Refusing(client)
    again.txn_ids = down.txn_ids
    assert import_records(again, "copy", source).written == 4


def test_another_file_of_that_name_is_imported_from_its_beginning(client: VecraftClient, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": str(i), "vector": [i] * 5} for i in range(6)])
    with pytest.raises(ShardUnavailableError):
        import_records(Interrupted(client, 2, False), "copy", open_source(path), batch_size=2)
    with pytest.raises(InvalidDataException, match="begun with batches of 2, not 3"):
        import_records(client, "copy", open_source(path), batch_size=3)
    write_lines(path, [{"id": str(i), "vector": [i + 1] * 5} for i in range(6)])
    result = import_records(client, "copy", open_source(path), batch_size=3)
    assert (result.written, result.skipped) == (6, 0)


def test_gzipped_lines_and_blank_ones(client: VecraftClient, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as lines:
        lines.write('\n{"id": "a", "vector": [1,1,1,1,1]}\n\n  \n{"id": "b", "vector": [2,2,2,2,2]}\n\n')
    source = open_source(tmp_path / "a.jsonl.gz")
    assert source.rows == 2
    import_records(client, "copy", source, batch_size=1)
    assert client.count("copy") == 2
