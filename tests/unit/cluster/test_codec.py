"""Frames and what stands in them: whole whatever the pieces they come in, and nothing but messages."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from typing import Any

import numpy as np
import pytest

from vecraft_cluster.codec import INLINE_BYTES, encode, pack, unpack
from vecraft_cluster.wire import Frame, Wire


def test_large_arrays_are_not_copied_into_the_message() -> None:
    array = np.zeros(INLINE_BYTES, dtype=np.uint8)
    frame = pack(1, array)
    assert len(frame.head) < 500
    assert np.shares_memory(np.frombuffer(frame.buffers[0], np.uint8), array)
    received = bytearray(frame.buffers[0])
    assert np.shares_memory(unpack(Frame(1, frame.head, [received])), np.frombuffer(received, np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4), np.float32),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.ones((200, 300))),
        np.array(3.5),
        np.array(["a", None], dtype=object),
        np.zeros(3, dtype=[("x", "f4"), ("y", "i8")]),
    ],
    ids=["empty", "big-endian", "strided", "fortran", "scalar", "objects", "records"],
)
def test_any_array_arrives_writable_and_equal(array: Any) -> None:
    for came in (unpack(pack(1, {"a": array}))["a"], pickle.loads(encode({"a": array}))["a"]):
        assert came.dtype == array.dtype and came.shape == array.shape and np.array_equal(came, array)
        assert came.flags.writeable


@pytest.mark.parametrize("step", [1, 7, 64, 16384])
def test_frames_arrive_in_pieces_of_any_size(step: int) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    wire = Wire(far)
    messages: list[Any] = ["a", np.arange(40_000, dtype=np.int32), {"b": 2}]
    sender = Wire(near)

    def send_all() -> None:
        for number, message in enumerate(messages):
            sender.send(pack(number, message))

    pipe_near, pipe_far = socket.socketpair()
    sender = Wire(pipe_near)
    thread = threading.Thread(target=send_all)
    thread.start()
    came: list[Any] = []
    while len(came) < len(messages):
        near.sendall(pipe_far.recv(step))
        while (frame := wire.receive()) is not None:
            assert frame.number == len(came)
            came.append(unpack(frame))
    thread.join()
    assert came[0] == "a" and np.array_equal(came[1], messages[1]) and came[2] == {"b": 2}
    for each in (near, far, pipe_near, pipe_far):
        each.close()


def test_a_message_cannot_name_what_no_message_is_made_of() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("false",)

    for evil in (Evil(), threading.Thread, RuntimeError("no error of ours"), os.path.join):
        head = pickle.dumps(evil, protocol=5) if not isinstance(evil, Evil) else pickle.dumps(Evil.__reduce__(evil)[0])
        with pytest.raises(ValueError, match="which no message is made of"):
            unpack(Frame(1, head, []))
    for name in ("sys.modules", "messages.np.ctypeslib", "Any", "CHOOSE_SNAPSHOT"):
        head = b"\x80\x05\x8c\x1bvecraft_data_model.messages\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        with pytest.raises(ValueError):
            unpack(Frame(1, head, []))
    for damaged in (b"", b"\x80\x05", pickle.dumps("text")[:-3], os.urandom(50)):
        with pytest.raises(ValueError):
            unpack(Frame(1, damaged, []))
