"""What holds for every test: no network beyond this machine, no keys, no user's data, one thread."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import postgresql

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

settings.register_profile("guerdon", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("guerdon")

_LOOPBACK = ("127.", "localhost", "::1")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys from the environment, a store and a data folder of the test's own."""
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_TOKEN")) or name.startswith("PG") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "no-passwords"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    monkeypatch.setenv("GUERDON_STORE", str(tmp_path / "replies.sqlite"))


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """Connections leave this machine by mistake only: refuse them loudly."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server, started by the first test that asks for it."""
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("NOT TESTED: there is no PostgreSQL server on this machine; install the Debian package 'postgresql'")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("NOT TESTED: there is no driver for PostgreSQL; install 'guerdon[postgresql]'")
    server = postgresql.Server(programs)
    yield server
    server.stop()


@pytest.fixture
def postgresql_url(postgresql_server: postgresql.Server) -> str:
    """The URL of a database without a store in it."""
    postgresql_server.execute("DROP SCHEMA IF EXISTS guerdon CASCADE", "store")
    return postgresql_server.url()
