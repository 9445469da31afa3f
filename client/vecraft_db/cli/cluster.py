"""Commands on the place itself: serve it, look at its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from vecraft_db.cli.app import app, session_of

cluster_app = typer.Typer(help="The cluster behind the database.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


@cluster_app.command()
def status(context: typer.Context) -> None:
    """Show shards, their figures and whether they answer."""
    session = session_of(context)
    info = session.client.cluster_info()
    if session.printer.json:
        session.printer.value(info)
        return
    # A table has room for a number per shard: a line per figure, a column per shard.
    lines: dict[str, dict[str, Any]] = {}
    for shard in info.get("shards", []):
        facts = {name: value for name, value in shard.items() if not isinstance(value, Mapping)}
        nested = {name: value for part in shard.values() if isinstance(part, Mapping) for name, value in part.items()}
        for name, value in (facts | nested).items():
            if name != "shard":
                lines.setdefault(name, {"": name})[f"shard {shard.get('shard')}"] = value
    session.printer.value({**info, "shards": list(lines.values())})


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def serve(context: typer.Context) -> None:
    """Serve REST: the same as ``python -m vecraft_db.server``, with the same options."""
    session = session_of(context)
    from vecraft_db.server import main

    place = [part for name, value in session.place.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    raise typer.Exit(main([*place, *context.args]) or 0)
