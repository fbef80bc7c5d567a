"""A server that misbehaves in every way by plan: no label is wrong, and every failure is recorded under its right cause."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest

from guerdon.asking.loop import run_sync
from guerdon.asking.scheduler import ask
from guerdon.asking.store import Store
from guerdon.methods.rg_vlm import RgVlm
from guerdon.providers._settings import ChatConfig
from guerdon.recipes import raters
from guerdon.records import Label
from guerdon.samples import select
from tests.memory import MemoryDataset, MemoryEpisode
from tests.rater_server import CAUSES, CONTENT, FINAL, TRANSPORT, scores_of
from tests.test_crash import Server, serving

WINDOW = 4


class Time:
    """Pauses that pass at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def labelled(server: Server, episodes: int, path: Path) -> list[Label]:
    dataset = MemoryDataset([MemoryEpisode(WINDOW, f"find ball {number}") for number in range(episodes)])
    provider = raters.build(server.rater, config=ChatConfig(timeout=1.0))
    method, time, labels = RgVlm(), Time(), list[Label]()

    async def listen(store: Store) -> None:
        conversations = ask(
            select(dataset), method, [provider], store, run="faults", concurrency=32, sleep=time.sleep, clock=time.clock
        )  # fmt: skip
        async with aclosing(conversations):
            async for transcript in conversations:
                labels.extend(method.read(transcript))
        await provider.close()

    with Store.open(path) as store:
        run_sync(listen(store))
    return labels


def attempts(path: Path) -> dict[tuple[str, str], list[str | None]]:
    """(instruction, turn) -> cause of each attempt, None for a reply."""
    found: dict[tuple[str, str], list[str | None]] = {}
    connection = sqlite3.connect(path)
    for record, cause in connection.execute("SELECT record, cause FROM attempt JOIN request USING (question) ORDER BY id"):
        request = json.loads(record)
        found.setdefault((request["evidence"]["instruction"], request["purpose"]), []).append(cause)
    connection.close()
    return found


def check(tmp_path: Path, episodes: int, *, at_least: int) -> None:
    with serving("--faults", "0.4", "--seed", "3") as server:
        labels = labelled(server, episodes, tmp_path / "replies.sqlite")
        log = server.log()["log"]
    faults = Counter(fault for _, _, fault in log)
    print(f"{len(log)} requests; {dict(sorted(faults.items()))}; {dict(Counter(label.state for label in labels))}")
    assert len(log) >= at_least
    assert set(faults) == {"", *TRANSPORT, *FINAL, *CONTENT}, "a fault never came up"
    expected: dict[tuple[str, str], list[str | None]] = {}
    for instruction, turn, fault in log:
        expected.setdefault((instruction, turn), []).append(CAUSES.get(fault))
    assert attempts(tmp_path / "replies.sqlite") == expected
    assert len(labels) == WINDOW * episodes
    wrong = [label for label in labels if label.value is not None and label.value != scores_of(label.instruction, WINDOW)[label.start]]
    assert wrong == []
    by_window = {label.instruction: label for label in labels}
    for instruction, label in by_window.items():
        last = [(turn, fault) for said, turn, fault in log if said == instruction][-1]
        assert label.state == state_after(*last), (instruction, last)


def state_after(turn: str, fault: str) -> str:
    """What a window's labels are, by how the last request about it was treated."""
    if fault in FINAL:
        return "refused"
    if fault in TRANSPORT:
        return "failed"
    spoilt = fault in CONTENT and fault != "lone surrogate"
    return "unreadable" if spoilt else "labelled"


def test_every_failure_has_its_right_cause_and_no_label_is_wrong(tmp_path: Path) -> None:
    check(tmp_path, 250, at_least=600)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_over_ten_thousand_requests(tmp_path: Path) -> None:
    check(tmp_path, 4200, at_least=10_000)
