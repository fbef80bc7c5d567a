"""Who holds a claim, and whether that process is still there."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guerdon.asking._ledger import LATE
from guerdon.asking._owners import Silence, is_gone, is_there, new_owner
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


# --- silence that nobody can be blamed for ---


class Machine:
    """A wall clock and a steady one."""

    def __init__(self) -> None:
        self.wall, self.steady = 1000.0, 50.0

    def passes(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds

    def silence(self) -> Silence:
        return Silence(lambda: self.wall, lambda: self.steady)


def test_a_machine_that_slept_excuses_silence_for_a_while() -> None:
    machine = Machine()
    silence = machine.silence()
    machine.passes(3600)
    assert silence.excused() == 0.0
    machine.wall += 3600  # asleep, or its clock was set forward
    assert silence.excused() == 3600
    machine.passes(10)
    assert silence.excused() == 3600
    machine.passes(11)
    assert silence.excused() == 0.0
    machine.wall -= 3600  # set back: claims lapse later, nobody needs an excuse
    assert silence.excused() == 0.0


def test_a_store_that_could_not_be_written_excuses_silence() -> None:
    machine = Machine()
    silence = machine.silence()
    assert silence.excused(waited=0.5) == 0.0
    assert silence.excused(waited=30.0) == 30.0
    machine.passes(25)
    assert silence.excused() == 0.0
    for _ in range(100):
        machine.passes(5)
        assert silence.excused(waited=5.0) == 5.0


async def test_after_the_machine_slept_nobody_takes_over_what_another_is_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        assert await store.claim(KEY, "another host", 12, run="r") is Claim.GRANTED
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + 3600)
        monkeypatch.setattr(store._silence, "_clock", time.time)
        assert await store.claim(KEY, "me", 12, run="r") is Claim.HELD
        await store.renew("another host", 12)
        monkeypatch.setattr(store._silence, "_until", float("-inf"))  # a while later
        assert await store.claim(KEY, "me", 12, run="r") is Claim.HELD


async def test_a_process_that_is_there_may_be_late(another: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, owner = another
    with Store.open(tmp_path / "s.sqlite") as store:
        assert await store.claim(KEY, owner, -1, run="r", dollars=0.1) is Claim.GRANTED
        assert await store.claim(KEY, "me", 12, run="r") is Claim.HELD
        await store.end_dead_claims("r")
        assert store.costs("r").lost == 0
        process.send_signal(signal.SIGSTOP)  # who is stopped may stay so for ever
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert await store.claim(KEY, "me", 12, run="r") is Claim.GRANTED
        process.send_signal(signal.SIGCONT)


async def test_a_process_that_is_late_for_long_is_not_waited_for(another: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    _process, owner = another
    with Store.open(tmp_path / "s.sqlite") as store:
        assert await store.claim(KEY, owner, -LATE - 1, run="r") is Claim.GRANTED
        assert await store.claim(KEY, "me", 12, run="r") is Claim.GRANTED


def test_what_cannot_be_read_is_not_gone(another: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    _process, owner = another

    assert is_there(owner)

    def too_many_open_files(*_arguments: object, **_options: object) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_text", too_many_open_files)
    assert not is_gone(owner)
    assert not is_there(owner)
    monkeypatch.undo()
    assert is_there(owner)  # which shows that the above was not for want of knowing the machine


def test_a_name_tells_nothing_about_the_machine() -> None:
    assert platform.node() not in new_owner()


# --- forks ---


FORK = """
import asyncio, os, sys, traceback
from guerdon.asking.loop import run_sync
from guerdon.asking.store import Key, Store
from guerdon.errors import StoreError

async def one():
    return 1

run_sync(one())
store = Store.open(sys.argv[1])
store.begin_run("r")
child = os.fork()
if child == 0:
    status = 1
    try:
        assert run_sync(one()) == 1
        for ask in (lambda: store.begin_run("s"), lambda: store.spent("r"), lambda: run_sync(store.find("q", "r", 0))):
            try:
                ask()
            except StoreError as error:
                assert "forked" in str(error)
            else:
                raise AssertionError
        store.close()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
store.begin_run("t")
assert [run.id for run in store.runs()] == ["r", "t"]
store.close()
"""


def test_a_fork_neither_waits_for_ever_nor_shares_a_store(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "s.sqlite")], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
