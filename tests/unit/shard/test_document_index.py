"""The document index against the reference evaluator, with rows in every state: settled, fresh, reopened."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.filters import matches_document, parse_where_document
from vecraft_shard.indexes.documents import DocumentIndex

WORDS = (
    "cat", "Cat", "CATS", "concatenate", "naïve", "NAIVE", "straße", "STRASSE", "ﬁsh", "fish", "中文", "中", "文字",
    "x", "42", "_63", "_e4b8ad", "e4b8ad", "OR", "AND", "NOT", "NEAR(", '"', "*", "a\0b", "\ufffd", "İstanbul",
    "😀😀😀", "don't", "--;",
)  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
anything = st.text(max_size=12)
json_documents = st.dictionaries(
    st.sampled_from(["kind", "n", "deep"]),
    st.one_of(st.integers(0, 3), st.sampled_from(["a", "b"]), st.fixed_dictionaries({"n": st.integers(0, 2)})),
)
documents = st.one_of(st.none(), texts, texts, anything, json_documents)
pieces = st.one_of(st.sampled_from(WORDS), texts, anything)
conditions = st.one_of(
    st.builds(lambda t: {"$contains": t}, pieces),
    st.builds(lambda t: {"$not_contains": t}, pieces),
    st.builds(lambda t: {"$matches": t + " cat"}, pieces),
    st.builds(lambda t: {"$matches": t}, st.sampled_from([w for w in WORDS if any(c.isalnum() for c in w)])),
    st.builds(lambda n: {"n": n}, st.integers(0, 3)),
    st.builds(lambda n: {"deep.n": {"$gte": n}}, st.integers(0, 2)),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(lambda items: {"$and": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda items: {"$or": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda item: {"$not": item}, inner),
    ),
    max_leaves=4,
)


def json_only(batch: list[Any]) -> list[dict[str, Any] | None]:
    return [document if isinstance(document, dict) else None for document in batch]


class Fixture:
    """An index over a list of documents, which counts the texts it reads."""

    def __init__(self, path: str = ":memory:") -> None:
        self.documents: list[Any] = []
        self.read = 0
        self.connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.index = DocumentIndex(self.connection, 3, self.texts)

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        self.read += len(rows)
        return [d if isinstance(d := self.documents[row], str) else None for row in rows]

    def add(self, batch: list[Any]) -> None:
        self.index.add(len(self.documents), json_only(batch))
        self.documents += batch

    def settle(self) -> None:
        first = self.index.settled
        self.connection.execute("BEGIN")
        if first == 0:
            self.index.create_tables()
        self.index.index_text(first, self.texts(range(first, len(self.documents))))
        self.connection.execute("COMMIT")
        self.index.settle(len(self.documents))

    def matching(self, where_document: dict[str, Any], n_rows: int | None = None) -> list[int]:
        n_rows = len(self.documents) if n_rows is None else n_rows
        rows: list[int] = self.index.evaluate(parse_where_document(where_document), n_rows).rows().tolist()
        return rows

    def reference(self, where_document: dict[str, Any], n_rows: int | None = None) -> list[int]:
        parsed = parse_where_document(where_document)
        return [row for row, d in enumerate(self.documents[:n_rows]) if matches_document(parsed, d)]


@examples(150)
@given(
    batches=st.lists(st.tuples(st.lists(documents, max_size=6), st.booleans()), min_size=1, max_size=4),
    wheres=st.lists(filters, min_size=1, max_size=5),
    data=st.data(),
)
def test_equals_the_reference_evaluator(
    batches: list[tuple[list[Any], bool]], wheres: list[dict[str, Any]], data: st.DataObject
) -> None:
    f = Fixture()
    for batch, settle in batches:
        f.add(batch)
        if settle:
            f.settle()
        for where in wheres:
            assert f.matching(where) == f.reference(where), where
    below = data.draw(st.integers(0, len(f.documents)))
    reopened = Fixture()
    reopened.connection, reopened.documents = f.connection, f.documents
    reopened.index = DocumentIndex(f.connection, 3, reopened.texts)
    reopened.index.restore(f.index.settled)
    reopened.index.add(f.index.settled, json_only(f.documents[f.index.settled :]))
    for where in wheres:
        assert f.matching(where, below) == f.reference(where, below), where
        assert reopened.matching(where) == reopened.reference(where), where
    f.connection.close()


def test_every_word_in_every_text() -> None:
    f = Fixture()
    f.add([*WORDS, *(f"{a} {b}" for a in WORDS for b in WORDS[::3]), *(a + b for a in WORDS for b in WORDS[::4]), None])
    f.settle()
    for word in WORDS:
        for size in range(1, len(word) + 1):
            where: dict[str, Any] = {"$contains": word[-size:]}
            assert f.matching(where) == f.reference(where), where
        if any(c.isalnum() for c in word):
            for where in ({"$matches": word}, {"$matches": word + " cat"}):
                assert f.matching(where) == f.reference(where), where


def test_a_text_with_all_the_trigrams_need_not_hold_the_substring() -> None:
    f = Fixture()
    f.add(["abcd bcde", "abcde", "abcXbcd", "cde bcd abc"])
    f.settle()
    assert f.matching({"$contains": "abcde"}) == [1]


@pytest.mark.parametrize(
    "hostile",
    ['" OR * NEAR(', "'; DROP TABLE words_3; --", "text:x", '"" AND', "a" * 70_000, "abc" * 999 + "d", "^x", "{a b}"],
)
def test_text_never_becomes_query_syntax(hostile: str) -> None:
    f = Fixture()
    f.add([hostile, "x" + hostile + "y", "plain OR text", None, {"text": hostile}])
    f.settle()
    assert f.matching({"$contains": hostile}) == [0, 1]
    many = " ".join(f"w{i}" for i in range(3000))
    f.add([many, many[:-1]])
    f.settle()
    assert f.matching({"$matches": many}) == [5]
    if any(c.isalnum() for c in hostile):
        assert f.matching({"$matches": hostile}) == f.reference({"$matches": hostile})
    assert f.matching({"$contains": "plain"}) == [2]


def test_settled_words_are_found_without_reading_texts() -> None:
    f = Fixture()
    f.add([f"word{i % 10} common naïve{i % 7}" for i in range(500)])
    f.settle()
    f.read = 0
    assert f.matching({"$matches": "NAIVE3 word1"}) == [i for i in range(500) if i % 7 == 3 and i % 10 == 1]
    assert f.read == 0
    assert f.matching({"$contains": "ïve3"}) == [i for i in range(500) if i % 7 == 3]
    assert f.read < 100
    f.read = 0
    f.add(["word1 naïve3"])
    assert f.matching({"$matches": "naive3 word1"})[-1] == 500
    assert f.matching({"$contains": "ïve3"})[-1] == 500
    assert f.read == 2, "what was found before is kept; only the new row is read, once for each"


def test_the_rarest_trigrams_of_a_large_collection_are_enough() -> None:
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("aaabcdeé\0z", k=rng.randrange(3, 12))) for _ in range(400)]
    f = Fixture()
    for _ in range(5):
        f.add([" ".join(rng.choices(vocabulary, k=5)) for _ in range(1000)])
        f.settle()
    parts = [f.documents[rng.randrange(5000)][4:] for _ in range(10)]
    for needle in (*rng.sample(vocabulary, 40), *parts, "aaa", "no such"):
        assert f.matching({"$contains": needle}) == f.reference({"$contains": needle})
    f.add([vocabulary[0] + "zz"] * 6000)  # the sample says nothing about those
    f.settle()
    for needle in (*vocabulary[:3], vocabulary[0] + "zz", vocabulary[0][1:] + "z"):
        assert f.matching({"$contains": needle}) == f.reference({"$contains": needle})
    f.read = 0
    assert f.matching({"$contains": "nowhere at all"}) == [] and f.read == 0, "texts are sampled once"


def test_without_tables_everything_is_read(tmp_path: Any) -> None:
    f = Fixture(str(tmp_path / "shard.sqlite"))
    f.index.restore(0)
    f.add(["a cat", {"kind": "cat"}, None])
    assert f.matching({"$matches": "cat"}) == [0]
    assert f.matching({"kind": "cat"}) == [1]
    f.settle()
    f.connection.execute("BEGIN")
    f.index.drop_tables()
    f.connection.execute("ROLLBACK")
    assert f.matching({"$contains": "cat"}) == [0]


def test_the_table_of_trigrams_is_made_with_the_first_text() -> None:
    def tables(f: Fixture) -> set[str]:
        return {name for (name,) in f.connection.execute("SELECT name FROM sqlite_master") if name == "trigrams_3"}

    f = Fixture()
    for batch in ([None, {"a": 1}], [None], [""]):
        f.add(batch)
        f.settle()
        assert not tables(f) and f.matching({"$contains": "needle"}) == []
    f.add(["a needle", None])
    assert f.matching({"$contains": "needle"}) == [4]
    f.settle()
    assert tables(f)
    f.add(["no n-e-e-d-l-e", "needles"])
    f.settle()
    assert f.matching({"$contains": "needle"}) == [4, 7]
    f.index.drop_tables()
    assert not tables(f)


def test_a_table_of_trigrams_that_was_made_without_texts_is_filled() -> None:
    f = Fixture()
    f.add([None])
    f.settle()
    f.connection.execute(
        "CREATE VIRTUAL TABLE trigrams_3 USING fts5"
        "(text, content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')"
    )  # as by earlier versions
    f.index = DocumentIndex(f.connection, 3, f.texts)
    f.index.restore(1)
    assert f.matching({"$contains": "needle"}) == []
    f.add(["needle"])
    f.settle()
    assert f.matching({"$contains": "needle"}) == [1]


def test_who_asks_while_the_first_texts_settle_finds_them() -> None:
    class AskedMeanwhile(DocumentIndex):
        def _has(self, table: str) -> bool:
            found.append(f.matching({"$contains": "needle"}))
            return super()._has(table)

    f, found = Fixture(), list[list[int]]()
    f.index = AskedMeanwhile(f.connection, 3, f.texts)
    f.add(["a needle", None, "hay"])
    f.settle()
    assert found == [[0]]
    assert f.matching({"$contains": "needle"}) == [0]
    f.add(["hay", "needles"])
    assert f.matching({"$contains": "needle"}) == [0, 4]
