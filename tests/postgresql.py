"""A real PostgreSQL server for tests: made in a temporary folder, reached through a socket there and through the loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PASSWORD = "correct-horse-7"
"""Of the user `scram`, who must give one."""

_ACCESS = """
local all all trust
host all scram 127.0.0.1/32 scram-sha-256
"""


def programs() -> Path | None:
    """The folder with initdb and pg_ctl; None if there is no server on this machine."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists() and (folder / "initdb").exists()), None)


class Server:
    """A running server. `stop` ends it and removes its folder."""

    def __init__(self, folder_of_programs: Path) -> None:
        self._programs = folder_of_programs
        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # the path of a socket may have 107 bytes only
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            user = _somebody()
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.port = _free_port()
        try:
            self._call("initdb", "-D", "data", "-U", "owner", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            (self.folder / "data" / "pg_hba.conf").write_text(_ACCESS)
            self.start()
            self.execute(f"CREATE ROLE scram LOGIN PASSWORD '{PASSWORD}'")
            self.execute("CREATE DATABASE store")
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        durable = " ".join(f"-c {name}=off" for name in ("fsync", "full_page_writes"))  # the test's data may be lost
        options = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c shared_buffers=16MB {durable}"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def halt(self) -> None:
        """Cuts all connections and ends the server; `start` brings it back."""
        self._call("pg_ctl", "-D", "data", "-w", "-m", "fast", "stop")

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._call("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "store", *, user: str = "owner", more: str = "") -> str:
        """A URL that leads through the socket and needs no password."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}{more}"

    def url_with_password(self, password: str, database: str = "store") -> str:
        """A URL that leads through the loopback, for the user `scram`."""
        return f"postgresql://scram:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Carries out a statement as the owner of the server."""
        import psycopg

        where = {"host": str(self.folder), "port": self.port, "user": "owner", "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def _call(self, program: str, *arguments: str) -> None:
        # Not through a pipe: the server would inherit it and keep it open.
        with (self.folder.parent / f"{self.folder.name}.out").open("w+b") as output:
            command = [str(self._programs / program), *arguments]
            done = subprocess.run(command, cwd=self.folder, stdout=output, stderr=output, timeout=60, check=False, **self._user)
            output.seek(0)
            text = output.read().decode(errors="replace")
        Path(output.name).unlink()
        if done.returncode:
            raise RuntimeError(f"{program} failed: {text}")


def _somebody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
