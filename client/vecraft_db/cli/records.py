"""Commands on records: insert, get, delete, search, scan, count."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vecraft_data_model import DataPacket, QueryPacket, VectorPacket
from vecraft_data_model.errors import InvalidDataException
from vecraft_db.cli.app import app, session_of
from vecraft_db.cli.output import packet_row
from vecraft_db.cli.values import document_value, json_object, vector_value

Where = Annotated[str | None, typer.Option(help="Filter on metadata: JSON, or @FILE.")]
WhereDocument = Annotated[str | None, typer.Option(help="Filter on documents: JSON, or @FILE.")]
WithVectors = Annotated[bool, typer.Option("--vectors", help="Show the vectors too.")]


@app.command()
def insert(
    context: typer.Context,
    collection: str,
    record_id: str,
    vector: Annotated[str, typer.Option(help="[0.1, 0.2] or 0.1,0.2 or @FILE.npy or @FILE.json.")],
    metadata: Annotated[str | None, typer.Option(help="JSON object, or @FILE.")] = None,
    document: Annotated[str | None, typer.Option(help="Text, or @FILE.")] = None,
    document_json: Annotated[bool, typer.Option("--document-json", help="The document is JSON.")] = False,
    expect: Annotated[str | None, typer.Option(help="absent, present, or a commit timestamp.")] = None,
) -> None:
    """Insert a record, or replace the one of that id; shows the one it replaced."""
    session = session_of(context)
    packet = DataPacket.create_record(
        record_id,
        VectorPacket(vector_value(vector)),
        metadata=json_object(metadata, "--metadata"),
        document=document_value(document, document_json),
    )
    expectation = int(expect) if expect is not None and expect.isdecimal() else expect
    options = {} if expectation is None else {"expect": expectation}
    preimage = session.client.insert(collection, packet, **options)
    _show_preimage(context, "replaced", preimage, f"inserted {record_id!r}")


@app.command()
def get(context: typer.Context, collection: str, record_id: str) -> None:
    """Show a record."""
    session = session_of(context)
    session.printer.value(packet_row(session.client.get(collection, record_id)))


@app.command()
def delete(
    context: typer.Context,
    collection: str,
    record_ids: Annotated[list[str] | None, typer.Argument(help="Ids of the records.")] = None,
    where: Where = None,
    where_document: WhereDocument = None,
) -> None:
    """Delete records by id, or all that match a filter; atomic."""
    session = session_of(context)
    filters = (
        ("where", json_object(where, "--where")),
        ("where_document", json_object(where_document, "--where-document")),
    )
    given = {name: value for name, value in filters if value is not None}
    if bool(record_ids) == bool(given):
        raise InvalidDataException("name the records to delete by id, or by --where / --where-document")
    if record_ids and len(record_ids) == 1:
        preimage = session.client.delete(collection, record_ids[0])
        _show_preimage(context, "deleted", preimage, f"there was no {record_ids[0]!r}")
        return
    result = session.client.delete_many(collection, **({"ids": record_ids} if record_ids else given))
    session.printer.value(result)


def _show_preimage(context: typer.Context, what: str, preimage: Any, otherwise: str) -> None:
    printer = session_of(context).printer
    if printer.json:
        printer.value({"preimage": None if preimage is None else packet_row(preimage)})
    else:
        printer.note(otherwise if preimage is None else f"{what} {preimage.record_id!r}:")
        if preimage is not None:
            printer.value(packet_row(preimage))


@app.command()
def search(
    context: typer.Context,
    collection: str,
    vector: Annotated[str | None, typer.Option(help="[0.1, 0.2] or 0.1,0.2 or @FILE.npy or @FILE.json.")] = None,
    like: Annotated[str | None, typer.Option(help="Search by the vector of this record.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    where: Where = None,
    where_document: WhereDocument = None,
    ef: Annotated[int | None, typer.Option(help="Depth of the search.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every record.")] = False,
    max_distance: Annotated[float | None, typer.Option(help="Leave out what is farther.")] = None,
    text: Annotated[str | None, typer.Option(help="Words to rank documents by, alone or besides a vector.")] = None,
    fusion: Annotated[str, typer.Option(help="How both rankings become one: rrf, or weights 0.7,0.3.")] = "rrf",
    group_by: Annotated[str | None, typer.Option(help="The nearest of each value of this field only.")] = None,
    group_size: Annotated[int, typer.Option(help="With --group-by: how many of each value.")] = 1,
    vectors: WithVectors = False,
) -> None:
    """Find the nearest records."""
    session = session_of(context)
    if (vector is not None and like is not None) or (vector is None and like is None and text is None):
        raise InvalidDataException("say what to search by: --vector, or --like RECORD_ID; --text alone or besides")
    by = None if vector is None else vector_value(vector)
    if like is not None:
        by = session.client.get(collection, like).vector.to_numpy()
    query = QueryPacket(
        query_vector=by,
        k=k,
        where=json_object(where, "--where"),
        where_document=json_object(where_document, "--where-document"),
        ef=ef,
        exact=exact,
        max_distance=max_distance,
        include=("metadata", "document", "vector") if vectors else ("metadata", "document"),
        query_text=text,
        fusion="rrf" if fusion == "rrf" else vector_value(fusion, "--fusion"),
        group_by=group_by,
        group_size=group_size,
    )
    rows = []
    for result in session.client.search(collection, query):
        row = result.to_dict()
        if vectors:
            row["vector"] = result.vector
        rows.append(row)
    session.printer.rows(rows, empty="nothing matches")


@app.command()
def scan(
    context: typer.Context,
    collection: str,
    where: Where = None,
    where_document: WhereDocument = None,
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    vectors: WithVectors = False,
) -> None:
    """List records in order of their ids, at one snapshot."""
    session = session_of(context)
    packets = session.client.scan(
        collection,
        where=json_object(where, "--where"),
        where_document=json_object(where_document, "--where-document"),
        include=("metadata", "document", "vector") if vectors else ("metadata", "document"),
        limit=limit,
    )
    session.printer.rows((packet_row(packet, vectors) for packet in packets), empty="nothing matches")


@app.command()
def count(context: typer.Context, collection: str, where: Where = None, where_document: WhereDocument = None) -> None:
    """Count records, exactly."""
    session = session_of(context)
    number = session.client.count(
        collection,
        where=json_object(where, "--where"),
        where_document=json_object(where_document, "--where-document"),
    )
    session.printer.value({"count": number} if session.printer.json else str(number))
