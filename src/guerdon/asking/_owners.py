"""Names of those who hold claims, from which others on the same machine can tell that their process is gone.

A claim lapses when it is no longer renewed. When the process that held it was killed on this very machine, nobody needs to wait for that:
its process id, with the moment of its start, is no longer there. Linux only; elsewhere, and between machines and containers, claims lapse.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

_PROCESSES = Path("/proc")
_STATE, _START = 0, 19
"""Places in /proc/PID/stat after the name of the program (proc(5): fields 3 and 22)."""
_NOTICED = 2.0
"""Seconds of being held up that matter to claims, which are renewed every few seconds."""
_EXCUSED = 20.0
"""Seconds within which everybody who is alive has renewed its claims, also one that waits to connect to a database again."""
_DEAD, _STOPPED = frozenset("ZX"), frozenset("Tt")


def new_owner() -> str:
    """A name of its own for whoever holds claims in this process: PID/MACHINE/START/UNIQUE."""
    process = os.getpid()
    running = _running(process)
    return f"{process}/{_machine()}/{running[_START] if running else ''}/{uuid.uuid4().hex}"


def is_gone(owner: str) -> bool:
    """Whether the process that took this name is certainly gone; False where that cannot be known."""
    return _is_running(owner) is False


def is_there(owner: str) -> bool:
    """Whether the process that took this name is certainly still there and not stopped; False where that cannot be known."""
    return _is_running(owner) is True


def _is_running(owner: str) -> bool | None:
    """Whether the owner's process runs; None if that cannot be known, or if it is stopped."""
    parts = owner.split("/")
    if len(parts) != 4 or not all(parts) or not parts[0].isdecimal() or parts[1] != _machine():
        return None
    process = int(parts[0])
    running = _running(process)
    if running is None:
        return None if _exists(process) else False
    if running[_START] != parts[2] or running[_STATE] in _DEAD:
        return False
    return None if running[_STATE] in _STOPPED else True


class Silence:
    """How long nobody can be blamed for silence: this machine slept, its clock was set forward, or the store could not be written.

    Others may have been held up by the same. Who held a claim before gets a while to say that it is alive.
    """

    def __init__(self, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._steady = clock, steady
        self._ahead = clock() - steady()
        self._seconds, self._until = 0.0, float("-inf")

    def excused(self, *, waited: float = 0.0) -> float:
        """Seconds by which claims may be overdue now. `waited`: how long a write that is carried out now had to wait for the store."""
        steady = self._steady()
        ahead = self._clock() - steady
        held_up = max(ahead - self._ahead, 0.0) + waited
        self._ahead = ahead
        if steady >= self._until:
            self._seconds = 0.0
        if held_up > _NOTICED:
            # The longest of several, not their sum: where every write waits, what is never renewed must lapse all the same.
            self._seconds, self._until = max(self._seconds, held_up), steady + _EXCUSED
        return self._seconds


def _running(process: int) -> list[str] | None:
    """What is known of a process; None if nothing is."""
    try:
        fields = (_PROCESSES / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _START else None


def _exists(process: int) -> bool:
    """Whether there may be such a process. That nothing can be read of it proves nothing: /proc may hide the processes of other users, and
    this process may have too many files open."""
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@cache
def _machine() -> str:
    """This machine since it was switched on, and this container; "" if that cannot be told. Nothing can be read from it."""
    try:
        boot = (_PROCESSES / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        processes = (_PROCESSES / "self/ns/pid").readlink().name
    except (OSError, UnicodeDecodeError):
        return ""
    # With the name, because machines that were restored from one snapshot are alike in everything else.
    return hashlib.sha256(f"{boot} {processes} {platform.node()}".encode()).hexdigest()[:32]
