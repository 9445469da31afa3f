"""The options before the command, the client they open, and errors as exit codes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, Exit, TyperException

from vecraft_data_model.errors import (
    AuthenticationError,
    ChecksumValidationFailureError,
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    CorruptionError,
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    RecordNotFoundError,
    StorageFailureException,
    VecraftError,
    WriteConflictException,
)
from vecraft_db.cli.output import Printer

FAILED, BAD_INPUT, NOT_FOUND, CONFLICT, TRY_LATER, DAMAGED, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130

app = typer.Typer(
    name="vecraft",
    help="VecraftDB on the command line: a data directory, a Ray cluster, or a REST gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Session:
    """What all commands of one run share: where the database is, one client (opened when first needed), the printer."""

    def __init__(self, place: dict[str, Any], printer: Printer) -> None:
        self.place = place
        self.printer = printer
        self._client: Any = None
        self._elsewhere = contextlib.ExitStack()

    @staticmethod
    def sharing(other: Session, printer: Printer) -> Session:
        """Return a session with the client of another, and a printer of its own."""
        session = Session(other.place, printer)
        session._client = other.client
        return session

    @property
    def client(self) -> Any:
        """The client; opened at the first use."""
        if self._client is None:
            from vecraft_db.client.vecraft_client import VecraftClient

            # Ray prints what happens to its workers on `sys.stdout`, and has no setting for it: only answers belong
            # there, and the printer has the real one.
            self._elsewhere.enter_context(contextlib.redirect_stdout(sys.stderr))
            self._client = VecraftClient(**self.place)
        return self._client

    def close(self) -> None:
        """Close the client, if there is one."""
        client, self._client = self._client, None
        with self._elsewhere:
            if client is not None:
                client.close()


@app.callback()
def options(
    context: typer.Context,
    root: Annotated[str | None, typer.Option(help="A data directory, opened in this process.")] = None,
    shards: Annotated[int | None, typer.Option(help="Shards of a new data directory.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster: auto, or host:port.")] = None,
    url: Annotated[str | None, typer.Option(help="A REST gateway.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for the gateway (better: VCRAFT_API_KEY).")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds an operation may take.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines instead of tables.")] = False,
) -> None:
    """Open the place that the options name; without any, the settings of the environment, else ./vecraft-data."""
    if isinstance(context.obj, Session):  # inside the shell, which has chosen already
        return
    if sum(value is not None for value in (root, address, url)) > 1 and not (root and address and not url):
        raise InvalidDataException("name one place: --root, --address or --url")
    given = {
        "root": root,
        "shards": shards,
        "address": address,
        "url": url,
        "api_key": api_key,
        "timeout": timeout,
    }
    place = {name: value for name, value in given.items() if value is not None}
    session = Session(place, Printer(json))
    context.obj = session
    context.call_on_close(session.close)


def session_of(context: typer.Context) -> Session:
    """Return the session of a running command."""
    if not isinstance(context.obj, Session):
        raise RuntimeError("a command ran outside of its application")
    return context.obj


def exit_code(error: BaseException) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, CollectionNotExistedException | RecordNotFoundError):
        return NOT_FOUND
    if isinstance(error, CollectionAlreadyExistedException | PreconditionFailedError):
        return CONFLICT
    if isinstance(error, WriteConflictException | ReadWriteConflictException):
        return CONFLICT
    if isinstance(error, InvalidDataException | AuthenticationError):
        return BAD_INPUT
    if isinstance(error, CorruptionError | ChecksumValidationFailureError | StorageFailureException):
        return DAMAGED
    if isinstance(error, VecraftError) and error.retryable:
        return TRY_LATER
    if isinstance(error, KeyboardInterrupt | Abort):
        return INTERRUPTED
    return FAILED


def run(arguments: Sequence[str], session: Session | None = None) -> int:
    """Run one command line and return its exit code; errors are told on standard error in one sentence."""
    words = list(arguments)
    if "--json" in words[1:]:  # it is accepted after the command too, where people type it
        words = ["--json", *(word for word in words if word != "--json")]
    as_json = "--json" in words[:1]
    if session is not None and as_json:
        session = Session.sharing(session, Printer(json=True, stream=session.printer.stream))
    printer = session.printer if session is not None else Printer(json=as_json)
    try:
        result = typer.main.get_command(app).main(args=words, prog_name="vecraft", standalone_mode=False, obj=session)
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except Exit as stop:
        return stop.exit_code
    except TyperException as error:
        printer.note(error.format_message())
        return error.exit_code
    except VecraftError as error:
        if printer.json:
            printer.value({"error": error.to_dict()})
        printer.note(f"{error.code}: {error.message}")
        return exit_code(error)
    except (KeyboardInterrupt, Abort) as error:
        printer.note("interrupted")
        return exit_code(error)
    except BrokenPipeError:
        # The reader of a pipe has gone (head): there is nobody to tell, and the interpreter must not try at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return FAILED


def main() -> None:
    """Entry point of ``vecraft``."""
    sys.exit(run(sys.argv[1:]))


# The commands register themselves with ``app``, which must exist first.
from vecraft_db.cli import cluster, collections, files, records, shell  # noqa: E402, F401
