"""What one page of a scan asks for, apart from its moment: one value on its way from the client to the shards.

The clients' ``scan`` and REST's page make it, as they make a :class:`~vecraft_data_model.search_options.SearchOptions`
of a search; a router asks each shard for its own part of the page by the same value with another place and limit.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vecraft_data_model.filters import DocumentFilter, Filter


class ScanOptions(msgspec.Struct, frozen=True, gc=False):
    """Which records in id order (by code point), and what of them.

    Attributes:
        after: The id behind which the page begins; None: at the first.
        limit: Most records on the page, at least 1.
        where, where_document: Filters, parsed; None: no filter.
        with_payloads: Whether rows carry their payloads (metadata and document, as they are stored).
        with_vectors: Whether rows carry their vectors.
    """

    after: str | None = None
    limit: int = 1000
    where: Filter | None = None
    where_document: DocumentFilter | None = None
    with_payloads: bool = True
    with_vectors: bool = False


DEFAULT_PAGE: Final = ScanOptions()
