"""Names of those who hold claims, from which others on the same machine can tell that their process is gone.

A claim lapses when it is no longer renewed. When the process that held it was killed on this very machine, nobody needs to wait for that:
its process id, with the moment of its start, is no longer there. Linux only; elsewhere, and between machines and containers, claims lapse.
"""

from __future__ import annotations

import os
import uuid
from functools import cache
from pathlib import Path

_PROCESSES = Path("/proc")
_STATE, _START = 0, 19
"""Places in /proc/PID/stat after the name of the program (proc(5): fields 3 and 22)."""


def new_owner() -> str:
    """A name of its own for whoever holds claims in this process: PID/MACHINE/START/UNIQUE."""
    process = os.getpid()
    running = _running(process)
    return f"{process}/{_machine()}/{running[_START] if running else ''}/{uuid.uuid4().hex}"


def is_gone(owner: str) -> bool:
    """Whether the process that took this name is certainly gone; False where that cannot be known."""
    parts = owner.split("/")
    if len(parts) != 4 or not all(parts) or not parts[0].isdecimal() or parts[1] != _machine():
        return False
    running = _running(int(parts[0]))
    return running is None or running[_START] != parts[2] or running[_STATE] in ("Z", "X")


def _running(process: int) -> list[str] | None:
    """What is known of a process; None if there is none."""
    try:
        return (_PROCESSES / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


@cache
def _machine() -> str:
    """This machine since it was switched on, and this container; "" if that cannot be told."""
    try:
        boot = (_PROCESSES / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{(_PROCESSES / 'self/ns/pid').readlink().name.strip('pid:[]')}"
    except (OSError, UnicodeDecodeError):
        return ""
