"""Framed messages over one connected socket: what the data plane speaks once a peer has shown who it is.

::

    "VDW3"   buffers: u32   call: u64   head: u64 bytes   buffers × u64 bytes │ head │ buffer │ buffer …
    ───────────────────────── little-endian ─────────────────────────────────

What stands in them is :mod:`vecraft_cluster.codec`'s. Buffers are sent from the sender's memory and received into
memory of the receiver's own, without a copy in between.

One call is under way on a connection at a time, so an answer needs no name but the number of its call. A connection
that fails in any way is of no further use. Not thread-safe: a wire belongs to whoever took it.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections import deque
from typing import Any, Final

import msgspec

_MAGIC: Final = b"VDW3"
_FIXED: Final = struct.Struct("<4sIQQ")
_STAGE_BYTES: Final = 1 << 16
BUFFERS_MAX: Final = 4096
_FRAME_BYTES_MAX: Final = 1 << 34
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


_SILENCE_S: Final = 5
"""A peer whose machine does not acknowledge what was sent, or does not answer probes, for so long has vanished."""


def set_up(connection: socket.socket) -> None:
    """Prepare a TCP connection: small frames leave at once, and a peer that vanished is noticed in seconds.

    Not noticed is one whose process is stopped: its machine goes on acknowledging. That is what deadlines are for.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000)


class Frame(msgspec.Struct, frozen=True):
    """What one message travels as."""

    number: int
    head: bytes | bytearray
    buffers: list[Any]


class Wire:
    """Sends and receives frames over a connected socket, blocking or not, as the socket is.

    Args:
        connection: Plain or TLS; belongs to the wire from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._unsent: deque[memoryview] = deque()
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._begin = 0
        self._end = 0
        self._parts: list[bytearray] | None = None
        self._part = 0
        self._filled = 0
        self._number = 0

    def fileno(self) -> int:
        """The socket's descriptor, for selectors; -1 once closed."""
        return self._socket.fileno()

    def readable(self) -> bool:
        """Whether something has come, or the connection has ended; waits for neither."""
        return bool(self._poll.poll(0))

    @property
    def sending(self) -> bool:
        """Whether something waits to be sent: wait for the socket to be writable, and :meth:`flush`."""
        return bool(self._unsent)

    def send(self, frame: Frame) -> None:
        """Queue a frame and send what can be sent now; arrays in it must not change until all is sent.

        Raises:
            OSError: The connection is broken.
        """
        header = _FIXED.pack(_MAGIC, len(frame.buffers), frame.number, len(frame.head))
        if frame.buffers:
            header += struct.pack(f"<{len(frame.buffers)}Q", *(buffer.nbytes for buffer in frame.buffers))
        if len(frame.head) < _STAGE_BYTES:
            self._unsent.append(memoryview(header + frame.head))
        else:
            self._unsent.extend((memoryview(header), memoryview(frame.head)))
        if frame.buffers:
            self._unsent.extend(memoryview(buffer).cast("B") for buffer in frame.buffers)
        self.flush()

    def flush(self) -> bool:
        """Send what can be sent now; return whether that was all.

        Raises:
            OSError: The connection is broken.
        """
        unsent = self._unsent
        try:
            while unsent:
                sent = self._socket.send(unsent[0])
                if sent == len(unsent[0]):
                    unsent.popleft()
                else:
                    unsent[0] = unsent[0][sent:]
        except _NOT_NOW:
            return False
        return True

    def receive(self) -> Frame | None:
        """Return the next frame, or None if it has not arrived in full (never with a blocking socket).

        Raises:
            OSError: The connection is broken, or was closed by the peer.
            ValueError: What arrived is no frame.
        """
        frame = self._assemble() if self._end else None
        while frame is None:
            try:
                self._read()
            except _NOT_NOW:
                return None
            frame = self._assemble()
        return frame

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        self._unsent.clear()
        self._socket.close()

    def _read(self) -> None:
        """Read once: into the part that is being filled if it lacks much, else into the stage."""
        if self._parts is not None and len(self._parts[self._part]) - self._filled >= _STAGE_BYTES:
            count = self._socket.recv_into(memoryview(self._parts[self._part])[self._filled :])
            self._filled += count
        else:
            count = self._socket.recv_into(self._stage[self._end :])
            self._end += count
        if count == 0:
            raise ConnectionResetError("the peer closed the connection")

    def _assemble(self) -> Frame | None:
        """Move what is staged to where it belongs; return the frame once it is complete."""
        parts = self._parts
        if parts is None:
            if (frame := self._whole()) is not None:
                return frame
            parts = self._parts = self._announced()
            if parts is None:
                return None
        while True:
            part = parts[self._part]
            count = min(len(part) - self._filled, self._end - self._begin)
            if count:
                part[self._filled : self._filled + count] = self._stage[self._begin : self._begin + count]
                self._filled += count
                self._begin += count
            if self._begin == self._end:
                self._begin = self._end = 0
            if self._filled < len(part):
                return None
            self._part += 1
            self._filled = 0
            if self._part == len(parts):
                self._parts = None
                self._part = 0
                return Frame(self._number, parts[0], list(parts[1:]))

    def _whole(self) -> Frame | None:
        """Return a frame that came in one piece and has no buffers, as most do: the rest would be detours for it."""
        first = self._begin + _FIXED.size
        if first > self._end:
            return None
        magic, buffers, number, head = _FIXED.unpack_from(self._stage, self._begin)
        last = first + head
        if buffers or magic != _MAGIC or last > self._end:
            return None
        body = bytes(self._stage[first:last])
        self._begin, self._end = (0, 0) if last == self._end else (last, self._end)
        return Frame(number, body, [])

    def _announced(self) -> list[bytearray] | None:
        """Read the lengths at the head of a frame, if they are there, and make room for what they announce."""
        staged = self._end - self._begin
        if staged < _FIXED.size:
            self._make_room()
            return None
        magic, buffers, number, head = _FIXED.unpack_from(self._stage, self._begin)
        if magic != _MAGIC or buffers > BUFFERS_MAX:
            raise ValueError(f"what arrived is no frame: it begins with {magic!r}")
        if staged < _FIXED.size + 8 * buffers:
            self._make_room()
            return None
        sizes = [head, *struct.unpack_from(f"<{buffers}Q", self._stage, self._begin + _FIXED.size)]
        if sum(sizes) > _FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {sum(sizes)} bytes is announced; at most {_FRAME_BYTES_MAX} are accepted")
        self._begin += _FIXED.size + 8 * buffers
        self._number = number
        return [bytearray(size) for size in sizes]

    def _make_room(self) -> None:
        """Let the beginning of a header stand at the beginning of the stage."""
        if not self._begin:
            return
        staged = bytes(self._stage[self._begin : self._end])
        self._stage[: len(staged)] = staged
        self._begin, self._end = 0, len(staged)
