"""The scripted rater: right where it should be, wrong at the rates it was told, and the same whatever the order."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.answers import Choice, Preference, Scores, Text, Unreadable
from guerdon.errors import ProviderError, UnknownName, UsageError
from guerdon.providers._errors import digitise
from guerdon.providers.scripted import Scripted
from guerdon.records import Evidence, Failure, Message, Picture, Reply, Request, Subject

WINDOW = 8
TABLE = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3000, WINDOW))
PERFECT = Scripted.PRESETS["perfect"]


def truth(subject: Subject) -> npt.NDArray[Any]:
    return TABLE[subject.episode]


def request(episode: int, answer: Text | Scores | None = None, *, text: str = "", actions: int = WINDOW) -> Request:
    evidence = Evidence(f"instruction {episode}", ("move forward",) * actions, ())
    messages = (Message("user", text or f"question {episode}"),)
    return Request(evidence, messages, answer or Scores(actions), "score", Subject(episode, 0, actions))


def ask(provider: Scripted, asked: Request, repeat: int = 0) -> Reply | Failure:
    return asyncio.run(provider.ask(asked, repeat=repeat))


def ask_all(provider: Scripted, requests: list[Request]) -> list[Reply | Failure]:
    async def all_of_them() -> list[Reply | Failure]:
        return [await provider.ask(asked) for asked in requests]

    return asyncio.run(all_of_them())


def scores(outcome: Reply | Failure, answer: Scores | None = None) -> list[int]:
    assert isinstance(outcome, Reply)
    return list((answer or Scores(WINDOW)).read(outcome.text))


def test_the_perfect_rater_is_right() -> None:
    table = np.array([1.0, 0.0, -1.0, np.nan, 1.0, 1.0, 0.0, -1.0])
    provider = Scripted(PERFECT, truth=lambda _subject: table)
    assert scores(ask(provider, request(0))) == [9, 3, 1, 3, 9, 9, 3, 1]


def test_scores_are_carried_over_to_the_scale_asked_for() -> None:
    provider = Scripted(PERFECT, truth=lambda _subject: np.array([1.0, 0.0, -1.0]))
    low_high = Scores(3, low=1, high=5)  # 9/10, 3/10 and 1/10 of the way from 1 to 5: 4.6, 2.2, 1.4
    assert scores(ask(provider, request(0, low_high, actions=3)), low_high) == [5, 2, 1]


def test_the_realistic_rater_is_right_about_as_often_as_a_good_model() -> None:
    outcomes = ask_all(Scripted(truth=truth), [request(episode) for episode in range(2000)])
    right = total = missing = 0
    for episode, outcome in enumerate(outcomes):
        try:
            given = np.array(scores(outcome))
        except (AssertionError, Unreadable):
            missing += 1
            continue
        right += int(((given > 5) == (TABLE[episode] > 0)).sum())
        total += WINDOW
    assert right / total == pytest.approx(0.86, abs=0.02)
    assert missing / len(outcomes) == pytest.approx(0.032, abs=0.012)  # failures 1 %, malformed 2 %, refusals 0.2 %


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"flip": 0.3}, 0.3),  # every flip, and nothing else, changes a score
        ({"adjacent": 0.4}, 0.4),
        ({"optimism": 0.2}, 0.2 * 1.0),
    ],
)
def test_rates_are_kept(rates: dict[str, float], expected: float) -> None:
    plain = Scripted(Scripted.Config(jitter=0, **{**ZERO, **rates}, served=6), truth=truth)  # type: ignore[arg-type]
    exact = Scripted(Scripted.Config(jitter=0, **ZERO, served=6), truth=truth)
    requests = [request(episode) for episode in range(400)]
    erring = np.array([scores(outcome) for outcome in ask_all(plain, requests)])
    right = np.array([scores(outcome) for outcome in ask_all(exact, requests)])
    assert (erring != right).mean() == pytest.approx(expected, abs=0.03)


ZERO = {"flip": 0.0, "adjacent": 0.0, "optimism": 0.0, "refusal": 0.0, "malformed": 0.0, "failure": 0.0}


def test_flips_swap_the_verdict_and_optimism_only_raises() -> None:
    requests = [request(episode) for episode in range(50)]
    flipped = np.array([scores(o) for o in ask_all(Scripted(Scripted.Config(jitter=0, **{**ZERO, "flip": 1.0}), truth=truth), requests)])
    np.testing.assert_array_equal(flipped, np.where(TABLE[:50] > 0, 3, 9))
    raised = np.array([scores(o) for o in ask_all(Scripted(Scripted.Config(jitter=0, **{**ZERO, "optimism": 1.0}), truth=truth), requests)])
    np.testing.assert_array_equal(raised, np.where(TABLE[:50] > 0, 10, np.where(TABLE[:50] < 0, 3, 5)))


def test_the_order_of_questions_changes_nothing() -> None:
    requests = [request(episode) for episode in range(200)]
    forwards = ask_all(Scripted(truth=truth), requests)
    backwards = ask_all(Scripted(truth=truth), requests[::-1])[::-1]
    assert [_said(outcome) for outcome in forwards] == [_said(outcome) for outcome in backwards]
    other_seed = ask_all(Scripted(Scripted.Config(seed=1), truth=truth), requests)
    assert [_said(outcome) for outcome in forwards] != [_said(outcome) for outcome in other_seed]


def _said(outcome: Reply | Failure) -> str:
    return outcome.text if isinstance(outcome, Reply) else outcome.cause


def test_repeats_differ_and_repeat_themselves() -> None:
    provider = Scripted(Scripted.Config(**ZERO), truth=truth)
    answers = [_said(ask(provider, request(0), repeat)) for repeat in range(6)]
    assert len(set(answers)) > 1
    assert answers == [_said(ask(provider, request(0), repeat)) for repeat in range(6)]


def test_the_analysis_agrees_with_the_scores_that_follow() -> None:
    provider = Scripted(Scripted.Config(**{**ZERO, "flip": 0.3, "adjacent": 0.5}), truth=truth)
    for episode in range(50):
        analysis = _said(ask(provider, request(episode, Text(), text="Analyse."))).splitlines()
        given = scores(ask(provider, request(episode, text="Score.")))
        assert len(analysis) == WINDOW
        for number, (line, score) in enumerate(zip(analysis, given, strict=True)):
            assert line.startswith(f"{number}: move forward - ")
            assert ("closer" in line) == (score > 5)
            assert ("away" in line) == (score < 2)


def test_an_outage_passes() -> None:
    provider = Scripted(Scripted.Config(**{**ZERO, "failure": 0.5}), truth=truth)
    outcomes = [[_said(ask(provider, request(episode))) for _attempt in range(12)] for episode in range(20)]
    causes = {said for attempts in outcomes for said in attempts if not said.startswith("{")}
    assert causes == {"timeout", "rate_limit", "overload", "network"}
    assert all(attempts[-1].startswith("{") for attempts in outcomes)
    failure = next(o for o in (ask(Scripted(Scripted.Config(**{**ZERO, "failure": 1.0}), truth=truth), request(0)),))
    assert isinstance(failure, Failure)
    assert not failure.final


def test_refusals_are_final() -> None:
    outcome = ask(Scripted(Scripted.Config(**{**ZERO, "refusal": 1.0}), truth=truth), request(0))
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("refusal", True)


def test_malformed_answers_are_never_read_as_scores() -> None:
    provider = Scripted(Scripted.Config(**{**ZERO, "malformed": 1.0}), truth=truth)
    seen = set()
    for episode in range(100):
        text = _said(ask(provider, request(episode)))
        seen.add((text[:12], text[-3:]))
        with pytest.raises(Unreadable):
            Scores(WINDOW).read(text)
    assert len(seen) > 4
    assert "0:" not in _said(ask(provider, request(0, Text(), text="Analyse.")))


def test_a_repair_is_a_question_of_its_own() -> None:
    provider = Scripted(Scripted.Config(**{**ZERO, "malformed": 0.5}), truth=truth)
    readable = 0
    for episode in range(100):
        for text in ("Score.", "Again."):
            try:
                scores(ask(provider, request(episode, text=f"{text} {episode}")))
                readable += 1
                break
            except Unreadable:
                continue
    assert 60 < readable < 90  # three quarters


@pytest.mark.parametrize("table", [{}, {0: np.zeros(3)}])
def test_no_ground_truth_is_no_answer(table: dict[int, npt.NDArray[Any]]) -> None:
    outcome = ask(Scripted(PERFECT, truth=lambda subject: table[subject.episode]), request(0))
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("unsupported", True)


def test_the_identity_holds_everything_that_changes_answers() -> None:
    def key(config: Scripted.Config | None = None, **more: str) -> str:
        return Scripted(config, truth=truth, **more).rater.key

    assert key() == key(Scripted.Config())
    assert len({key(), key(Scripted.Config(seed=1)), key(Scripted.Config(flip=0.2)), key(truth_id="other"), key(name="noisy")}) == 5


def test_the_delay_is_waited() -> None:
    began = time.perf_counter()
    outcome = ask(Scripted(Scripted.Config(**ZERO, delay=0.05), truth=truth), request(0))
    assert time.perf_counter() - began >= 0.05
    assert outcome.seconds >= 0.05


@pytest.mark.parametrize(
    "wrong", [{"flip": 1.5}, {"refusal": -0.1}, {"failure": float("nan")}, {"served": 11}, {"jitter": -1}, {"delay": -1.0}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="scripted: "):
        Scripted.Config(**wrong)


def test_presets() -> None:
    assert Scripted.build(truth=truth).rater.name == "scripted:realistic"
    assert Scripted.build("perfect", truth=truth).config == PERFECT
    with pytest.raises(UnknownName, match="there are: noisy, optimist, perfect, realistic, unreliable"):
        Scripted.build("nonsense", truth=truth)
    with pytest.raises(UsageError, match="there is none"):
        Scripted.build("perfect")
    with pytest.raises(UsageError, match="Give one of them"):
        Scripted.build("perfect", config=Scripted.Config(), truth=truth)


# --- ratings and preferences --------------------------------------------------------------------------------------------------------

QUALITIES = np.random.default_rng(1).random((3000, WINDOW + 1))


def quality(subject: Subject) -> npt.NDArray[Any]:
    """Of pictures and windows of an episode; nothing fulfils the words of another one."""
    if subject.annotation < 0:
        return np.zeros(subject.stop - subject.start + 1)
    return QUALITIES[subject.episode, subject.start : subject.stop + 1]


def about(subject: Subject, answer: Any, *, text: str = "", purpose: str = "rate") -> Request:
    count = subject.stop - subject.start
    evidence = Evidence(
        f"instruction {subject.episode}", ("move forward",) * count, (Picture(f"{subject}", np.zeros((1, 1, 3), np.uint8)),)
    )
    return Request(evidence, (Message("user", text or f"question {subject}"),), answer, purpose, subject)


def classes(provider: Scripted, subject: Subject, answer: Choice, repeat: int = 0, *, text: str = "") -> list[int]:
    outcome = ask(provider, about(subject, answer, text=text), repeat)
    assert isinstance(outcome, Reply), outcome
    return list(answer.read(outcome.text))


def rated(levels: int, n: int = 1) -> Choice:
    return Choice(tuple("abcdefg"[:levels]), n)


def test_the_perfect_rater_names_the_right_classes() -> None:
    provider = Scripted(PERFECT, qualities=lambda subject: np.array([0.1, 0.5, 0.9, 1.0])[subject.start : subject.stop + 1])
    assert [classes(provider, Subject(0, k, k), rated(3)) for k in range(4)] == [[0], [1], [2], [2]]
    assert classes(provider, Subject(0, 0, 3), rated(3, 3)) == [1, 2, 2], "a transition counts by what it leads to"
    assert classes(provider, Subject(0, 0, 3), rated(5)) == [4], "(0.5 + 0.9 + 1) / 3 = 0.8"
    assert classes(provider, Subject(0, 0, 2), rated(5)) == [3], "(0.5 + 0.9) / 2 = 0.7"
    assert classes(Scripted(replace(PERFECT, edges=(0.6, 0.95)), qualities=provider._qualities), Subject(0, 0, 3), rated(3, 3)) == [0, 1, 2]


def test_nothing_fulfils_wrong_words() -> None:
    provider = Scripted(PERFECT, qualities=quality)
    assert classes(provider, Subject(0, 0, 8, -1), rated(3, 8)) == [0] * 8


def test_class_errors_come_at_their_rates_and_repeat_themselves() -> None:
    provider = Scripted(replace(PERFECT, mistake=0.3), qualities=quality)
    right = np.array([digitise(QUALITIES[episode, 1:], 3) for episode in range(500)])
    said = np.array([classes(provider, Subject(episode, 0, 8), rated(3, 8)) for episode in range(500)])
    assert (said != right).mean() == pytest.approx(0.3, abs=0.02)
    again = [classes(provider, Subject(episode, 0, 8), rated(3, 8), text="Once more.") for episode in range(20)]
    np.testing.assert_array_equal(said[:20], again), "the same in every turn"
    assert any(classes(provider, Subject(episode, 0, 8), rated(3, 8), 1) != said[episode].tolist() for episode in range(20))


def test_an_unsure_rater_errs_near_the_edges() -> None:
    provider = Scripted(replace(PERFECT, rating_temperature=0.1), qualities=lambda subject: np.array([0.32]))
    said = [classes(provider, Subject(episode, 0, 0), rated(3))[0] for episode in range(300)]
    assert 0.3 < np.mean(said) < 0.7  # 0.153 and 0.18 from the two middles: hardly more than even


def test_what_is_said_of_a_picture_agrees_with_its_class() -> None:
    provider = Scripted(replace(PERFECT, mistake=0.5), qualities=quality)
    for episode in range(30):
        words = _said(ask(provider, about(Subject(episode, 2, 2), Text(), text="Look.", purpose="describe")))
        (given,) = classes(provider, Subject(episode, 2, 2), rated(3))
        assert ["hardly", "partly", "all but"][given] in words
    texts = {_said(ask(provider, about(Subject(episode, 2, 2), Text(), purpose="describe"))) for episode in range(30)}
    assert len(texts) == 30, "who gets the words alone must not mix pictures up"


def pair(first: int, second: int, episode: int = 0) -> Subject:
    return Subject(episode, first, first, other=(episode, second, second, 0))


def better(provider: Scripted, subject: Subject) -> float:
    outcome = ask(provider, about(subject, Preference()))
    assert isinstance(outcome, Reply), outcome
    return Preference().read(outcome.text)


def test_the_perfect_rater_prefers_the_better_one() -> None:
    table = np.array([0.1, 0.5, 0.9, 0.5])
    provider = Scripted(PERFECT, qualities=lambda subject: table[subject.start : subject.stop + 1])
    assert [better(provider, pair(*places)) for places in ((0, 2), (2, 0), (1, 3))] == [1.0, 0.0, 0.5]
    assert better(provider, Subject(0, 0, 2, other=(0, 2, 3, 0))) == 0.0, "0.7 on average against 0.5"
    myopic = Scripted(replace(PERFECT, discount=0.1), qualities=provider._qualities)
    assert better(myopic, Subject(0, 0, 3, other=(0, 1, 2, 0))) == 1.0, "0.54 if the last counts most, against 0.9"
    careful = Scripted(replace(PERFECT, equal=0.41), qualities=provider._qualities)
    assert [better(careful, pair(*places)) for places in ((0, 2), (1, 2))] == [1.0, 0.5]
    assert "second" in _said(ask(provider, about(pair(0, 2), Text(), purpose="describe")))


def test_preference_errors_come_at_their_rates() -> None:
    places = [pair(0, 1, episode) for episode in range(600)]
    right = np.array([QUALITIES[episode, 1] > QUALITIES[episode, 0] for episode in range(600)])
    turned = np.array([better(Scripted(replace(PERFECT, mistake=0.2), qualities=quality), each) for each in places])
    assert (turned != right).mean() == pytest.approx(0.2, abs=0.04)
    unsure = np.array([better(Scripted(replace(PERFECT, preference_temperature=100.0), qualities=quality), each) for each in places])
    assert unsure.mean() == pytest.approx(0.5, abs=0.06)


def test_malformed_classes_and_preferences_are_never_read() -> None:
    provider = Scripted(replace(PERFECT, malformed=1.0), qualities=quality)
    seen = set()
    for episode in range(150):
        for subject, answer in (
            (Subject(episode, 0, 0), rated(3)),
            (Subject(episode, 0, 8), rated(3, 8)),
            (pair(0, 1, episode), Preference()),
        ):
            text = _said(ask(provider, about(subject, answer)))
            seen.add((answer.kind, text[:14], text[-3:]))
            with pytest.raises(Unreadable):
                answer.read(text)
    assert len(seen) >= 20


def test_what_is_skipped_is_refused_in_every_turn() -> None:
    provider = Scripted(replace(PERFECT, skip=0.4), qualities=quality)
    refused = [isinstance(ask(provider, about(Subject(episode, 0, 0), rated(3))), Failure) for episode in range(400)]
    again = [isinstance(ask(provider, about(Subject(episode, 0, 0), rated(3), text="Again.")), Failure) for episode in range(400)]
    assert refused == again
    assert np.mean(refused) == pytest.approx(0.4, abs=0.07)
    assert isinstance(ask(provider, about(Subject(0, 0, 0), Text(), purpose="describe")), Reply)


@pytest.mark.parametrize(
    ("found", "answer", "code"),
    [
        (np.zeros(3), rated(3, 8), "ground_truth_of_other_length"),
        (np.full(9, np.nan), rated(3, 8), "no_ground_truth"),
        (np.zeros(9), rated(3, 7), "ground_truth_of_other_length"),
        (np.zeros(9), Preference(), "no_pair"),
    ],
)
def test_an_unknown_quality_is_no_answer(found: npt.NDArray[Any], answer: Any, code: str) -> None:
    outcome = ask(Scripted(PERFECT, qualities=lambda _subject: found), about(Subject(0, 0, 8), answer))
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.code) == ("unsupported", True, code)


def test_edges_hold_for_their_number_of_classes_only() -> None:
    outcome = ask(Scripted(replace(PERFECT, edges=(0.5,)), qualities=quality), about(Subject(0, 0, 0), rated(3)))
    assert isinstance(outcome, Failure)
    assert outcome.code == "edges_of_another_number_of_classes"


def test_a_table_that_is_not_there_stops_everything() -> None:
    with pytest.raises(ProviderError, match="how far the instruction is fulfilled"):
        ask(Scripted(PERFECT, truth=truth), about(Subject(0, 0, 0), rated(3)))
    with pytest.raises(ProviderError, match="whether actions serve the instruction"):
        ask(Scripted(PERFECT, qualities=quality), request(0))


@pytest.mark.parametrize(
    "wrong",
    [{"edges": (0.6, 0.4)}, {"edges": (0.0, 0.5)}, {"edges": (1.0,)}, {"mistake": 2.0}, {"skip": -1.0}, {"equal": -0.1}, {"discount": 0.0},
     {"rating_temperature": float("nan")}, {"preference_temperature": float("inf")}],
)  # fmt: skip
def test_nonsense_about_classes_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} "):
        Scripted.Config(**wrong)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("realistic", "ead7e637cb597259"), ("perfect", "a8158119c907b195"), ("noisy", "f97de05e939dd656"), ("optimist", "b297b9d0bdb48cdc"),
     ("unreliable", "a3315fa2cc4e5518")],
)  # fmt: skip
def test_what_presets_say_of_actions_is_pinned(preset: str, expected: str) -> None:
    """A change would make every scripted label that users have irreproducible."""
    said = []
    provider = Scripted.build(preset, truth=truth)
    for episode in range(150):
        for answer in (Text(), Scores(WINDOW), Scores(WINDOW, 1, 5)):
            for repeat in (0, 1):
                purpose = "analyse" if isinstance(answer, Text) else "score"
                outcome = ask(provider, replace(request(episode, answer), purpose=purpose), repeat)
                said.append((outcome.text if isinstance(outcome, Reply) else "") or type(outcome).__name__ + getattr(outcome, "cause", ""))
    assert hashlib.sha256("\n".join(said).encode()).hexdigest()[:16] == expected
