"""The index of words against counting them, with rows in every state: settled, fresh, reopened."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.filters import words
from vecraft_shard.indexes import words as words_module
from vecraft_shard.indexes.words import WordIndex

WORDS = ["oak", "Oak", "elm", "naïve", "中文", "'", '"', "a_b", "42"]
texts = st.one_of(st.none(), st.just(""), st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))


class Fixture:
    """An index over a list of texts, which counts those it reads."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []
        self.read = 0
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.index = self.opened()

    def opened(self) -> WordIndex:
        return WordIndex(self.connection, 3, self.texts_of)

    def texts_of(self, rows: Sequence[int]) -> list[str | None]:
        self.read += len(rows)
        return [self.texts[row] for row in rows]

    def settle(self) -> None:
        first = self.index.settled
        if first == 0:
            self.index.create_tables()
        if len(self.texts) > first:
            self.index.index_text(first, self.texts[first:])
        self.index.settle(len(self.texts))

    def check(self, n_rows: int) -> None:
        counted = [words(text) if text else [] for text in self.texts[:n_rows]]
        assert self.index.lengths(n_rows).tolist() == list(map(len, counted))
        assert self.index.totals(n_rows) == (sum(map(bool, counted)), sum(map(len, counted)))
        for word in {word for text in WORDS for word in words(text)} | {"absent"}:
            rows, counts = self.index.postings(word, n_rows)
            found = {row: has for row, text in enumerate(counted) if (has := text.count(word))}
            assert dict(zip(rows.tolist(), counts.tolist(), strict=True)) == found
            assert rows.tolist() == sorted(rows.tolist())
        both = [row for row, text in enumerate(counted) if {"oak", "elm"} <= set(text)]
        assert self.index.rows_with_all(("elm", "oak"), n_rows).tolist() == both


@examples(100)
@given(
    batches=st.lists(st.tuples(st.lists(texts, max_size=5), st.booleans(), st.booleans()), max_size=5),
    data=st.data(),
)
def test_counts_what_is_there(batches: list[tuple[list[str | None], bool, bool]], data: st.DataObject) -> None:
    fixture = Fixture()
    for batch, settle, reopen in batches:
        fixture.texts += batch
        if settle:
            fixture.settle()
        if reopen:
            settled = fixture.index.settled
            fixture.index = fixture.opened()
            if settled:
                fixture.index.restore(settled)
        fixture.check(data.draw(st.integers(0, len(fixture.texts))))
    fixture.check(len(fixture.texts))
    fixture.connection.close()


def test_settled_words_are_not_read_again() -> None:
    fixture = Fixture()
    fixture.texts = ["oak elm", None, "elm elm"]
    fixture.settle()
    fixture.texts.append("oak")
    for _ in range(3):
        fixture.check(4)
    assert fixture.read == 1


def test_words_asked_about_lately_are_kept_in_a_small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = Fixture()
    fixture.texts = ["oak elm", "oak", "elm 42"] * 50
    fixture.settle()
    asked: list[str] = []
    fixture.connection.set_trace_callback(asked.append)
    fixture.check(150)
    assert asked
    asked.clear()
    fixture.check(150)
    assert not asked, "all of them are at hand"
    fixture.texts.append("elm")
    fixture.settle()
    fixture.check(151)
    assert asked, "the tables have grown"
    monkeypatch.setattr(words_module, "_KEPT_MIN", 300)
    for n in range(100):
        fixture.index.postings(f"absent{n}", 151)
        fixture.check(151)
    kept = fixture.index._kept
    assert sum(32 + len(rows) for rows, _ in kept.values()) == fixture.index._kept_size <= 300


def test_a_file_without_these_tables_gets_them_with_the_next_checkpoint() -> None:
    fixture = Fixture()
    fixture.connection.execute("CREATE TABLE words_3 (text)")
    fixture.texts = ["oak elm", None]
    fixture.index.restore(2)
    assert fixture.index.settled == 0
    fixture.check(2)
    fixture.texts.append("elm")
    fixture.index.index_text(2, ["elm"])
    fixture.index.settle(3)
    fixture.read = 0
    fixture.check(3)
    assert fixture.read == 0
    assert fixture.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'words_3'").fetchone() is None


def test_rows_without_texts_take_no_room() -> None:
    fixture = Fixture()
    for texts in ([None] * 100, ["oak " * 300, None], [None, ""], ["elm"]):
        fixture.texts += texts
        fixture.settle()
        fixture.check(len(fixture.texts))
    lengths = fixture.connection.execute("SELECT first_row, length(lengths) FROM text_lengths_3 ORDER BY 1").fetchall()
    assert lengths == [(100, 5), (104, 2)]
    fixture.index = fixture.opened()
    fixture.index.restore(105)
    fixture.check(105)


@pytest.mark.parametrize("word", ["'; DROP TABLE terms_3; --", '"', "*"])
def test_what_is_no_word_is_found_nowhere(word: str) -> None:
    fixture = Fixture()
    fixture.texts = [f"oak {word} elm"]
    fixture.settle()
    rows: Any = fixture.index.postings(word, 1)[0]
    assert rows.tolist() == []
    fixture.check(1)
