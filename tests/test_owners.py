"""Who holds a claim, and whether that process is still there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guerdon.asking._owners import is_gone, new_owner
from guerdon.asking.store import Claim, Key, Store

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")]

KEY = Key("question", "rater", 0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def another() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and the name it took."""
    program = "from guerdon.asking._owners import new_owner; print(new_owner(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_names_are_unlike_and_their_process_is_there() -> None:
    assert new_owner() != new_owner()
    assert not is_gone(new_owner())


def test_a_killed_process_is_gone_even_before_its_parent_takes_note(another: tuple[subprocess.Popen[str], str]) -> None:
    process, owner = another
    assert not is_gone(owner)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert is_gone(owner)
    process.wait()
    assert is_gone(owner)


def test_a_stopped_process_is_not_gone(another: tuple[subprocess.Popen[str], str]) -> None:
    process, owner = another
    process.send_signal(signal.SIGSTOP)
    assert not is_gone(owner)
    process.send_signal(signal.SIGCONT)


def test_another_process_with_the_same_number_is_not_mistaken_for_it() -> None:
    process, machine, start, unique = new_owner().split("/")
    assert is_gone(f"{process}/{machine}/{int(start) - 1}/{unique}")


@pytest.mark.parametrize("owner", ["", "batch/1", "me", "1/2/3", "x/y/z/w", "1/elsewhere/5/ab", "///", "99999999/other-machine/1/a"])
def test_of_others_nothing_is_known(owner: str) -> None:
    assert not is_gone(owner)


async def test_what_a_killed_process_held_can_be_claimed_at_once_and_stays_spent(
    another: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, owner = another
    with Store.open(tmp_path / "s.sqlite") as store:
        assert await store.claim(KEY, owner, 3600, run="r", dollars=0.5, ceiling=1.0) is Claim.GRANTED
        assert await store.claim(KEY, new_owner(), 3600, run="r", dollars=0.5, ceiling=1.0) is Claim.HELD
        process.kill()
        process.wait()
        assert await store.claim(KEY, new_owner(), 3600, run="r", dollars=0.5, ceiling=1.0) is Claim.GRANTED
        assert store.spent("r") == 1.0
        assert store.costs("r").lost == 1


async def test_dead_claims_are_ended_and_living_ones_are_not(another: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, owner = another
    with Store.open(tmp_path / "s.sqlite") as store:
        for name, holder, lease in (
            ("dead", owner, 3600.0),
            ("lapsed", "host", -1.0),
            ("mine", new_owner(), 3600.0),
            ("b", "batch/1", -1.0),
        ):
            assert await store.claim(Key(name, "rater", 0), holder, lease, run="r", dollars=0.1) is Claim.GRANTED
        assert await store.claim(Key("dead", "rater", 0), owner, 3600, run="other", dollars=0.1) is Claim.HELD
        process.kill()
        process.wait()
        await store.end_dead_claims("r")
        costs = store.costs("r")
        assert (costs.lost, costs.charged, costs.reserved) == (2, pytest.approx(0.2), pytest.approx(0.2))
