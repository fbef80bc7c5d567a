"""What every method must do, whichever exist."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import discover
from guerdon.interfaces import Method
from guerdon.records import STATES_WITH_VALUE, Exchange, Failure, Reply, Request, Transcript
from guerdon.samples import Config, select
from tests.memory import MemoryDataset, MemoryEpisode

METHODS = discover.names("methods")
PLAIN = MemoryDataset([MemoryEpisode(10)])
PRIVILEGED = MemoryDataset([MemoryEpisode(10, rewards=range(10), contribution=[1, -1] * 5, metadata={"seed": 4})])


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    made: Method = discover.load("methods", request.param)()
    return made


def conversations(method: Method, dataset: MemoryDataset, reply: str) -> list[Transcript]:
    found = []
    for sample in select(dataset, Config()):
        exchanges: list[Exchange] = []
        while (request := method.next(sample, exchanges)) is not None:
            assert len(exchanges) < 10, "a conversation must end"
            exchanges.append(Exchange(request, Reply(reply)))
        found.append(Transcript(sample, tuple(exchanges)))
    return found


def test_requests_survive_a_json_round_trip(method: Method) -> None:
    for transcript in conversations(method, PLAIN, "words"):
        for exchange in transcript.exchanges:
            request = exchange.request
            again = Request.from_record(json.loads(json.dumps(request.to_record())), request.pictures)
            assert again == request
            assert again.question == request.question


@given(junk=st.text())
@pytest.mark.parametrize("name", METHODS)
def test_junk_becomes_unreadable_never_a_number(name: str, junk: str) -> None:
    method = discover.load("methods", name)()
    for transcript in conversations(method, PLAIN, junk or " "):
        for label in method.read(transcript):
            if label.state in STATES_WITH_VALUE:
                read = transcript.exchanges[-1].request.answer.read(junk)
                assert label.value in [float(value) for value in read]


def test_privileged_data_changes_no_request(method: Method) -> None:
    def questions(dataset: MemoryDataset) -> list[Any]:
        return [e.request.question for t in conversations(method, dataset, "words") for e in t.exchanges]

    assert questions(PLAIN) == questions(PRIVILEGED)


def test_next_is_pure(method: Method) -> None:
    sample = next(iter(select(PLAIN, Config())))
    first, second = method.next(sample, []), method.next(sample, [])
    assert first == second
    assert first is not None
    assert replace(first, subject=replace(first.subject, episode=99)).question == first.question


def test_every_failure_gives_labels_without_a_value(method: Method) -> None:
    sample = next(iter(select(PLAIN, Config())))
    request = method.next(sample, [])
    assert request is not None
    transcript = Transcript(sample, (Exchange(request, Failure("network", final=False)),))
    labels = method.read(transcript)
    assert labels
    assert all(label.value is None and label.cause == "network" for label in labels)
    assert method.next(sample, transcript.exchanges) is None


def test_labels_cover_the_sample_once(method: Method) -> None:
    for transcript in conversations(method, PLAIN, "words"):
        segment = transcript.sample.segment
        covered = [step for label in method.read(transcript) for step in range(label.start, label.stop)]
        assert sorted(covered) == list(range(segment.start, segment.stop))
