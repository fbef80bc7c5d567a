"""Servers that misbehave in every way by plan: no label is wrong, and every failure is recorded under its right cause."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guerdon.asking.loop import run_sync
from guerdon.asking.scheduler import ask
from guerdon.asking.store import ACCOUNT_CAUSES, Store
from guerdon.interfaces import Provider
from guerdon.methods.rg_vlm import RgVlm
from guerdon.providers._settings import ChatConfig
from guerdon.recipes import raters
from guerdon.records import Label
from guerdon.samples import select
from tests.memory import MemoryDataset, MemoryEpisode
from tests.rater_server import CAUSES, CONTENT, FINAL, TRANSPORT, content, plan, question_of, scores_of
from tests.test_crash import serving
from tests.vendors import VENDORS, Answer, Call, Vendor, serve, texts

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


def labelled(provider: Provider, episodes: int, path: Path) -> list[Label]:
    dataset = MemoryDataset([MemoryEpisode(WINDOW, f"find ball {number}") for number in range(episodes)])
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


@dataclass(frozen=True)
class Planned:
    """What is to become of a request that a fault befalls."""

    cause: str | None
    """None if there is a reply, whatever is in it."""
    state: str
    """What the labels of its window are if this was the last request about it."""


SERVED = {fault: Planned(CAUSES[fault], "refused" if fault in FINAL else "failed") for fault in (*TRANSPORT, *FINAL)}
SPOILT = {fault: Planned(None, "labelled" if fault == "lone surrogate" else "unreadable") for fault in CONTENT}
NONE = {"": Planned(None, "labelled")}

Log = list[tuple[str, str, str]]
"""(instruction, turn, fault) of each request in the order of arrival."""


def check(path: Path, log: Log, labels: Sequence[Label], episodes: int, planned: Mapping[str, Planned]) -> None:
    """No label is wrong, every window has the state that its last request led to, and every attempt is kept under its cause."""
    expected: dict[tuple[str, str], list[str | None]] = {}
    for instruction, turn, fault in log:
        expected.setdefault((instruction, turn), []).append(planned[fault].cause)
    assert attempts(path) == expected
    assert len(labels) == WINDOW * episodes
    wrong = [label for label in labels if label.value is not None and label.value != scores_of(label.instruction, WINDOW)[label.start]]
    assert wrong == []
    last = {instruction: fault for instruction, _turn, fault in log}
    assert {label.instruction: label.state for label in labels} == {said: planned[fault].state for said, fault in last.items()}


def report(log: Log, labels: Sequence[Label]) -> None:
    faults = Counter(fault for _, _, fault in log)
    print(f"{len(log)} requests; {dict(sorted(faults.items()))}; {dict(Counter(label.state for label in labels))}")


# --- a server of one's own ---


def check_served(tmp_path: Path, episodes: int, *, at_least: int) -> None:
    with serving("--faults", "0.4", "--seed", "3") as server:
        labels = labelled(raters.build(server.rater, config=ChatConfig(timeout=1.0)), episodes, tmp_path / "replies.sqlite")
        log = [(instruction, turn, fault) for instruction, turn, fault in server.log()["log"]]
    report(log, labels)
    assert len(log) >= at_least
    planned = NONE | SERVED | SPOILT
    assert {fault for _, _, fault in log} == planned.keys(), "a fault never came up"
    check(tmp_path / "replies.sqlite", log, labels, episodes, planned)


def test_every_failure_has_its_right_cause_and_no_label_is_wrong(tmp_path: Path) -> None:
    check_served(tmp_path, 250, at_least=600)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_over_ten_thousand_requests(tmp_path: Path) -> None:
    check_served(tmp_path, 4200, at_least=10_000)


# --- vendors ---

SECONDS = 3.0
"""The time limit of a request: far more than an answer takes, far less than a slow one."""


class Misbehaving:
    """Decides what a vendor's server answers."""

    def __init__(self, vendor: Vendor, *, seed: int, rate: float) -> None:
        self.log: Log = []
        self._vendor, self._seed, self._rate = vendor, seed, rate
        # What lies with the account stops a run at once; its causes are checked one by one elsewhere.
        self.faults = {name: fault for name, fault in vendor.faults.items() if fault.cause not in ACCOUNT_CAUSES}
        self._arrived: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def planned(self) -> dict[str, Planned]:
        failures = {
            name: Planned(fault.cause, "refused" if fault.cause in ("blocked", "refusal") else "failed")
            for name, fault in self.faults.items()
        }
        return NONE | SPOILT | failures

    def __call__(self, call: Call) -> Answer:
        turns = call.body.get("messages") or call.body.get("input") or call.body["contents"]
        said = "\n".join(text for turn in turns if turn["role"] == "user" for text in texts(turn))
        instruction, turn, count = question_of(said, sum(turn["role"] in ("assistant", "model") for turn in turns))
        kinds = (*self.faults, *(() if turn == "analyse" else CONTENT))
        with self._lock:
            self._arrived[instruction, turn] += 1
            fault = plan(self._seed, self._rate, f"{instruction}/{turn}", self._arrived[instruction, turn], kinds)
            self.log.append((instruction, turn, fault))
        if fault not in self.faults:
            return self._vendor.answer(content(fault, turn, scores_of(instruction, count)))
        answer = self.faults[fault].answer
        return replace(answer, delay=2 * SECONDS) if answer.delay else answer


def check_vendor(name: str, path: Path, episodes: int, monkeypatch: pytest.MonkeyPatch, *, at_least: int) -> Misbehaving:
    decide = Misbehaving(VENDORS[name], seed=5, rate=0.4)
    with serve(keep=False) as server:
        server.decide = decide
        labels = labelled(VENDORS[name].provider(server, monkeypatch, ChatConfig(timeout=SECONDS)), episodes, path)
    report(decide.log, labels)
    assert len(decide.log) >= at_least
    check(path, decide.log, labels, episodes, decide.planned)
    return decide


@pytest.mark.parametrize("name", ["anthropic", "google", "openai"])
def test_vendors_failures_have_their_right_causes_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_vendor(name, tmp_path / "replies.sqlite", 30, monkeypatch, at_least=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["anthropic", "google", "openai"])
def test_the_same_over_a_thousand_requests_to_each_vendor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide = check_vendor(name, tmp_path / "replies.sqlite", 520, monkeypatch, at_least=1000)
    assert {fault for _, _, fault in decide.log} == decide.planned.keys(), "a fault never came up"
