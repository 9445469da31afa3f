"""The shell: the same commands line after line, over one client that stays open.

Lines are split as a POSIX shell does. An error is told and the next line is read; the exit code is that of the last
command that failed, so that a script piped into it can be checked.
"""

from __future__ import annotations

import contextlib
import shlex
import sys

import typer

from vecraft_db.cli.app import BAD_INPUT, app, run, session_of

PROMPT = "vecraft> "
_LEAVING = ("exit", "quit", r"\q")


@app.command()
def shell(context: typer.Context) -> None:
    """Read commands line by line: help lists them, exit or Ctrl-D leaves."""
    session = session_of(context)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # line editing and history are a comfort that some Pythons lack
            import readline  # noqa: F401
        session.printer.note("help lists the commands, exit leaves")
    failed = 0
    while True:
        try:
            line = input(PROMPT) if interactive else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            break
        if not interactive and not line:
            break
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            session.printer.note(f"the line does not parse: {error}")
            failed = BAD_INPUT
            continue
        if not words:
            continue
        if words[0] in _LEAVING:
            break
        if words[0] == "shell":
            session.printer.note("this is the shell already")
            continue
        failed = run(["--help"] if words == ["help"] else words, session) or failed
    if failed:
        raise typer.Exit(failed)
