"""Stand-ins for servers, where a real one cannot be made to misbehave as a test needs it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket], None]


class Listener:
    """A server on a loopback address; every connection gets the same behaviour."""

    def __init__(self, behaviour: Behaviour, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_server((address, 0))
        self.host, self.port = self.socket.getsockname()
        self.accepted = 0
        self._behaviour = behaviour
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.accepted += 1
            self._held.append(client)
            threading.Thread(target=self._behave, args=(client,), daemon=True).start()

    def _behave(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._behaviour(client)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join()
        for client in self._held:
            client.close()


@contextlib.contextmanager
def listening(behaviour: Behaviour) -> Iterator[Listener]:
    listener = Listener(behaviour)
    try:
        yield listener
    finally:
        listener.close()


def silent(client: socket.socket) -> None:
    """Take the connection and say nothing, as a server that is stopped does."""


def hangs_up(client: socket.socket) -> None:
    _startup(client)
    client.close()


def refuses(sqlstate: str, message: str, severity: str = "FATAL") -> Behaviour:
    """Answer the start-up with an error, in any language."""

    def behave(client: socket.socket) -> None:
        _startup(client)
        fields = [("S", severity), ("V", "FATAL"), ("C", sqlstate), ("M", message)]
        fields += [("F", "auth.c"), ("L", "317"), ("R", "auth_failed")]
        body = b"".join(k.encode() + v.encode() + b"\0" for k, v in fields) + b"\0"
        client.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)
        client.shutdown(socket.SHUT_WR)

    return behave


def _startup(client: socket.socket) -> None:
    """Read a start-up packet; no to TLS and GSSAPI."""
    while True:
        length, code = struct.unpack("!II", _exactly(client, 8))
        _exactly(client, length - 8)
        if code == 196608 or code >> 16 == 3:
            return
        client.sendall(b"N")


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


class Forwarder(Listener):
    """Passes everything on to a real server, as a port mapping does."""

    def __init__(self, host: str, port: int, address: str = "127.0.0.1") -> None:
        self._to = (host, port)
        super().__init__(self._forward, address)

    def _forward(self, client: socket.socket) -> None:
        with socket.create_connection(self._to) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
