"""Labelling that is killed at random moments: no reply is paid for twice, none is lost, and the labels are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guerdon.asking.store import Store
from guerdon.labels import LabelSet
from guerdon.records import Annotation
from tests.data.episodes import episode, write

HERE = Path(__file__).parent
CONCURRENCY = 6
LATENCY = 0.02
LEASE = 30.0
WINDOWS, TURNS = 2, 2
"""Of an episode, and of the conversation about a window."""


class Server:
    """A rater in a process of its own."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, str(HERE / "rater_server.py"), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def rater(self) -> str:
        return f"openai-compatible:served@http://127.0.0.1:{self.port}/v1"

    def log(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/log") as reply:
            return json.loads(reply.read())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    server = Server(*options)
    try:
        yield server
    finally:
        server.stop()


class Children:
    """Labelling processes."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "label_children.py")]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def start(self, **arguments: Any) -> int:
        return int(self._say(f"start {json.dumps({'lease': LEASE, 'arguments': arguments})}"))

    def wait(self, child: int) -> int:
        return int(self._say(f"wait {child}"))

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


@pytest.fixture
def children() -> Iterator[Children]:
    starter = Children()
    yield starter
    starter.stop()


def dataset(path: Path, episodes: int) -> Path:
    """Episodes of two windows, each with an instruction of its own."""
    recorded = [episode(12, number, annotations=(Annotation(f"find ball {number}"),)) for number in range(episodes)]
    return write(path, recorded)


def settings(folder: Path, data: Path, server: Server, run: str = "run") -> dict[str, Any]:
    return {
        "dataset": str(data), "run": str(folder / run), "vlm": [server.rater], "store": str(folder / "replies.sqlite"),
        "concurrency": CONCURRENCY, "quiet": True,
    }  # fmt: skip


def values(folder: Path, run: str = "run") -> list[tuple[int, int, float | None, str]]:
    found = LabelSet.read(folder / run / "labels" / "rg_vlm.parquet").labels
    return [(label.episode, label.start, label.value, label.rationale) for label in found]


def undisturbed(folder: Path, data: Path, children: Children) -> list[tuple[int, int, float | None, str]]:
    with serving() as server:
        assert children.wait(children.start(**settings(folder, data, server))) == 0
    return values(folder)


def wait_for(server: Server, more: int, child: int) -> None:
    """Until so many more requests have arrived, or the child has ended."""
    before = server.log()["received"]
    while server.log()["received"] < before + more and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        time.sleep(0.005)


def kill_and_go_on(tmp_path: Path, children: Children, *, episodes: int, kills: int) -> None:
    data = dataset(tmp_path / "data", episodes)
    (tmp_path / "quiet").mkdir()
    expected = undisturbed(tmp_path / "quiet", data, children)
    needed = TURNS * WINDOWS * episodes
    moments = random.Random(7)
    killed = 0
    with serving("--latency", str(LATENCY)) as server:
        arguments = settings(tmp_path, data, server)
        for _ in range(kills):
            child = children.start(**arguments)
            # Most moments lie where requests are under way; some before the first one of a run.
            wait_for(server, moments.randint(0, needed // kills), child)
            time.sleep(moments.uniform(0.0, 2 * LATENCY))
            os.kill(child, signal.SIGKILL)
            killed += children.wait(child) == -signal.SIGKILL
        assert children.wait(children.start(**arguments)) == 0
        arrived = server.log()["log"]
    print(f"{killed} kills: {len(arrived)} requests arrived, {needed} needed")
    assert killed > kills / 2, "most runs ended before they were killed: nothing was tested"
    assert len({(instruction, turn) for instruction, turn, _ in arrived}) == TURNS * episodes
    assert len(arrived) <= needed + killed * CONCURRENCY
    assert values(tmp_path) == expected


def test_runs_killed_ten_times_pay_for_no_reply_twice(tmp_path: Path, children: Children) -> None:
    kill_and_go_on(tmp_path, children, episodes=60, kills=10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_killed_two_hundred_times_pay_for_no_reply_twice(tmp_path: Path, children: Children) -> None:
    kill_and_go_on(tmp_path, children, episodes=600, kills=200)


def test_two_processes_share_one_job(tmp_path: Path, children: Children) -> None:
    data = dataset(tmp_path / "data", 30)
    (tmp_path / "quiet").mkdir()
    expected = undisturbed(tmp_path / "quiet", data, children)
    with serving("--latency", str(LATENCY)) as server:
        both = [children.start(**settings(tmp_path, data, server)) for _ in range(2)]
        assert [children.wait(child) for child in both] == [0, 0]
        assert server.log()["received"] == TURNS * WINDOWS * 30
    assert values(tmp_path) == expected
    with Store.open(tmp_path / "replies.sqlite") as store:
        assert [info.costs.requests for info in store.runs()] == [TURNS * WINDOWS * 30]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_what_is_in_flight(tmp_path: Path, children: Children, number: signal.Signals) -> None:
    data = dataset(tmp_path / "data", 40)
    with serving("--latency", "0.1") as server:
        arguments = settings(tmp_path, data, server)
        child = children.start(**arguments)
        wait_for(server, 10, child)
        os.kill(child, number)
        assert children.wait(child) == 130
        before = server.log()["received"]
        assert 0 < before < TURNS * WINDOWS * 40
        assert children.wait(children.start(**arguments)) == 0
        assert server.log()["received"] == TURNS * WINDOWS * 40  # nothing that was in flight is asked again
