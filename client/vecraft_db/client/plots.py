"""From records to a picture: which of them are drawn, and with what colours. Drawing itself is ``vecraft_db.tsne``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from vecraft_data_model.errors import InvalidDataException, RecordNotFoundError
from vecraft_data_model.packets import DataPacket
from vecraft_data_model.validation import check_integer
from vecraft_db.tsne import POINTS_MAX, field_of, write_tsne_plot


def drawn_positions(count: int, random_state: int) -> frozenset[int] | None:
    """Return which of ``count`` records to draw, a seeded sample when there are too many; None for all."""
    check_integer(random_state, "random_state", 0, 2**32 - 1)
    if count <= POINTS_MAX:
        return None
    return frozenset(np.random.default_rng(random_state).choice(count, POINTS_MAX, replace=False).tolist())


def existing(packets: Sequence[DataPacket | None], ids: Sequence[str], collection: str) -> list[DataPacket]:
    """Return the packets, all of which must be there.

    Raises:
        RecordNotFoundError: One is missing.
    """
    for record_id, packet in zip(ids, packets, strict=True):
        if packet is None:
            raise RecordNotFoundError(
                f"no record {record_id!r} in collection {collection!r}", collection=collection, record_id=record_id
            )
    return [packet for packet in packets if packet is not None]


def write_plot(
    packets: Sequence[DataPacket],
    collection: str,
    perplexity: float,
    random_state: int,
    outfile: str | os.PathLike[str],
    color_by: str | None,
) -> str:
    """Draw the packets' vectors and return the path of the picture.

    Raises:
        InvalidDataException: Too few records, or an argument out of its range.
        TsnePlotGeneratingFailureException: It could not be drawn.
    """
    if len(packets) < 2:
        raise InvalidDataException(
            f"a t-SNE plot takes at least 2 records; collection {collection!r} gave {len(packets)}"
        )
    vectors = np.stack([packet.vector.to_numpy() for packet in packets if packet.vector is not None])
    labels = None if color_by is None else [field_of(packet.metadata, color_by) for packet in packets]
    return write_tsne_plot(
        vectors,
        labels,
        perplexity=perplexity,
        random_state=random_state,
        outfile=outfile,
        title=f"{collection}: t-SNE of {len(packets):,} records",
        label_name=color_by,
    )
