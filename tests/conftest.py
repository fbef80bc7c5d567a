"""What holds for every test: no network beyond this machine, no keys, no user's data, one thread."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

settings.register_profile("guerdon", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("guerdon")

_LOOPBACK = ("127.", "localhost", "::1")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys from the environment, a store and a data folder of the test's own."""
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_TOKEN")) or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
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
