"""Commands on whole collections."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vecraft_data_model.schema import CollectionSchema
from vecraft_db.cli.app import app, session_of
from vecraft_db.cli.output import plain


@app.command("list-collections")
def list_collections(context: typer.Context) -> None:
    """List the collections."""
    session = session_of(context)
    rows: list[dict[str, Any]] = [plain(schema) for schema in session.client.list_collections()]
    session.printer.rows(rows, empty="there are no collections")


@app.command("create-collection")
def create_collection(
    context: typer.Context,
    name: str,
    dim: Annotated[int, typer.Option(help="Length of the vectors.")],
    metric: Annotated[str, typer.Option(help="l2, cosine or ip.")] = "l2",
    vector_type: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    m: Annotated[int | None, typer.Option("--M", help="Links per node of the graph.")] = None,
    ef_construction: Annotated[int | None, typer.Option(help="Depth of search while building.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="Recall@10 that searches aim at.")] = None,
    checksum_algorithm: Annotated[str | None, typer.Option(help="Checksum of its records.")] = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="An equal one is not an error.")] = False,
) -> None:
    """Create a collection."""
    session = session_of(context)
    given = {
        "M": m,
        "ef_construction": ef_construction,
        "target_recall": target_recall,
        "checksum_algorithm": checksum_algorithm,
    }
    schema = CollectionSchema(
        name=name,
        dim=dim,
        metric=metric,
        vector_type=vector_type,
        **{field: value for field, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    session.printer.value(session.client.create_collection(schema, if_not_exists=if_not_exists))


@app.command("describe-collection")
def describe_collection(context: typer.Context, name: str) -> None:
    """Show a collection's settings and figures."""
    session = session_of(context)
    session.printer.value(session.client.describe_collection(name))


@app.command("drop-collection")
def drop_collection(
    context: typer.Context,
    name: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Drop a collection and all its records."""
    session = session_of(context)
    if not yes:
        count = session.client.count(name)
        typer.confirm(f"drop {name!r} with its {count:,} records?", abort=True, err=True)
    session.client.drop_collection(name)
    session.printer.note(f"dropped {name!r}")
