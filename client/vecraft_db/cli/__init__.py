"""The command line: ``vecraft [--url URL | --root DIR | --address ADDRESS] COMMAND …``.

Every command is a few lines over :class:`VecraftClient`, so it works alike on a directory, a Ray cluster and a gateway.

    app        options that stand before the command, errors to exit codes, ``main``
    output     tables for people, JSON lines for programs
    values     vectors, filters and documents as they are typed
    collections, records, files, cluster    the commands
    shell      the same commands, one client, line after line

Exit codes::

    0  done                                             4  a conflict; it exists already; a condition does not hold
    1  another error                                    5  try again later: unavailable, overloaded, timed out
    2  the command or its input is wrong                6  the data is damaged, or the disk failed
    3  no such collection or record                     130  interrupted

What was asked for goes to standard output, all else to standard error.
"""

from vecraft_db.cli.app import main

__all__ = ["main"]
