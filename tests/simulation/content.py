"""What records of the simulated database hold: values that say who wrote them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.messages import CreateCollection, Delete, Expectation, Mutation, Put, Rows, SetAlias
from vecraft_data_model.payload import decode_payload
from vecraft_data_model.schema import CollectionSchema

LISTS, ACCOUNTS, BLIND, ALIAS, PASSING = "lists", "bank", ("red", "blue"), "current", "green"
OPENING_BALANCE = 100
GROUPS = 4
DIM = 2


def vector_of(record_id: str, tag: int) -> list[float]:
    """Small whole numbers, so that distances are exact and often equal."""
    mixed = zlib.crc32(f"{record_id} {tag}".encode())
    return [float(mixed % 8), float(mixed // 8 % 8)]


def records(
    collection: str,
    ids: Sequence[str],
    tag: int,
    *,
    lists: Sequence[Sequence[int]] | None = None,
    balances: Sequence[int] | None = None,
    expect: Expectation = None,
    texts: bool = False,
) -> Put:
    """The mutation by which operation ``tag`` writes these records. ``texts``: with documents that name its group."""
    metadatas: list[Any] = [{"t": tag, "g": tag % GROUPS} for _ in ids]
    for row, metadata in enumerate(metadatas):
        if lists is not None:
            metadata["l"] = list(lists[row])
        if balances is not None:
            metadata["b"] = balances[row]
    vectors = np.array([vector_of(record_id, tag) for record_id in ids], np.float32)
    documents = [f"group{tag % GROUPS} wrote {record_id}" for record_id in ids] if texts else None
    return put_of_columns(collection, list(ids), vectors, metadatas, documents, expect=expect)


def deletion(collection: str, ids: Sequence[str], expect: Expectation) -> Delete:
    """The mutation that deletes these records."""
    return Delete(collection, list(ids), expect)


def schema_of(name: str) -> CollectionSchema:
    """The schema of any collection here."""
    return CollectionSchema(name=name, dim=DIM, M=4, ef_construction=10)


def opening(keys: int, accounts: int, *, texts: bool) -> list[list[Mutation]]:
    """The transactions that everything begins with."""
    names = [f"a{number}" for number in range(accounts)]
    first = [f"k{number}" for number in range(0, keys, 2)]
    return [
        [CreateCollection(schema_of(name), "") for name in (LISTS, ACCOUNTS, *BLIND)],
        [SetAlias(ALIAS, BLIND[0])],
        [records(ACCOUNTS, names, 0, balances=[OPENING_BALANCE] * accounts)],
        [records(BLIND[0], first, 0, texts=texts), records(LISTS, first, 0, lists=[[]] * len(first))],
    ]


def condition(group: int | None, operator: str) -> tuple[Filter | None, DocumentFilter | None]:
    """The filters for the records that every fourth operation wrote: by their metadata, or (an operator) their text."""
    if group is None:
        return None, None
    if operator:
        return None, parse_where_document({operator: f"group{group}"})
    return parse_where({"g": group}), None


def value_of(payload: bytes) -> dict[str, Any]:
    """What a record holds."""
    return dict(decode_payload(payload).metadata or {})


def list_of(rows: Rows) -> dict[str, tuple[int, ...]]:
    """The lists of records, by id."""
    payloads = map(value_of, rows.payloads or [])
    return {record_id: tuple(value["l"]) for record_id, value in zip(rows.ids, payloads, strict=True)}
