"""Commands that read and write files: import, export, tsne, backup, restore, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vecraft_data_model.errors import InvalidDataException
from vecraft_db.bulk import export_records, import_records
from vecraft_db.bulk_formats import Fields, open_source
from vecraft_db.cli.app import DAMAGED, app, session_of
from vecraft_db.cli.output import Printer
from vecraft_db.cli.records import Where, WhereDocument
from vecraft_db.cli.values import json_object


@app.command("import")
def import_file(
    context: typer.Context,
    collection: str,
    file: Annotated[Path, typer.Argument(help=".jsonl, .jsonl.gz, .parquet or .npy")],
    records: Annotated[Path | None, typer.Option(help="For .npy: JSON lines with id, metadata, document.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Field that holds the id.")] = None,
    vector_field: Annotated[str | None, typer.Option(help="Field that holds the vector.")] = None,
    document_field: Annotated[str | None, typer.Option(help="Field that holds the document.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Commit so many at a time; all at once by default.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Where to note progress; beside the file by default.")] = None,
) -> None:
    """Insert or replace all records of a file, atomically; after a failure, run it again to go on."""
    session = session_of(context)
    source = open_source(file, Fields(id_field, vector_field, document_field), records)
    with session.printer.progress(f"importing {file.name}") as bar:
        task = bar.add_task("import", total=source.rows)
        result = import_records(
            session.client,
            collection,
            source,
            batch_size=batch_size,
            journal_path=journal,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    session.printer.value({"written": result.written, "skipped": result.skipped, "commit_ts": result.commit_ts})


@app.command()
def export(
    context: typer.Context,
    collection: str,
    file: Annotated[Path, typer.Argument(help=".jsonl, .jsonl.gz, .parquet or .npy")],
    where: Where = None,
    where_document: WhereDocument = None,
) -> None:
    """Write records to a file, at one snapshot."""
    session = session_of(context)
    with session.printer.progress(f"exporting to {file.name}") as bar:
        task = bar.add_task("export", total=None)
        count, paths = export_records(
            session.client,
            collection,
            file,
            where=json_object(where, "--where"),
            where_document=json_object(where_document, "--where-document"),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    session.printer.value({"written": count, "files": [str(path) for path in paths]})


@app.command()
def tsne(
    context: typer.Context,
    collection: str,
    outfile: Annotated[Path, typer.Option(help="The picture, PNG.")] = Path("tsne.png"),
    color_by: Annotated[str | None, typer.Option(help="Metadata field that gives the colour.")] = None,
    perplexity: Annotated[float, typer.Option(help="About how many neighbours count.")] = 30,
    random_state: Annotated[int, typer.Option(help="Seed.")] = 42,
    record_id: Annotated[list[str] | None, typer.Option(help="Only this record; may be given again.")] = None,
) -> None:
    """Draw a collection in the plane."""
    session = session_of(context)
    path = session.client.generate_tsne_plot(
        collection,
        record_ids=record_id,
        perplexity=perplexity,
        random_state=random_state,
        outfile=str(outfile),
        color_by=color_by,
    )
    session.printer.value({"outfile": path} if session.printer.json else str(path))


@app.command()
def backup(context: typer.Context, path: Path) -> None:
    """Copy the whole database into an empty directory, consistently."""
    session = session_of(context)
    session.printer.value(_manifest(session.client.backup(str(path)), session.printer))


@app.command()
def restore(
    context: typer.Context,
    path: Path,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Replace the whole database by a backup."""
    session = session_of(context)
    if not yes:
        typer.confirm(f"replace everything by the backup in {str(path)!r}?", abort=True, err=True)
    session.printer.value(_manifest(session.client.restore(str(path)), session.printer))


def _manifest(manifest: dict[str, Any], printer: Printer) -> dict[str, Any]:
    """Return what a backup holds; people are told how many files, not which."""
    return manifest if printer.json else {**manifest, "files": len(manifest["files"])}


@app.command()
def verify(context: typer.Context) -> None:
    """Check every checksum and every index of a data directory that no process has open."""
    session = session_of(context)
    root = session.place.get("root")
    if root is None or (len(session.place) > 1 and ("address" in session.place or "url" in session.place)):
        raise InvalidDataException("verify reads the files themselves: name the data directory with --root")
    from vecraft_db.verify import verify_root

    report = verify_root(Path(root), note=session.printer.note)
    session.printer.value(report.to_dict() if session.printer.json else report.summary())
    if not report.ok:
        raise typer.Exit(DAMAGED)
