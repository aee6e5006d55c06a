"""Servers with TLS, from the system's PostgreSQL: what `LocalCluster` runs is built without."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from tests.support import until
from ybsmart.testing.places import Places
from ybsmart.testing.server import PortTaken

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
OPENSSL = shutil.which("openssl")


def programs() -> Path | None:
    """Where the system's server programs are; None if it has none."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return Path(found[-1]).parent
    return Path(on_path).parent if on_path else None


@contextlib.contextmanager
def tls_servers() -> Iterator[TlsServers]:
    """Servers in a folder of their own.

    Not in one of pytest's, as another user may run them: each run of pytest that begins takes from
    all other users the right to enter the folder that all runs share."""
    with tempfile.TemporaryDirectory(prefix="ybsmart-tls-") as folder:
        yield TlsServers(Path(folder))


class TlsServers:
    """Three servers, started with certificates as a test wants them: see `tls_servers`.

    Their port is known once they run."""

    def __init__(self, folder: Path) -> None:
        bin_ = programs()
        assert bin_ is not None
        self._bin = bin_
        self._folder = folder
        self._user = (
            {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.geteuid() == 0 else {}
        )
        self._places = Places(HOSTS[0], None)
        self.port = self._free_port()
        folder.chmod(0o755)
        self._openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=test authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        )
        (folder / "password").write_text("sesame")
        self._data = [self._own(folder / f"data{i}") for i in range(3)]
        self._own(folder / "password")
        self._run(
            "initdb",
            "-D",
            str(self._data[0]),
            "-U",
            "yugabyte",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(folder / "password"),
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        for copy in self._data[1:]:
            shutil.copytree(self._data[0], copy, dirs_exist_ok=True)
            for path in [copy, *copy.rglob("*")]:
                self._own(path)

    @property
    def root(self) -> str:
        """The certificate of the authority that has signed the servers'."""
        return str(self._folder / "ca.crt")

    def certificate(self, name: str, san: str) -> str:
        """A certificate for the names in `san` ("DNS:…,IP:…"); returns its path without suffix."""
        stem = self._folder / name
        if not stem.with_suffix(".crt").exists():
            (self._folder / f"{name}.ext").write_text(f"subjectAltName={san}\n")
            self._openssl(
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.csr",
                "-subj",
                f"/CN={name}",
            )
            self._openssl(
                "x509",
                "-req",
                "-in",
                f"{name}.csr",
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-out",
                f"{name}.crt",
                "-extfile",
                f"{name}.ext",
            )
            key = stem.with_suffix(".key")
            key.chmod(0o600)
            self._own(key)
        return str(stem)

    @contextlib.contextmanager
    def running(self, certificates: Sequence[str]) -> Iterator[None]:
        """The three servers, each with a certificate, listing one another."""
        with contextlib.ExitStack() as stack:
            for tries_left in range(4, -1, -1):
                try:
                    self._start(certificates, stack)
                    break
                except PortTaken:
                    # The port was free only as long as none of these servers was running.
                    stack.close()
                    if not tries_left:
                        raise
                    self.port = self._free_port()
            for host in HOSTS:
                self._list_nodes(host)
            yield

    def _start(self, certificates: Sequence[str], stack: contextlib.ExitStack) -> None:
        """Return when all accept connections."""
        servers = []
        for data, host, stem in zip(self._data, HOSTS, certificates, strict=True):
            log = self._folder / f"{data.name}.log"
            with log.open("wb") as output:
                server = subprocess.Popen(
                    [
                        str(self._bin / "postgres"),
                        "-D",
                        str(data),
                        "-h",
                        host,
                        "-p",
                        str(self.port),
                        "-k",
                        "",
                        "-F",
                        "-c",
                        "ssl=on",
                        "-c",
                        f"ssl_cert_file={stem}.crt",
                        "-c",
                        f"ssl_key_file={stem}.key",
                    ],
                    stderr=output,
                    stdout=output,
                    cwd=str(data),
                    **self._user,  # type: ignore[call-overload]
                )
            stack.callback(server.wait)
            stack.callback(server.send_signal, signal.SIGINT)  # whatever sessions there are
            servers.append((server, data / "postmaster.pid", log))
        for server, file, log in servers:
            _wait_until_ready(server, file, log)

    def sessions(self, name: str) -> list[int]:
        """How many clients of that application are on each, and that all of them use TLS."""
        counts = []
        for host in HOSTS:
            with self._connect(host) as conn:
                row = conn.execute(
                    "SELECT count(*), coalesce(bool_and(ssl), true) FROM pg_stat_activity"
                    " JOIN pg_stat_ssl USING (pid) WHERE application_name = %s",
                    [name],
                ).fetchone()
                assert row is not None
                assert row[1]
                counts.append(row[0])
        return counts

    def _connect(self, host: str) -> psycopg.Connection:
        return psycopg.connect(
            host=host,
            port=self.port,
            user="yugabyte",
            password="sesame",
            dbname="postgres",
            autocommit=True,
            sslmode="require",
        )

    def _list_nodes(self, host: str) -> None:
        rows = ", ".join(
            f"('{h}', {self.port}::int8, 0::int8, 'primary', 'a', 'b', 'c', '', 'node-{h}', 'tls')"
            for h in HOSTS
        )
        with self._connect(host) as conn:
            conn.execute("DROP FUNCTION IF EXISTS yb_servers()")
            conn.execute(
                "CREATE FUNCTION yb_servers() RETURNS TABLE (host text, port int8,"
                " num_connections int8, node_type text, cloud text, region text, zone text,"
                " public_ip text, uuid text, universe_uuid text) LANGUAGE sql"
                f" AS $$VALUES {rows}$$"
            )

    def _free_port(self) -> int:
        """One that no cluster of another process takes, nor a connection that goes out."""
        return self._places.first(len(HOSTS))[0][1]

    def _own(self, path: Path) -> Path:
        if self._user:
            if not path.exists():
                path.mkdir()
            nobody = pwd.getpwnam("nobody")
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        return path

    def _run(self, program: str, *args: str) -> None:
        subprocess.run(
            [str(self._bin / program), *args],
            check=True,
            capture_output=True,
            cwd="/",
            **self._user,
        )  # type: ignore[call-overload]

    def _openssl(self, *args: str) -> None:
        subprocess.run([str(OPENSSL), *args], check=True, capture_output=True, cwd=self._folder)


def _wait_until_ready(server: subprocess.Popen[bytes], file: Path, log: Path) -> None:
    """Until the server itself says in its file that it accepts connections: whoever answers on its
    port may be another."""

    def is_ready() -> bool:
        try:
            lines = file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(server.pid) and lines[7].strip() == "ready"

    until(lambda: server.poll() is not None or is_ready(), limit=60.0)
    if server.returncode is not None:
        said = log.read_text()
        raise (PortTaken if "Address already in use" in said else AssertionError)(said)
