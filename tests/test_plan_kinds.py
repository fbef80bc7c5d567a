"""What asking about pictures, segments, whole episodes and pairs would take."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from guerdon import pricing
from guerdon.answers import Choice, Preference, Scores, Text
from guerdon.interfaces import Method
from guerdon.methods.preference import Preference as PreferenceMethod
from guerdon.methods.rating import Rating
from guerdon.providers.chat import Chat
from guerdon.recipes import reckoning
from guerdon.records import Exchange, Reply, Sample
from guerdon.samples import Config, select
from tests.memory import MemoryDataset, MemoryEpisode

GOOGLE = "google:gemini-2.5-flash"


def made(item: str) -> Method:
    if item.startswith("pair of "):
        return PreferenceMethod(PreferenceMethod.Config(item=item.removeprefix("pair of ")))  # type: ignore[arg-type]
    return Rating(Rating.Config(item=item))  # type: ignore[arg-type]


ITEMS = ["picture", "transition", "segment", "episode", "pair of picture", "pair of segment"]


def samples(method: Method, *lengths: int, **sampling: Any) -> list[Sample]:
    dataset = MemoryDataset([MemoryEpisode(length) for length in lengths or (3, 9, 12, 5)], size=30)
    return list(select(dataset, Config(kind=method.samples, **sampling)))


@pytest.mark.parametrize("item", ITEMS)
def test_every_kind_of_sample_is_reckoned(item: str) -> None:
    method = made(item)
    chosen = samples(method)
    drawn = reckoning.draw(chosen, method)
    assert drawn.windows == len(drawn.conversations) == len(chosen)
    for sample, conversation in zip(chosen, drawn.conversations, strict=True):
        assert conversation.length == sum(each.length for each in (sample.segment, *([sample.other.segment] if sample.other else [])))
        if conversation.usual:  # two that look the same are not asked about
            assert [request.purpose for request in conversation.usual] == ["describe", "prefer" if sample.other else "rate"]
            assert [request.purpose for request in conversation.worst][2:] == ["repair"]
            assert len(conversation.usual[1].messages) == 1, "the filler was read as an analysis"
    found = reckoning.planned(drawn, [reckoning.read_rater(GOOGLE, {})], repeats=2)
    asked = sum(len(conversation.usual) for conversation in drawn.conversations)
    assert found.requests == 2 * asked
    assert found.dollars is not None
    assert found.ceiling is not None
    assert 0 < found.dollars < found.ceiling


@pytest.mark.parametrize("item", ITEMS)
def test_the_ceiling_holds_for_every_kind(item: str) -> None:
    """Whatever is answered within the allowance, the quotes of all conversations stay below it, also if a part of them was drawn."""
    allowance, method = 400, made(item)
    chosen = samples(method, *range(2, 14))
    rater = reckoning.read_rater(GOOGLE, {"chat": Chat.Config(max_output_tokens=allowance)})
    ceilings = [reckoning.planned(reckoning.draw(chosen, method, most=most), [rater]).ceiling for most in (len(chosen), 5)]
    spent = 0.0
    for sample in chosen:
        exchanges: list[Exchange] = []
        while (request := method.next(sample, exchanges)) is not None:
            quote = pricing.quote(request, provider="google", model="gemini-2.5-flash", max_output_tokens=allowance)
            spent += quote.dollars or 0.0
            exchanges.append(Exchange(request, Reply("word" * allowance)))
    assert None not in ceilings
    assert all(spent <= (ceiling or 0.0) for ceiling in ceilings)


def test_few_of_many_long_episodes_are_read() -> None:
    method = made("episode")
    chosen = samples(method, *range(20, 1020, 10))
    reads: Counter[int] = Counter()

    def counted(sample: Sample) -> Any:
        def frames() -> Any:
            reads[sample.segment.episode] += 1
            return sample.frames()

        return frames

    watched = [Sample(each.segment, each.instruction, each.actions, frames=counted(each)) for each in chosen]
    drawn = reckoning.draw(watched, method)
    assert len(drawn.conversations) == sum(reads.values()) == 8
    assert {0, 99} <= set(reads), "the shortest and the longest, which bound the others"
    assert drawn.windows == 100
    assert drawn.lengths == dict.fromkeys(range(20, 1020, 10), 1)
    found = reckoning.planned(drawn, [reckoning.read_rater(GOOGLE, {})])
    assert found.requests == 200


def test_the_length_of_answers() -> None:
    assert pricing.answer_tokens(Scores(8), 8) == 10 + 3 * 8
    assert pricing.answer_tokens(Choice(("Bad", "Average", "Good")), 0, 1) == 10 + 3 + 2  # seven letters are two tokens
    assert pricing.answer_tokens(Choice(("Bad", "Good"), 8), 8) == 10 + 8 * (3 + 1)
    assert pricing.answer_tokens(Preference(), 16) == 10
    assert pricing.answer_tokens(Text(), 8) == pricing.answer_tokens(Text(), 8, 9) == 30 * 8
    assert pricing.answer_tokens(Text(), 0, 2) == 200
    assert pricing.answer_tokens(Text(), 500, 16) == 30 * 15, "of 500 actions the rater sees 16 moments"


def test_an_answer_in_a_list_is_about_as_long_as_expected() -> None:
    for answer, reply in (
        (Choice(("Bad", "Average", "Good"), 8), Choice(("Bad", "Average", "Good"), 8).render([1] * 8)),
        (Choice(("Bad", "Good")), Choice(("Bad", "Good")).render([1])),
        (Preference(), Preference().render(0.5)),
    ):
        assert answer.read(reply)
        assert math.ceil(len(reply) / 4) <= pricing.answer_tokens(answer, 8) <= 3 * len(reply) / 4
