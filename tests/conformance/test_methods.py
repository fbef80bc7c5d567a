"""What every method must do, whichever exist, in every form that its settings give it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import discover
from guerdon.interfaces import Kind, Method
from guerdon.records import STATES_WITH_VALUE, Exchange, Failure, Label, Reply, Request, Sample, Transcript
from guerdon.samples import Config, select
from tests.memory import MemoryDataset, MemoryEpisode

PLAIN = MemoryDataset([MemoryEpisode(10)])
PRIVILEGED = MemoryDataset([MemoryEpisode(10, rewards=range(10), contribution=[1, -1] * 5, metadata={"seed": 4})])
TILE = 16
"""Small pictures make the battery fast."""


def forms() -> Iterator[tuple[str, str]]:
    """Name of each method, with each kind of item that it may be about ("" for a method that knows one kind only)."""
    for name in discover.names("methods"):
        config = getattr(discover.load("methods", name), "Config", None)
        items = get_args(get_type_hints(config)["item"]) if config and "item" in {field.name for field in fields(config)} else ("",)
        yield from ((name, item) for item in items)


FORMS = list(forms())


def make(name: str, item: str) -> Method:
    made = discover.load("methods", name)
    if not hasattr(made, "Config"):
        plain: Method = made()
        return plain
    known = {field.name for field in fields(made.Config)}
    chosen = {"item": item} if item else {}
    method: Method = made(made.Config(**chosen, **({"tile": TILE} if "tile" in known else {})))
    return method


@pytest.fixture(params=FORMS, ids=[f"{name}-{item}".strip("-") for name, item in FORMS])
def method(request: pytest.FixtureRequest) -> Method:
    return make(*request.param)


def samples_for(method: Method, dataset: MemoryDataset) -> list[Sample]:
    return list(select(dataset, Config(kind=method.samples)))


def conversations(method: Method, dataset: MemoryDataset, reply: str) -> list[Transcript]:
    found = []
    for sample in samples_for(method, dataset):
        exchanges: list[Exchange] = []
        while (request := method.next(sample, exchanges)) is not None:
            assert len(exchanges) < 10, "a conversation must end"
            exchanges.append(Exchange(request, Reply(reply)))
        found.append(Transcript(sample, tuple(exchanges)))
    return found


def test_the_battery_covers_every_kind_of_sample() -> None:
    assert {make(*form).samples for form in FORMS} == set(get_args(Kind))


def test_requests_survive_a_json_round_trip(method: Method) -> None:
    for transcript in conversations(method, PLAIN, "words"):
        assert transcript.exchanges
        for exchange in transcript.exchanges:
            request = exchange.request
            again = Request.from_record(json.loads(json.dumps(request.to_record())), request.pictures)
            assert again == request
            assert again.question == request.question
            assert again.subject == transcript.sample.subject


@given(junk=st.text())
@pytest.mark.parametrize(("name", "item"), FORMS)
def test_junk_becomes_unreadable_never_a_number(name: str, item: str, junk: str) -> None:
    made = make(name, item)
    sample = samples_for(made, PLAIN)[0]
    exchanges: list[Exchange] = []
    while (request := made.next(sample, exchanges)) is not None:
        exchanges.append(Exchange(request, Reply(junk or " ")))
    for label in made.read(Transcript(sample, tuple(exchanges))):
        if label.state in STATES_WITH_VALUE:
            answer: Any = exchanges[-1].request.answer
            read = answer.read(junk)
            assert label.value in ([float(value) for value in read] if isinstance(read, tuple) else [read])
        else:
            assert label.state == "unreadable"


def test_privileged_data_changes_no_request(method: Method) -> None:
    def questions(dataset: MemoryDataset) -> list[Any]:
        return [e.request.question for t in conversations(method, dataset, "words") for e in t.exchanges]

    assert questions(PLAIN) == questions(PRIVILEGED)


def test_next_is_pure(method: Method) -> None:
    sample = samples_for(method, PLAIN)[0]
    first, second = method.next(sample, []), method.next(sample, [])
    assert first == second
    assert first is not None
    assert replace(first, subject=replace(first.subject, episode=99)).question == first.question


def test_a_stage_in_a_conversation_of_its_own_holds_no_pictures(method: Method) -> None:
    """Pictures are sent in the first stage; a later one either goes on from there, or works from words alone."""
    for transcript in conversations(method, PLAIN, "words"):
        first, *later = (exchange.request for exchange in transcript.exchanges)
        assert any(message.pictures for message in first.messages)
        for request in later:
            goes_on = request.messages[: len(first.messages)] == first.messages
            pictures = [picture for message in request.messages for picture in message.pictures]
            assert goes_on or not pictures
            assert request.evidence == first.evidence, "raters that look at no message still know what was seen"


def test_every_failure_gives_labels_without_a_value(method: Method) -> None:
    sample = samples_for(method, PLAIN)[0]
    request = method.next(sample, [])
    assert request is not None
    transcript = Transcript(sample, (Exchange(request, Failure("network", final=False)),))
    labels = method.read(transcript)
    assert labels
    assert all(label.value is None and label.cause == "network" for label in labels)
    assert method.next(sample, transcript.exchanges) is None


def test_what_nobody_was_asked_about_has_no_value(method: Method) -> None:
    for sample in samples_for(method, PLAIN):
        assert {(label.state, label.value) for label in method.read(Transcript(sample, ()))} == {("skipped", None)}


def _places(label: Label) -> tuple[int | None, ...]:
    return label.episode, label.start, label.stop, label.episode_b, label.start_b, label.stop_b


def test_labels_cover_the_sample_once(method: Method) -> None:
    for transcript in conversations(method, PLAIN, "words"):
        segment, labels = transcript.sample.segment, method.read(transcript)
        assert all((label.annotation, label.instruction) == (0, "go to the red ball") for label in labels)
        if labels[0].unit == "transition":
            covered = [step for label in labels for step in range(label.start, label.stop)]
            assert sorted(covered) == list(range(segment.start, segment.stop))
        else:
            subject = transcript.sample.subject
            second = subject.other[:3] if subject.other else (None, None, None)
            assert [_places(label) for label in labels] == [(subject.episode, subject.start, subject.stop, *second)]
            assert (labels[0].unit == "observation") == (segment.length == 0 and subject.other is None)
