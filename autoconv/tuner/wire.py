"""What the tuner and its worker say to each other: JSON objects behind their length, over a local socket.

Never pickle: whoever writes to this socket may have lost its mind. A message may carry file descriptors.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["IDLE_S", "Channel", "Garbled", "Message"]

Message: TypeAlias = Mapping[str, Any]

_LENGTH = struct.Struct("!I")
IDLE_S = 120.0  # a worker that nobody needed for so long goes; starting another takes a fraction of a second
LONGEST = 1 << 22  # bytes; an environment may take some hundred thousand, rubbish reads as more
PATIENCE_S = 5.0  # for the rest of a message that has begun
MOST_DESCRIPTORS = 3  # with one message


class Garbled(Exception):
    """What came is no message."""


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.settimeout(PATIENCE_S)
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._end.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message`. Raises `OSError` when nobody is there any more."""
        body = json.dumps(message, separators=(",", ":")).encode()
        socket.send_fds(self._end, [_LENGTH.pack(len(body))], descriptors)
        self._end.sendall(body)

    def wait(self, timeout_s: float) -> bool:
        """Whether something, if only the end, comes within `timeout_s` seconds."""
        return bool(self._poll.poll(1e3 * timeout_s))

    def receive(self) -> tuple[Message, Sequence[int]] | None:
        """The next message and its descriptors; None at the end. Raises `Garbled`. Call it when `wait` says so."""
        try:
            head, descriptors, _, _ = socket.recv_fds(self._end, _LENGTH.size, MOST_DESCRIPTORS)
            if not head:
                return None
            (length,) = _LENGTH.unpack(head + self._exactly(_LENGTH.size - len(head)))
            if length > LONGEST:
                raise Garbled(f"a message of {length} bytes")
            message = json.loads(self._exactly(length))
        except ConnectionError:
            return None
        except (OSError, ValueError) as error:
            raise Garbled(str(error)) from error
        if not isinstance(message, dict):
            raise Garbled(f"no object: {message!r}")
        return message, descriptors

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._end.recv(size - len(parts))
            if not part:
                raise Garbled("a message without an end")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Hang up."""
        self._end.close()
