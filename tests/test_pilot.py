"""A trial of a few windows: rates, the contrast with wrong instructions, the projected price. Numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from guerdon.answers import Scores
from guerdon.methods.preference import Preference
from guerdon.methods.rating import Rating
from guerdon.methods.rg_vlm import RgVlm
from guerdon.recipes.pilot import judge, wrong_instructions
from guerdon.records import Exchange, Failure, Reply, Sample, Transcript, Usage
from guerdon.samples import Config, select
from tests.memory import MemoryDataset, MemoryEpisode

METHOD = RgVlm()


def samples(count: int) -> list[Sample]:
    return list(select(MemoryDataset([MemoryEpisode(2, f"go to ball {number}") for number in range(count)])))


def heard(sample: Sample, *replies: Reply | Failure) -> Transcript:
    """The conversation that leads to these outcomes."""
    exchanges: list[Exchange] = []
    for reply in replies:
        request = METHOD.next(sample, exchanges)
        assert request is not None
        exchanges.append(Exchange(request, reply))
    return Transcript(sample, tuple(exchanges))


def scored(sample: Sample, *scores: int, dollars: float | None = 0.01) -> Transcript:
    text = Scores(len(scores)).render(scores)
    return heard(sample, Reply("0: moved\n1: moved", usage=Usage(dollars=dollars)), Reply(text, usage=Usage(dollars=dollars)))


def pairs(right: Sequence[int], wrong: Sequence[int]) -> tuple[list[Transcript], list[Transcript]]:
    chosen = samples(len(right))
    return [scored(s, v, v) for s, v in zip(chosen, right, strict=True)], [scored(s, v, v) for s, v in zip(chosen, wrong, strict=True)]


def test_a_rater_that_heeds_the_words_passes() -> None:
    pilot = judge(METHOD, *pairs([8, 9, 7, 8, 9, 8], [2, 3, 2, 1, 2, 3]), 100)
    assert pilot.contrast is not None
    assert (pilot.contrast.pairs, pilot.contrast.right) == (6, pytest.approx(49 / 6))
    assert pilot.contrast.wrong == pytest.approx(13 / 6)
    assert 5 < pilot.contrast.low < 6  # the differences are 6, 6, 5, 7, 7, 5
    assert pilot.problems == ()
    assert pilot.dollars_per_window == pytest.approx(0.02)
    assert pilot.projected_dollars == pytest.approx(2.0)


@pytest.mark.parametrize("wrong", [[8, 9, 7, 8, 9, 8], [9, 9, 9, 9, 9, 9], [7, 10, 6, 9, 9, 8]])
def test_a_rater_that_does_not_is_found_out(wrong: list[int]) -> None:
    pilot = judge(METHOD, *pairs([8, 9, 7, 8, 9, 8], wrong), 100)
    assert len(pilot.problems) == 1
    assert "score no lower by a wrong instruction" in pilot.problems[0]


def test_a_few_pairs_prove_nothing() -> None:
    pilot = judge(METHOD, *pairs([5, 5, 5, 5], [5, 5, 5, 5]), 100)
    assert pilot.problems == ()
    assert "too few" in pilot.remark


def test_unreadable_refused_and_failed_windows_are_counted() -> None:
    chosen = samples(10)
    analysis, junk = Reply("0: moved"), Reply("8/10")
    right = [scored(sample, 5, 5) for sample in chosen[:5]]
    right += [heard(sample, analysis, junk, junk) for sample in chosen[5:7]]
    right += [heard(chosen[7], Failure("refusal", final=True)), heard(chosen[8], Failure("blocked", final=True))]
    right += [heard(chosen[9], analysis, Failure("timeout", final=False))]
    pilot = judge(METHOD, right, [], 10)
    assert (pilot.unreadable, pilot.refused, pilot.failed) == (0.2, 0.2, 0.1)
    assert [problem.split(" of ")[0] for problem in pilot.problems] == ["20%", "20%"]
    assert "--pilot-instruction" in pilot.remark


def test_a_price_that_is_not_known_is_not_projected() -> None:
    right = [scored(sample, 5, 5, dollars=None) for sample in samples(2)]
    assert judge(METHOD, right, [], 10).projected_dollars is None


def test_wrong_instructions_are_those_of_other_episodes() -> None:
    words = ["go to the red ball", "go to the red box", "open the door"]
    dataset = MemoryDataset([MemoryEpisode(2, text) for text in words])
    chosen = list(select(dataset))
    found = wrong_instructions(chosen, dataset)
    assert all(sample.instruction in words and sample.instruction != own.instruction for sample, own in zip(found, chosen, strict=True))
    assert [sample.instruction for sample in found[:2]] == ["open the door", "open the door"]  # fewest words in common
    assert {sample.annotation for sample in found} == {-1}
    assert [sample.segment for sample in found] == [sample.segment for sample in chosen]
    given = wrong_instructions(chosen, dataset, instruction="open the door")
    assert [sample.segment.episode for sample in given] == [0, 1]  # it is episode 2's own


def test_without_another_instruction_there_is_nothing_to_compare() -> None:
    dataset = MemoryDataset([MemoryEpisode(2), MemoryEpisode(2)])
    assert wrong_instructions(list(select(dataset)), dataset) == []


# --- ratings and preferences --------------------------------------------------------------------------------------------------------


def rated(method: Rating, sample: Sample, reply: str) -> Transcript:
    exchanges: list[Exchange] = []
    for text in ("It is open.", reply):
        request = method.next(sample, exchanges)
        assert request is not None
        exchanges.append(Exchange(request, Reply(text, usage=Usage(dollars=0.01))))
    return Transcript(sample, tuple(exchanges))


def test_ratings_are_contrasted_by_their_mean_class() -> None:
    method = Rating()
    dataset = MemoryDataset([MemoryEpisode(1, f"go to ball {number}") for number in range(6)])
    chosen = list(select(dataset, Config(kind="pictures")))
    wrong = wrong_instructions(chosen, dataset)
    good = [rated(method, sample, '{"ratings": ["Good"]}') for sample in chosen]
    bad = [rated(method, sample, '{"ratings": ["Bad"]}') for sample in wrong]
    heeding = judge(method, good, bad, 100)
    assert heeding.contrast is not None
    assert (heeding.contrast.pairs, heeding.contrast.right, heeding.contrast.wrong) == (6, 2.0, 0.0)
    assert heeding.problems == ()
    deaf = judge(method, good, [rated(method, sample, '{"ratings": ["Good"]}') for sample in wrong], 100)
    assert len(deaf.problems) == 1


def test_preferences_have_no_wrong_instruction() -> None:
    method = Preference()
    dataset = MemoryDataset([MemoryEpisode(4, f"go to ball {number}") for number in range(6)])
    chosen = list(select(dataset, Config(kind="picture pairs", sample=6)))
    assert wrong_instructions(chosen, dataset) == []
    exchanges = []
    request = method.next(chosen[0], [])
    assert request is not None
    exchanges.append(Exchange(request, Reply("The second one.")))
    request = method.next(chosen[0], exchanges)
    assert request is not None
    exchanges.append(Exchange(request, Reply('{"better": "second"}')))
    pilot = judge(method, [Transcript(chosen[0], tuple(exchanges))], [], 100)
    assert pilot.contrast is None
    assert pilot.remark == "whether the rater heeds the words cannot be told from preferences: by wrong words neither of two is better"
    assert pilot.problems == ()
