"""Stopping a process so that it really stands still: ``kill -STOP`` returns before it does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

PATIENCE_S = 180.0


def stop(pid: int) -> None:
    """Stop a process, and wait until all its threads stand still.

    The signal takes effect when a thread of the process gets its turn; on a busy machine the others go on until then,
    and may answer what was asked after the signal was sent.
    """
    os.kill(pid, signal.SIGSTOP)
    give_up_at = time.monotonic() + PATIENCE_S
    while not _stands_still(pid):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"process {pid} goes on although it was stopped")
        time.sleep(0.002)


def _stands_still(pid: int) -> bool:
    """Whether every thread is stopped, or has ended."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread has ended just now: look again
    return all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats)
