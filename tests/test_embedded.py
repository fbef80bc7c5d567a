"""The embedded rater: its words, what it answers to each method, and what it declines to judge."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as storage

import guerdon
import guerdon.cli
from guerdon.answers import AnswerSpec, Choice, Scores
from guerdon.answers import Preference as PreferenceAnswer
from guerdon.datasets.minari import write_minari
from guerdon.envs._babyai_words import CLAUSE_KINDS, JOINERS, WORDINGS, Clause, ClauseKind, Thing, Wording
from guerdon.envs._babyai_world import ALL_COLOURS
from guerdon.envs.babyai import ACTION_NAMES
from guerdon.errors import ProviderError, UsageError
from guerdon.frames import frame_picture
from guerdon.interfaces import Method
from guerdon.labels import LabelSet
from guerdon.methods.preference import Preference
from guerdon.methods.rating import CLASSES, Item, Rating
from guerdon.methods.rg_vlm import RgVlm
from guerdon.providers import _embedded_words as words
from guerdon.providers._embedded_evidence import Seen
from guerdon.providers._embedded_file import read, to_bytes
from guerdon.providers._embedded_network import EmbeddedNetwork, Looks
from guerdon.providers._embedded_prose import action_lines, changes, summary
from guerdon.providers._embedded_tiles import Scene, scenes_of
from guerdon.providers.embedded import EQUAL, Embedded, _answer
from guerdon.recipes import raters
from guerdon.recipes._embedded_data import LIBRARY
from guerdon.recipes._embedded_file import known_tiles
from guerdon.records import Evidence, Exchange, Failure, Message, Reply, Request, Sample, Subject, Transcript
from tests.conformance.test_providers import COUNT, WINDOW
from tests.embedded_weights import episodes, random_tensors, random_weights, sample

KINDS = ("ball", "box", "key", "door")
THINGS = [Thing(colour, kind) for colour, kind in itertools.product(ALL_COLOURS, KINDS)]


OBJECTS = [thing for thing in THINGS if thing.kind != "door"]
TARGETS = {
    "go to": THINGS,
    "pick up": OBJECTS,
    "open": [thing for thing in THINGS if thing.kind == "door"],
    "put next to": OBJECTS,
}


def clause(kind: ClauseKind, number: int, other: int = 0) -> Clause:
    """A clause about one of the things that it can be about, and, if it takes two, another one."""
    targets = TARGETS[kind]
    target, beside = targets[number % len(targets)], targets[(number + 1 + other % (len(targets) - 1)) % len(targets)]
    return Clause(kind, target, beside if kind == "put next to" else None)


# --- words ---


def test_the_vocabulary_is_that_of_the_world() -> None:
    templates = " ".join(template for templates in WORDINGS.values() for template in templates)
    learned = {*re.sub(r"\{\w+\}", "", templates).split(), *ALL_COLOURS, *KINDS}
    assert ("", *sorted(learned)) == words.WORDS
    assert (ALL_COLOURS, tuple(sorted(KINDS))) == (words.COLOURS, words.KINDS)
    assert not learned & {"then", "and", "after", "that"}


@pytest.mark.parametrize("kind", CLAUSE_KINDS)
def test_every_clause_is_understood_in_every_wording(kind: ClauseKind) -> None:
    for number in range(len(TARGETS[kind])):
        one = clause(kind, number)
        for template in range(len(WORDINGS[one.kind])):
            wording = Wording((template,), ())
            (phrase,) = wording.phrases([one])
            assert words.clauses(wording.sentence([one])) == (phrase,)
            assert tuple(words.WORDS[token] for token in words.tokens(phrase)) == tuple(phrase.split())
            assert words.asks(phrase) == kind
            assert words.named(phrase) == tuple(str(thing) for thing in (one.target, one.beside) if thing)


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """An instruction of one to six sub-tasks and the words of each."""
    drawn = draw(st.lists(st.builds(clause, st.sampled_from(CLAUSE_KINDS), *[st.integers(0, 500)] * 2), min_size=1, max_size=6))
    templates = tuple(draw(st.integers(0, len(WORDINGS[one.kind]) - 1)) for one in drawn)
    wording = Wording(templates, tuple(draw(st.integers(0, len(JOINERS) - 1)) for _ in drawn[1:]))
    return wording.sentence(drawn), wording.phrases(drawn)


@given(chains())
def test_chains_are_split_into_their_clauses(chain: tuple[str, tuple[str, ...]]) -> None:
    sentence, phrases = chain
    assert words.clauses(sentence) == phrases


@given(chains(), st.sampled_from(["  ", "\n", "\t "]))
def test_case_white_space_and_a_final_full_stop_do_not_count(chain: tuple[str, tuple[str, ...]], space: str) -> None:
    sentence, phrases = chain
    assert words.clauses(f"{space}{sentence.capitalize().replace(' ', space)}.{space}") == phrases


@pytest.mark.parametrize(
    "joiner", [" then ", ", then ", " and then ", ", and then ", " after that ", ", after that ", ", after that, ", " , THEN "]
)
def test_joiners_with_and_without_commas(joiner: str) -> None:
    assert words.clauses(f"go to the red ball{joiner}open the blue door") == ("go to the red ball", "open the blue door")


@pytest.mark.parametrize(
    ("instruction", "unknown"),
    [
        ("throw the red ball", ("throw",)),
        ("go to the cyan ball then throw the cyan key", ("cyan", "throw")),
        ("go to the red ball and pick up the green key", ("and",)),
        ("go to the red ball, pick up the green key", ("ball,",)),
        ("go to the red ball. Then open the blue door", ("ball.",)),
        ("go to the athenthen ball", ("athenthen",)),
        ("", ()),
        (" . ", ()),
        ("then go to the red ball", ()),
        ("go to the red ball then", ()),
        ("go to the red ball then then open the blue door", ()),
        ("go to the ball", ()),
        ("the red ball", ()),
        ("go to the red ball the green key", ()),
        ("open the red ball", ()),
        ("pick up the red door", ()),
        ("go to and pick up the red ball", ("and",)),
        ("walk to take the red ball", ()),
        ("put the red ball next to the red ball", ()),
        ("put the red ball next to the red door", ()),
        ("put the red ball next to the green key next to the blue box", ()),
    ],
)
def test_what_is_not_understood_is_said(instruction: str, unknown: tuple[str, ...]) -> None:
    with pytest.raises(words.NotUnderstood) as caught:
        words.clauses(instruction)
    assert caught.value.words == unknown
    assert all(word in str(caught.value) for word in unknown)
    assert str(caught.value)


def test_tokens_of_unknown_or_no_words_are_not_made_up() -> None:
    assert words.tokens("Go to") == (words.WORDS.index("go"), words.WORDS.index("to"))
    for wrong in ("throw it", ""):
        with pytest.raises(words.NotUnderstood):
            words.tokens(wrong)


# --- a rater that has learned nothing ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def rater(weights: Path) -> Iterator[Embedded]:
    made = Embedded.build(str(weights))
    yield made
    asyncio.run(made.close())


def ask(rater: Embedded, request: Request, *, repeat: int = 0) -> Reply | Failure:
    return asyncio.run(rater.ask(request, repeat=repeat))


def converse(rater: Embedded, method: Method, about: Sample) -> Transcript:
    """The whole conversation that a method has with the rater."""
    exchanges: tuple[Exchange, ...] = ()
    while (request := method.next(about, exchanges)) is not None:
        exchanges = (*exchanges, Exchange(request, ask(rater, request)))
    return Transcript(about, exchanges)


def reply_of(transcript: Transcript, turn: int = -1) -> str:
    outcome = transcript.exchanges[turn].outcome
    assert isinstance(outcome, Reply), outcome
    return outcome.text


def code_of(outcome: Reply | Failure) -> str:
    assert isinstance(outcome, Failure), outcome
    assert (outcome.cause, outcome.final, outcome.usage.dollars) == ("unsupported", True, 0.0)
    return outcome.code


def first_turn(about: Sample, method: Method | None = None) -> Request:
    request = (method or RgVlm()).next(about, ())
    assert request is not None
    return request


@pytest.mark.parametrize("level", ["small", "one-room", "two-rooms", "four-rooms"])
def test_every_action_of_a_window_gets_a_score(rater: Embedded, level: str) -> None:
    for episode in episodes(level):
        window = sample(episode, 0, 8)
        method = RgVlm()
        transcript = converse(rater, method, window)
        labels = method.read(transcript)
        assert [label.state for label in labels] == ["labelled"] * 8
        assert all(label.value is not None and 0 <= label.value <= 10 for label in labels)
        for label, action in zip(labels, window.actions, strict=True):
            assert label.rationale.startswith(f"{action} - ")
            assert label.rationale.endswith(("; serves", "; does not matter", "; hinders"))
        assert len(reply_of(transcript, 0).splitlines()) == 8
        probabilities = np.array(json.loads(reply_of(transcript))["probabilities"])
        assert probabilities.shape == (8, 3)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=2e-4)
        np.testing.assert_allclose(probabilities @ [0, 3, 10], [label.value for label in labels], atol=0.502)


@pytest.mark.parametrize("level", ["small", "four-rooms"])
def test_what_the_network_says_of_each_picture_and_action_is_what_is_answered(rater: Embedded, weights: Path, level: str) -> None:
    """Equal pictures are looked at once; here, every one is."""
    network = EmbeddedNetwork.from_tensors(storage.load(weights.read_bytes()))
    for episode in episodes(level):
        window = sample(episode, 0, 12)
        looks = network.look(window.frames()["full"], [words.tokens(phrase) for phrase in words.clauses(window.instruction)])
        judged = network.judge(looks, episode.actions[:12].tolist())
        scored, rated = (converse(rater, method, window) for method in (RgVlm(), Rating(Rating.Config(item="transition"))))
        np.testing.assert_allclose(json.loads(reply_of(scored))["probabilities"], judged.verdict, atol=1e-4)
        np.testing.assert_allclose(json.loads(reply_of(rated))["progress"], judged.progress[1:], atol=1e-4)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize(("item", "count"), [("picture", 1), ("transition", 8), ("segment", 1), ("episode", 1)])
def test_everything_that_can_be_rated_gets_a_class(rater: Embedded, item: Item, count: int, levels: int) -> None:
    method = Rating(Rating.Config(item=item, levels=levels))
    episode = max(episodes(), key=lambda each: len(each.actions))
    start, stop = {"picture": (3, 3), "transition": (2, 10), "segment": (2, 10), "episode": (0, None)}[item]
    assert len(episode.actions) > method.config.frames  # of the episode, not every observation is shown
    transcript = converse(rater, method, sample(episode, start, stop))
    labels = method.read(transcript)
    assert [label.state for label in labels] == ["labelled"] * count
    assert all(label.value in range(levels) for label in labels)
    assert "of the instruction is done" in reply_of(transcript, 0)
    assert all(label.rationale for label in labels)


@pytest.mark.parametrize(
    ("item", "one", "other"),
    [("picture", (3, 3), (9, 9)), ("segment", (0, 8), (9, 17)), ("segment", (0, 8), (2, 40)), ("segment", (0, 40), (3, 33))],
)
def test_two_are_compared(rater: Embedded, item: Literal["picture", "segment"], one: tuple[int, int], other: tuple[int, int]) -> None:
    method = Preference(Preference.Config(item=item))
    episode = max(episodes(), key=lambda each: len(each.actions))
    transcript = converse(rater, method, sample(episode, *one, other=sample(episode, *other)))
    (label,) = method.read(transcript)
    assert label.state == "labelled"
    first, second = json.loads(reply_of(transcript))["progress"]
    assert label.value == (0.5 if abs(first - second) < EQUAL else float(second > first))
    words = {0.0: "The first one serves", 0.5: "Neither of the two serves", 1.0: "The second one serves"}
    assert words[label.value] in reply_of(transcript, 0)


def test_each_of_a_pair_is_judged_by_its_own_pictures(rater: Embedded) -> None:
    """Also if they are not of the same length."""
    episode = max(episodes(), key=lambda each: len(each.actions))
    method = Preference(Preference.Config(item="segment"))
    alone = Rating(Rating.Config(item="segment"))
    for one, other in [((0, 8), (2, 40)), ((0, 40), (9, 13)), ((0, 40), (3, 33))]:
        pair = converse(rater, method, sample(episode, *one, other=sample(episode, *other)))
        singles = [converse(rater, alone, sample(episode, *each)) for each in (one, other)]
        assert json.loads(reply_of(pair))["progress"] == [json.loads(reply_of(each))["progress"][0] for each in singles]


def test_a_second_stage_is_not_taken_for_another_one(rater: Embedded) -> None:
    """It sees words only: of two pictures that differ, they must differ."""
    method = Rating()
    episode = episodes()[0]
    requests = [converse(rater, method, sample(episode, step, step)).exchanges[1].request for step in range(8)]
    pictures = {frame.id for request in requests for frame in request.evidence.frames}
    assert len({request.question for request in requests}) == len(pictures) > 4


def test_equal_questions_get_equal_answers_from_whoever_has_the_weights(rater: Embedded, weights: Path, tmp_path: Path) -> None:
    request = first_turn(sample(episodes()[1], 0, 8))
    copy = shutil.copy(weights, tmp_path / "copy.safetensors")
    again, other = Embedded.build(str(copy)), Embedded.build(str(random_weights(tmp_path, seed=1)))
    assert again.rater == rater.rater
    assert other.rater.key != rater.rater.key
    answers = [ask(each, request, repeat=repeat) for each in (rater, again) for repeat in range(2)]
    assert len({answer.text for answer in answers if isinstance(answer, Reply)}) == 1
    assert rater.quote(request).dollars == 0.0
    assert rater.remote == ""


def test_evidence_is_looked_at_once(rater: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    look = EmbeddedNetwork.look

    def counted(self: EmbeddedNetwork, pictures: npt.NDArray[np.uint8], clauses: Sequence[Sequence[int]]) -> Looks:
        looked.append(len(pictures))
        return look(self, pictures, clauses)

    monkeypatch.setattr(EmbeddedNetwork, "look", counted)
    window = sample(episodes()[0], 0, 8)
    converse(rater, RgVlm(), window)
    different = len({frame.tobytes() for frame in window.frames()["full"]})
    assert looked == [different]
    converse(rater, RgVlm(), sample(episodes()[0], 8, 16))
    assert len(looked) == 2
    monkeypatch.setattr("guerdon.providers.embedded._REMEMBERED", 1)
    for _ in range(2):
        converse(rater, Rating(), sample(episodes()[0], 1, 1))
        converse(rater, Rating(), sample(episodes()[0], 2, 2))
    assert len(looked) == 6


def test_conversations_do_not_wait_for_a_look(rater: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    look, going_on = EmbeddedNetwork.look, threading.Event()

    def waiting(self: EmbeddedNetwork, pictures: npt.NDArray[np.uint8], clauses: Sequence[Sequence[int]]) -> Looks:
        assert going_on.wait(60), "the loop stood still while a picture was looked at"
        return look(self, pictures, clauses)

    monkeypatch.setattr(EmbeddedNetwork, "look", waiting)
    requests = [first_turn(sample(episodes()[0], step, step), Rating()) for step in range(12)]

    async def at_once() -> list[Reply | Failure]:
        asked = [asyncio.ensure_future(rater.ask(request)) for request in requests]
        await asyncio.sleep(0)
        going_on.set()
        return await asyncio.gather(*asked)

    together = [outcome.text for outcome in asyncio.run(at_once()) if isinstance(outcome, Reply)]
    assert together == [outcome.text for request in requests if isinstance(outcome := ask(rater, request), Reply)]
    assert len(together) == 12


CORES = """
import asyncio, sys
from guerdon.methods.rg_vlm import RgVlm
from guerdon.providers._embedded_network import EmbeddedNetwork
from guerdon.providers.embedded import _LIBRARIES, Embedded
from tests.embedded_weights import episodes, sample

def cores():
    return [library["num_threads"] for library in _LIBRARIES.info() if library["user_api"] == "blas"]

look, seen = EmbeddedNetwork.look, [cores()]
EmbeddedNetwork.look = lambda *arguments: seen.append(cores()) or look(*arguments)
asyncio.run(Embedded.build(sys.argv[1]).ask(RgVlm().next(sample(episodes()[0], 0, 8), ())))
print(len(seen), seen[0] == cores(), seen[1] == [1] * len(seen[0]))
"""


def test_it_looks_on_one_core_and_gives_the_others_back(weights: Path) -> None:
    """In a process of its own, because the tests have one core only."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | {"OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CORES, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[1])
    assert (done.stdout, done.stderr) == ("2 True True\n", "")


# --- what it declines ---


def other_pictures(about: Sample, change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Sample:
    pictures = {view: np.stack([change(frame) for frame in frames]) for view, frames in about.frames().items()}
    return replace(about, frames=lambda: pictures)


def painted(frame: npt.NDArray[np.uint8], cell: tuple[int, int], like: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture in which one tile has become like another one; row -1 is the strip."""
    tiles = frame.reshape(frame.shape[0] // 8, 8, frame.shape[1] // 8, 8, 3).copy()
    tiles[cell[0], :, cell[1]] = tiles[like[0], :, like[1]]
    return tiles.reshape(frame.shape)


def place(frame: npt.NDArray[np.uint8], what: Callable[[str], bool], weights: Path) -> tuple[int, int]:
    """Where a tile is whose name fits."""
    names = read(weights, cure="").tiles._named(frame)
    return next((row, column) for row, line in enumerate(names) for column, name in enumerate(line) if what(name))


PICTURE_CHANGES: dict[str, Callable[[npt.NDArray[np.uint8], Path], npt.NDArray[np.uint8]]] = {
    "unknown_tile": lambda frame, _: frame ^ 1,
    "not_made_of_tiles": lambda frame, _: frame[:-1],
    "grid_of_unknown_size": lambda frame, _: frame[8:],
    "no_wall_around": lambda frame, weights: painted(frame, (0, 0), place(frame, "empty".__eq__, weights)),
    "hidden_cells": lambda frame, weights: painted(frame, place(frame, "empty".__eq__, weights), (-1, 3)),
    "not_one_agent": lambda frame, weights: painted(frame, place(frame, "empty".__eq__, weights), place(frame, is_agent, weights)),
    "a_thing_twice": lambda frame, weights: painted(frame, place(frame, "empty".__eq__, weights), place(frame, is_ball, weights)),
    "no_strip_below": lambda frame, weights: painted(frame, (-1, 2), place(frame, is_ball, weights)),
}


def is_agent(name: str) -> bool:
    return name.startswith("agent")


def is_ball(name: str) -> bool:
    return name.endswith("ball")


@pytest.mark.parametrize("code", PICTURE_CHANGES)
def test_pictures_that_it_was_not_trained_on_are_not_judged(rater: Embedded, weights: Path, code: str) -> None:
    window = sample(episodes()[0], 0, 2)
    strange = other_pictures(window, lambda frame: PICTURE_CHANGES[code](frame, weights))
    assert code_of(ask(rater, first_turn(strange))) == code


def test_without_an_agent_nothing_is_judged(rater: Embedded, weights: Path) -> None:
    def gone(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return painted(frame, place(frame, is_agent, weights), place(frame, "empty".__eq__, weights))

    assert code_of(ask(rater, first_turn(other_pictures(sample(episodes()[0], 0, 2), gone)))) == "not_one_agent"


def test_the_agents_own_view_and_several_cameras_are_not_judged(rater: Embedded) -> None:
    for method in (RgVlm(), Rating(), Rating(Rating.Config(item="episode")), Preference(Preference.Config(item="segment"))):
        assert not isinstance(method, type)
        for views in (("agent",), ("full", "agent"), ("agent", "full")):
            for stop in (4, 30):
                start = stop if method.samples == "pictures" else 0
                second = sample(episodes()[2], start + 1, stop + 1, views=views) if isinstance(method, Preference) else None
                about = sample(episodes()[2], start, stop, views=views, other=second)
                assert code_of(ask(rater, first_turn(about, method)))


def test_pictures_of_different_worlds_are_not_judged_together(rater: Embedded) -> None:
    one, other = (episode.frames["full"] for episode in episodes()[:2])
    mixed = replace(sample(episodes()[0], 0, 1), frames=lambda: {"full": np.stack([one[0], other[0]])})
    assert code_of(ask(rater, first_turn(mixed))) == "pictures_of_different_worlds"
    wide = episodes("two-rooms")[0].frames["full"][0]
    evidence = replace(first_turn(mixed).evidence, frames=(frame_picture(one[0]), frame_picture(wide)))
    assert code_of(ask(rater, replace(first_turn(mixed), evidence=evidence))) == "pictures_of_different_sizes"


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("throw the red ball", "unknown_words"),
        ("find ball 3", "unknown_words"),
        ("go to the ball", "not_understood"),
        ("open the red ball", "not_understood"),
        (", then ".join(["go to the red ball"] * 7), "too_many_sub_tasks"),
    ],
)
def test_words_that_it_never_learned_are_not_judged(rater: Embedded, instruction: str, code: str) -> None:
    assert code_of(ask(rater, first_turn(sample(episodes()[0], 0, 4, instruction=instruction)))) == code


def test_actions_that_it_never_learned_are_not_judged(rater: Embedded) -> None:
    for start, stop, method in ((0, 4, RgVlm()), (0, 30, Rating(Rating.Config(item="episode")))):
        about = sample(episodes()[2], start, stop)
        assert code_of(ask(rater, first_turn(replace(about, actions=("jump", *about.actions[1:])), method))) == "unknown_action"


def test_numbers_that_do_not_fit_are_not_judged(rater: Embedded) -> None:
    request = first_turn(sample(episodes()[0], 0, 8))
    evidence = request.evidence
    wrong = [
        replace(request, evidence=replace(evidence, frames=evidence.frames[:1])),
        replace(request, evidence=replace(evidence, frames=())),
        replace(request, evidence=replace(evidence, actions=evidence.actions[1:])),
        replace(request, evidence=replace(evidence, other_actions=evidence.actions)),
        replace(request, subject=replace(request.subject, stop=7)),
        replace(request, subject=replace(request.subject, other=(0, 8, 16, 0))),
        replace(request, answer=Scores(7)),
        replace(request, answer=Choice(("Bad", "Good"), 7)),
    ]
    assert [code_of(ask(rater, each)) for each in wrong] == ["numbers_do_not_fit"] * len(wrong)
    twice = replace(request, evidence=replace(evidence, frames=(*evidence.frames, evidence.frames[0])))
    assert code_of(ask(rater, twice)) == "more_pictures_than_observations"
    assert code_of(ask(rater, replace(request, answer=PreferenceAnswer()))) == "no_pair"
    longest = max(episodes(), key=lambda each: len(each.actions))
    two = first_turn(sample(longest, 0, 30, other=sample(longest, 4, 36)), Preference(Preference.Config(item="segment")))
    odd = replace(two, evidence=replace(two.evidence, frames=two.evidence.frames[1:]))
    assert (len(two.evidence.frames), code_of(ask(rater, odd))) == (32, "numbers_do_not_fit")


def test_scores_of_pictures_between_which_several_actions_lie_are_not_made_up(rater: Embedded) -> None:
    request = first_turn(sample(episodes()[2], 0, 30), Rating(Rating.Config(item="episode")))
    assert code_of(ask(rater, replace(request, answer=Scores(30)))) == "not_every_observation_is_shown"
    assert code_of(ask(rater, replace(request, purpose="analyse"))) == "not_every_observation_is_shown"
    pair = first_turn(sample(episodes()[2], 0, 4, other=sample(episodes()[2], 4, 8)), Preference(Preference.Config(item="segment")))
    assert code_of(ask(rater, replace(pair, answer=Scores(4)))) == "a_pair"


def test_what_is_not_there_cannot_be_served(rater: Embedded) -> None:
    """The full picture shows everything: a thing that is nowhere to be seen does not exist."""
    episode = episodes()[0]
    seen = {str(thing) for thing in THINGS if str(thing) in episode.annotations[0].instruction}
    absent = next(str(thing) for thing in OBJECTS if thing.colour == "purple")  # a colour that the level does not have
    window = sample(episode, 0, 8, instruction=f"go to the {absent}")
    transcript = converse(rater, RgVlm(), window)
    assert json.loads(reply_of(transcript))["scores"] == [3] * 8
    assert all(f"there is no {absent} to be seen" in line for line in reply_of(transcript, 0).splitlines())
    rated = converse(rater, Rating(), sample(episode, 3, 3, instruction=f"go to the {absent}"))
    assert json.loads(reply_of(rated)) == {"ratings": ["Bad"], "probabilities": [[1.0, 0.0, 0.0]], "progress": [0.0]}
    chain = converse(rater, Rating(), sample(episode, 3, 3, instruction=f"go to the {min(seen)}, then go to the {absent}"))
    alone = converse(rater, Rating(), sample(episode, 3, 3, instruction=f"go to the {min(seen)}"))
    (half,), (whole,) = (json.loads(reply_of(each))["progress"] for each in (chain, alone))
    assert half == pytest.approx(whole / 2, abs=1e-4)
    assert "which cannot" not in reply_of(alone, 0)


# --- from what is seen to answers ---


def seen(progress: Sequence[float], verdict: Sequence[Sequence[float]] = (), *, done: Sequence[float] = (), possible: int = 1) -> Seen:
    """What could have been seen at so many pictures, with the probability that all is done."""
    scene = Scene({"red ball": (1, 1)}, frozenset(), (1, 2), 2, "")
    certain = np.array(done or [0.0] * len(progress))
    otherwise = np.divide(np.array(progress) - certain, 1 - certain, out=np.zeros(len(progress)), where=certain < 1)
    return Seen(
        phrases=("go to the red ball",),
        possible=possible,
        actions=("turn left",) * (len(progress) - 1),
        scenes=(scene,) * len(progress),
        verdict=np.array(verdict or [(0.0, 1.0, 0.0)] * (len(progress) - 1)).reshape(-1, 3),
        due=np.stack([1 - certain, certain], axis=1),
        progress=np.array(progress),
        reached=np.stack([otherwise, np.ones(len(progress))], axis=1),
        distance=np.zeros((possible, len(progress))),
    )


def answered(answer: AnswerSpec, *pieces: Seen) -> Any:
    picture = frame_picture(np.zeros((8, 8, 3), np.uint8))
    request = Request(Evidence("", (), (picture,)), (Message("user", ""),), answer, "rate", Subject(0, 0, 0))
    return answer.read(_answer(request, pieces))


def test_scores_are_expectations_on_the_scale_that_is_asked_for() -> None:
    """By hand: 3 * .5 + 10 * .5 = 6.5; on 0..100, 65; on 1..5, 1 + 4 * .65 = 3.6."""
    judged = seen([0.0] * 5, [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0.5, 0.5), (0.5, 0.5, 0)])
    judged = replace(judged, actions=("turn left",) * 5)
    assert answered(Scores(5), judged) == (0, 3, 10, 7, 2)
    assert answered(Scores(5, 0, 100), judged) == (0, 30, 100, 65, 15)
    assert answered(Scores(5, 1, 5), judged) == (1, 2, 5, 4, 2)
    assert answered(Scores(5, -10, 0), judged) == (-10, -7, 0, -3, -8)


@pytest.mark.parametrize(
    ("levels", "progress", "wanted"),
    [
        (2, (0.0, 0.5, 0.89, 0.9, 1.0), (0, 0, 0, 1, 1)),
        (3, (0.0, 0.33, 1 / 3, 0.89, 0.9), (0, 0, 1, 1, 2)),
        (4, (0.24, 0.25, 0.49, 0.5, 0.89, 0.9), (0, 1, 1, 2, 2, 3)),
        (5, (0.19, 0.2, 0.4, 0.6, 0.89, 0.95), (0, 1, 2, 3, 3, 4)),
    ],
)
def test_classes_of_pictures_keep_the_best_one_for_what_is_fulfilled(
    levels: int, progress: tuple[float, ...], wanted: tuple[int, ...]
) -> None:
    answer = Choice(CLASSES[levels])
    assert tuple(answered(answer, seen([share]))[0] for share in progress) == wanted


def test_a_segment_is_rated_by_what_its_actions_led_to() -> None:
    """By hand: (.2 + .6) / 2 = .4, whatever came before."""
    assert answered(Choice(CLASSES[5]), seen([1.0, 0.2, 0.6])) == (2,)


def test_classes_of_transitions_keep_the_best_one_for_what_is_completed() -> None:
    judged = seen([0.9, 0.1, 0.5, 0.95, 0.9], done=[0, 0, 0, 0.4, 0.6])
    assert answered(Choice(CLASSES[3], 4), judged) == (0, 1, 1, 2)
    assert answered(Choice(CLASSES[2], 4), judged) == (0, 0, 0, 1)
    assert answered(Choice(CLASSES[5], 4), judged) == (0, 2, 3, 4)
    assert answered(Choice(CLASSES[3], 4), replace(judged, phrases=("go to the red ball",) * 2)) == (0, 1, 1, 1)


@pytest.mark.parametrize(("first", "second", "wanted"), [(0.2, 0.23, 1.0), (0.23, 0.2, 0.0), (0.2, 0.219, 0.5), (0.2, 0.2, 0.5)])
def test_preferences_need_a_difference(first: float, second: float, wanted: float) -> None:
    assert answered(PreferenceAnswer(), seen([first]), seen([second])) == wanted
    assert answered(PreferenceAnswer(), seen([1.0, first]), seen([0.0, second, second])) == wanted


def test_changes_are_told_as_they_are_seen() -> None:
    """The agent stands in row 3, column 3, and faces right."""
    at = Scene({"red ball": (3, 6), "blue door": (5, 3)}, frozenset(), (3, 3), 0, "")
    ball = ("red ball",)
    assert changes(at, at, ball) == "nothing changed"
    assert changes(at, replace(at, heading=1), ball, nearer=-1.2) == "turned away from the red ball"
    assert changes(replace(at, heading=1), at, ball, nearer=1.0) == "turned towards the red ball"
    assert changes(at, replace(at, agent=(3, 4)), ball, nearer=0.9) == "came nearer to the red ball"
    assert changes(at, replace(at, agent=(3, 2)), ball, nearer=-0.9) == "walked away from the red ball"
    assert changes(at, replace(at, agent=(2, 3)), ball, nearer=0.1) == "moved, neither nearer to the red ball nor farther from it"
    assert changes(at, replace(at, agent=(3, 5)), ball) == "moved and now faces the red ball"
    assert changes(at, replace(at, heading=3)) == "turned"
    holding = replace(at, things={"blue door": (5, 3)}, carried="red ball")
    assert changes(at, holding, ball) == "picked up the red ball"
    assert changes(holding, at, ball) == "put the red ball down"
    beside = replace(at, things={**at.things, "green key": (3, 7)})
    held = replace(beside, things={"green key": (3, 7), "blue door": (5, 3)}, carried="red ball")
    assert changes(held, beside, ("green key", "red ball")) == "put the red ball down next to the green key"
    assert changes(at, replace(at, open_doors=frozenset({"blue door"})), ball) == "opened the blue door"
    assert changes(replace(at, open_doors=frozenset({"blue door"})), at, ball) == "closed the blue door"


def test_how_likely_each_class_is() -> None:
    """Nothing, one or both of two sub-tasks may be done at the second picture, with progress 0.1, 0.6 and 1."""
    due, reached = np.array([(1.0, 0, 0), (0.5, 0.3, 0.2)]), np.array([(0.0, 0.5, 1.0), (0.1, 0.6, 1.0)])
    phrases, progress = ("go to the red ball", "go to the green key"), (due * reached).sum(1)
    both = replace(seen(progress.tolist()), phrases=phrases, possible=2, due=due, reached=reached)

    def likely(answer: Choice, given: Seen = both) -> Any:
        picture = frame_picture(np.zeros((8, 8, 3), np.uint8))
        request = Request(Evidence("", (), (picture,)), (Message("user", "?"),), answer, "rate", Subject(0, 0, 0))
        text = _answer(request, [given])
        assert answer.read_probabilities(text) == tuple(map(tuple, json.loads(text)["probabilities"]))
        return json.loads(text)["probabilities"]

    three, two = ("Bad", "Average", "Good"), ("Bad", "Good")
    assert likely(Choice(three)) == [[0.5, 0.3, 0.2]]
    assert likely(Choice(two)) == [[0.8, 0.2]], "0.6 is not fulfilled"
    nearly = replace(both, reached=np.array([(0.0, 0.5, 1.0), (0.1, 0.95, 1.0)]))
    assert likely(Choice(two), nearly) == [[0.5, 0.5]], "0.95 is fulfilled, or nearly so"
    longer = replace(nearly, actions=("turn left",), verdict=nearly.verdict[:1])
    assert likely(Choice(two, 1), longer) == [[0.5, 0.5]]
    episode = replace(both, scenes=(both.scenes[0],) * 3, due=due[[0, 0, 1]], reached=reached[[0, 0, 1]], progress=progress[[0, 0, 1]])
    assert likely(Choice(three), episode) == [[0.75, 0.15, 0.1]], "the mean over its outcomes"
    steps = replace(episode, actions=("turn left", "turn left"))
    assert likely(Choice(three, 2), steps) == [[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]]
    without = replace(steps, phrases=(*phrases, "open the red door"), reached=steps.reached * 2 / 3)
    assert likely(Choice(two, 2), without) == [[1.0, 0.0], [1.0, 0.0]], "what cannot be done is never completed"


def test_soft_labels_reach_the_reward_model(rater: Embedded) -> None:
    """What is said of how likely each class is comes out as the label's, and as what a reward model learns from."""
    about = sample(episodes()[0], 0, 8)
    transcript = converse(rater, Rating(Rating.Config(item="transition")), about)
    read_labels = Rating(Rating.Config(item="transition")).read(transcript)
    said = json.loads(reply_of(transcript))["probabilities"]
    assert [list(label.probabilities or ()) for label in read_labels] == said
    assert all(len(row) == 3 and abs(sum(row) - 1) < 1e-3 for row in said)


def test_lines_and_sentences_say_what_is_known() -> None:
    """The agent stands at (3, 3), lifts a ball, turns to a key, puts the ball beside it: one of two sub-tasks is done."""
    key = {"green key": (4, 4)}
    start = Scene({"red ball": (3, 4), **key}, frozenset(), (3, 3), 0, "")
    held = Scene(key, frozenset(), (3, 3), 0, "red ball")
    near = replace(held, agent=(4, 2))
    judged = Seen(
        phrases=("put the red ball next to the green key", "go to the green key"),
        possible=2,
        actions=("pick up", "move forward", "drop"),
        scenes=(start, held, near, Scene({"red ball": (4, 3), **key}, frozenset(), (4, 2), 0, "")),
        verdict=np.array([(0.1, 0.2, 0.7), (0.2, 0.3, 0.5), (0.1, 0.8, 0.1)]),
        due=np.array([(0.9, 0.1, 0), (0.9, 0.1, 0), (0.8, 0.1, 0.1), (0.2, 0.7, 0.1)]),
        progress=np.array([0.1, 0.2, 0.3, 0.504]),
        reached=np.array([(0.0, 0.5, 1.0)] * 4),
        distance=np.array([(4, 3, 1, 0), (9, 9, 9, 5.2)]),
    )
    assert action_lines(judged, verdicts=True) == [
        "0: pick up - picked up the red ball; serves",
        "1: move forward - came nearer to the green key; serves",
        (
            "2: drop - put the red ball down next to the green key; with that 'put the red ball next to the green key' is done; "
            "does not matter"
        ),
    ]
    assert [line.rpartition("; ")[2] for line in action_lines(judged, verdicts=False)] == ["20 % is done", "30 % is done", "50 % is done"]
    assert summary(judged) == (
        "The agent holds nothing and faces the red ball. Done: 'put the red ball next to the green key'. "
        "To be done next: 'go to the green key', about 5 actions to go. That is the most likely; what is shown leaves it open how much is "
        "done. In all, 50 % of the instruction is done."
    )
    certain = replace(judged, due=np.array([(0.0, 1.0, 0.0)] * 4))
    assert "most likely" not in summary(certain)


@pytest.mark.parametrize(
    ("verdict", "after", "told"),
    [
        ((0.1, 0.2, 0.7), 19.9, "came nearer to the red ball; serves"),
        ((0.1, 0.2, 0.7), 18.0, "came nearer to the red ball; serves"),
        ((0.1, 0.2, 0.7), 22.0, "moved; serves"),
        ((0.7, 0.2, 0.1), 19.9, "walked away from the red ball; hinders"),
        ((0.7, 0.2, 0.1), 18.0, "moved; hinders"),
        ((0.2, 0.7, 0.1), 19.9, "moved, neither nearer to the red ball nor farther from it; does not matter"),
        ((0.2, 0.7, 0.1), 18.0, "moved; does not matter"),
    ],
)
def test_a_line_never_contradicts_its_verdict(verdict: tuple[float, ...], after: float, told: str) -> None:
    """Far away the network's distances err by more than an action."""
    start = Scene({"red ball": (9, 9)}, frozenset(), (1, 1), 0, "")
    moved = replace(start, agent=(1, 2))
    judged = Seen(
        phrases=("go to the red ball",),
        possible=1,
        actions=("move forward",),
        scenes=(start, moved),
        verdict=np.array([verdict]),
        due=np.array([(1.0, 0.0)] * 2),
        progress=np.zeros(2),
        reached=np.array([(0.0, 1.0)] * 2),
        distance=np.array([(20.0, after)]),
    )
    assert action_lines(judged, verdicts=True) == [f"0: move forward - {told}"]


@pytest.mark.parametrize("level", ["small", "four-rooms"])
def test_every_picture_of_an_episode_is_read_as_it_is(weights: Path, level: str) -> None:
    """By what changes: the recorded actions are told again from the pictures alone."""
    tiles = read(weights, cure="").tiles
    told = set()
    for episode in episodes(level):
        scenes = scenes_of(tiles, list(episode.frames["full"]))
        for action, (before, after) in zip(sample(episode).actions, pairwise(scenes), strict=True):
            change = changes(before, after)
            turned = {"turn left": (before.heading - 1) % 4, "turn right": (before.heading + 1) % 4}.get(action, before.heading)
            assert after.heading == turned
            expected = {
                "move forward": ("moved", "nothing"), "turn left": ("turned",), "turn right": ("turned",), "done": ("nothing",),
                "pick up": ("picked up", "nothing"), "drop": ("put", "nothing"), "toggle": ("opened", "closed", "nothing"),
            }[action]  # fmt: skip
            assert change.startswith(expected), (action, change)
            if change.startswith("picked up"):
                assert after.carried == before.faced
            told.add(change.split()[0])
    assert {"moved", "turned", "nothing", "picked"} <= told


def test_the_window_of_the_battery_is_what_happens_in_the_world() -> None:
    """Written by: numpy.savez_compressed(WINDOW, frames=..., actions=..., instruction=...) with what is compared here."""
    window = sample(episodes()[0], 0, COUNT)
    with np.load(WINDOW) as recorded:
        np.testing.assert_array_equal(recorded["frames"], window.frames()["full"])
        assert (tuple(recorded["actions"].tolist()), str(recorded["instruction"])) == (window.actions, window.instruction)


# --- files ---


def test_a_file_that_is_not_there_or_damaged_is_said_with_a_cure(weights: Path, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    other = tmp_path / "other.safetensors"
    tensors = random_tensors()
    about: dict[str, Any] = {"name": "x", "tiles": known_tiles(), "grids": [(6, 6)]}
    contents = {
        "absent": None,
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "header": whole[:4] + b"\xff" * 8 + whole[12:],
        "nonsense": b"no tensors at all, but text",
        "no metadata": storage.save(tensors),
        "other metadata": whole[:8] + whole[8 : 8 + length].replace(b"guerdon embedded 1", b"guerdon embedded 9") + whole[8 + length :],
        "fewer tensors": to_bytes({name: tensors[name] for name in list(tensors)[1:]}, **about),
        "other shapes": to_bytes(tensors | {"progress": np.zeros(3, np.float32)}, **about),
        "not finite": to_bytes(tensors | {"progress": np.array([np.nan, 0], np.float32)}, **about),
        "other tiles": to_bytes(tensors, **about | {"tiles": {"00": "red dragon"}}),
        "one digit of a number": whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:],
        "nested": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "a list": storage.save(tensors, {"guerdon embedded 1": "[]"}),
        "nothing about a rater": storage.save(tensors, {"guerdon embedded 1": "{}"}),
        "endless grid": storage.save(tensors, {"guerdon embedded 1": '{"tiles": {}, "grids": [[1e999, 1]]}'}),
        "name of two words": to_bytes(tensors, **about | {"name": "one two"}),
        "name that is none": to_bytes(tensors, **about | {"name": ["x"]}),
        "other words": whole[:8] + whole[8 : 8 + length].replace(b"walk", b"wade") + whole[8 + length :],
    }
    for name, content in contents.items():
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(ProviderError) as caught:
            Embedded.build(str(other))
        assert caught.value.where == str(other), name
        assert "guerdon train-embedded" in caught.value.cure, name
    with pytest.raises(ProviderError):
        Embedded.build(str(tmp_path))


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    paths = [random_weights(tmp_path / folder) for folder in ("one", "other")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_two_files_are_one_too_many(weights: Path) -> None:
    with pytest.raises(UsageError):
        Embedded.build(str(weights), config=Embedded.Config(weights=weights))
    assert raters.build(f"embedded:{weights}").rater == raters.build("embedded", config=Embedded.Config(weights=weights)).rater


def test_neither_torch_nor_a_simulator_is_imported() -> None:
    code = "import sys, guerdon.providers.embedded; sys.exit(len({'torch', 'minigrid', 'gymnasium'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_every_tile_of_a_world_has_a_name_of_its_own() -> None:
    tiles = known_tiles()
    assert len(set(tiles.values())) == len(tiles) == len(LIBRARY)
    assert {"black", "empty", "wall", "grey box", "red door", "open red door", "agent up", "agent left on open grey door"} <= set(
        tiles.values()
    )


# --- in a command ---


def test_a_dataset_is_labelled_without_its_ground_truth(weights: Path, tmp_path: Path) -> None:
    def labelled(name: str, *, privileged: bool) -> LabelSet:
        recorded = [each if privileged else replace(each, privileged={}) for each in episodes()]
        data, world = tmp_path / name, {"name": "babyai"}
        write_minari(data, recorded, dataset_id="test/data-v0", action_names=ACTION_NAMES, environment=world, description="")
        vlm, store = (f"embedded:{weights}",), str(tmp_path / f"{name}.sqlite")
        return guerdon.label(dataset=data, run=tmp_path / f"{name}-run", vlm=vlm, store=store, quiet=True).labels

    known, unknown = labelled("known", privileged=True), labelled("unknown", privileged=False)
    assert known.coverage == 1.0
    assert unknown.labels == known.labels


def test_a_command_says_why_nothing_was_judged(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_minari(data, episodes()[:1], dataset_id="test/data-v0", action_names=ACTION_NAMES, environment={"name": "babyai"}, description="")
    rater = ("--vlm", f"embedded:{weights}", "--store", str(tmp_path / "store"), "--quiet")
    for run in ("first", "again"):  # the second time from the store
        assert guerdon.cli.main(["label", str(data), "--run", str(tmp_path / run), *rater, "--instruction", "throw the red ball"]) == 1
        assert "x unknown words" in capsys.readouterr().out
    assert guerdon.cli.main(["label", str(data), "--run", str(tmp_path / "views"), *rater, "--views", "agent"]) == 1
    assert "x grid of unknown size" in capsys.readouterr().out


# --- the weights that come with the package ---

SHIPPED = Path(str(files("guerdon.providers"))) / "weights" / "babyai.safetensors"


@pytest.fixture(scope="module")
def trained() -> Iterator[Embedded]:
    made = Embedded.build()
    yield made
    asyncio.run(made.close())


def test_the_shipped_file_is_small_and_has_a_card(trained: Embedded) -> None:
    card = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    assert SHIPPED.stat().st_size <= 8_000_000
    assert trained._weights.network.parameters <= 2_000_000
    assert trained.rater.name == f"embedded:{card['name']}"
    assert trained.rater.settings["weights"] == card["network"]["digest"]


def scores(rater: Embedded, about: Sample) -> list[float]:
    return [float(label.value) for label in RgVlm().read(converse(rater, RgVlm(), about)) if label.value is not None]


@pytest.mark.parametrize("level", ["small", "one-room", "two-rooms", "four-rooms"])
def test_with_the_shipped_file_it_tells_what_serves(trained: Embedded, level: str) -> None:
    """Of worlds of its own levels, judged by the words of the sub-task; how well exactly is measured elsewhere."""
    served, idle = [], []
    for episode in episodes(level, tasks=6):
        for span in episode.annotations[0].spans:
            given = scores(trained, sample(episode, span.start, span.stop, instruction=span.text))
            truth = episode.privileged["contribution"][span.start : span.stop]
            served += [score for score, true in zip(given, truth, strict=True) if true > 0]
            idle += [score for score, true in zip(given, truth, strict=True) if true <= 0]
    better = np.sign(np.subtract.outer(served, idle))
    assert (better + 1).mean() / 2 > 0.98  # the area under the ROC curve
    assert np.mean(served) > np.mean(idle) + 3


def test_with_the_shipped_file_it_heeds_the_words(trained: Embedded) -> None:
    """Other things of the same picture are named: less serves them."""
    right, wrong = [], []
    for episode in episodes("one-room", tasks=9):
        for span in episode.annotations[0].spans:
            things = set(read(SHIPPED, cure="").tiles.scene(episode.frames["full"][span.start]).things) - set(words.named(span.text))
            right += scores(trained, sample(episode, span.start, span.stop, instruction=span.text))
            wrong += scores(trained, sample(episode, span.start, span.stop, instruction=f"go to the {min(things)}"))
    assert np.mean(right) > np.mean(wrong) + 1


def test_with_the_shipped_file_progress_rises(trained: Embedded) -> None:
    method = Rating(Rating.Config(item="transition"))
    for level in ("small", "one-room", "two-rooms"):
        for episode in episodes(level):
            first, last = sample(episode, 0, 8), sample(episode, len(episode.actions) - 8)
            begin, end = (json.loads(reply_of(converse(trained, method, about)))["progress"] for about in (first, last))
            assert end[-1] > begin[0] + 0.3
