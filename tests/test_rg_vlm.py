"""RG-VLM: what is asked, in which order, and how the answers are read."""

from pathlib import Path

import pytest

from guerdon.answers import Scores, Text
from guerdon.errors import UsageError
from guerdon.methods.rg_vlm import RgVlm
from guerdon.records import Exchange, Failure, Reply, Request, Sample, Transcript
from guerdon.samples import Config, select
from tests.memory import MemoryDataset, MemoryEpisode

DATASET = MemoryDataset([MemoryEpisode(11, instruction="go to the red ball, then open the $5 door")])


def sample(number: int = 0) -> Sample:
    return list(select(DATASET, Config()))[number]


def converse(method: RgVlm, subject: Sample, *outcomes: Reply | Failure | str) -> Transcript:
    """Plays `outcomes` as answers for as long as the method asks."""
    exchanges: list[Exchange] = []
    remaining = list(outcomes)
    while (request := method.next(subject, exchanges)) is not None:
        outcome = remaining.pop(0)
        exchanges.append(Exchange(request, Reply(outcome) if isinstance(outcome, str) else outcome))
    assert not remaining, "the method stopped asking too early"
    return Transcript(subject, tuple(exchanges))


ANALYSIS = "Here is what I see.\n" + "\n".join(f"{i}: move - line {i}" for i in range(8)) + "\n7: a second line about 7"
GOOD = '{"scores": [0, 1, 2, 3, 4, 5, 6, 10]}'


def test_two_turns_of_one_conversation_about_one_picture() -> None:
    transcript = converse(RgVlm(), sample(), ANALYSIS, GOOD)
    first, second = (exchange.request for exchange in transcript.exchanges)
    assert (first.answer, second.answer) == (Text(), Scores(8, 0, 10))
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[0] is first.messages[0]
    assert second.messages[1].text == ANALYSIS
    assert len(first.messages[0].pictures) == 1
    assert len(first.evidence.frames) == 9
    assert '"go to the red ball, then open the $5 door"' in first.messages[0].text
    assert "0: left\n1: right\n2: forward" in first.messages[0].text
    assert "exactly 8 scores" in second.messages[-1].text
    assert "$" not in second.messages[-1].text.replace("$5", "")


def test_labels_carry_score_and_their_own_line() -> None:
    labels = RgVlm().read(converse(RgVlm(), sample(), ANALYSIS, GOOD))
    assert [label.value for label in labels] == [0, 1, 2, 3, 4, 5, 6, 10]
    assert [(label.start, label.stop) for label in labels] == [(i, i + 1) for i in range(8)]
    assert [label.rationale for label in labels] == [f"move - line {i}" for i in range(8)]
    assert {(label.state, label.asked, label.answered, label.unit) for label in labels} == {("labelled", 2, 2, "transition")}


def test_a_short_tail_asks_for_as_many_scores_as_it_has_actions() -> None:
    labels = RgVlm().read(converse(RgVlm(), sample(1), "0: a\n1: b\n2: c", '{"scores": [1, 2, 3]}'))
    assert [(label.start, label.value) for label in labels] == [(8, 1), (9, 2), (10, 3)]


def test_one_repair_turn_that_quotes_the_error() -> None:
    transcript = converse(RgVlm(), sample(1), ANALYSIS, '{"scores": [1, 2]}', '{"scores": [1, 2, 3]}')
    repair = transcript.exchanges[-1].request
    assert repair.purpose == "repair"
    assert "the list has 2 scores, 3 were asked for" in repair.messages[-1].text
    assert [label.value for label in RgVlm().read(transcript)] == [1, 2, 3]


def test_after_the_repair_the_window_is_unreadable() -> None:
    labels = RgVlm().read(converse(RgVlm(), sample(1), ANALYSIS, "8/10", '{"scores": [1, 2, 11]}'))
    assert {(label.state, label.cause, label.value) for label in labels} == {("unreadable", "unreadable", None)}


@pytest.mark.parametrize(
    ("cause", "state"), [("timeout", "failed"), ("quota", "failed"), ("blocked", "refused"), ("refusal", "refused"), ("empty", "failed")]
)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_failure_ends_the_conversation_and_keeps_its_cause(cause: str, state: str, turn: int) -> None:
    answers: list[str | Failure] = [ANALYSIS, "junk"][:turn]
    transcript = converse(RgVlm(), sample(), *answers, Failure(cause, final=False))  # type: ignore[arg-type]
    labels = RgVlm().read(transcript)
    assert {(label.state, label.cause, label.value, label.answered) for label in labels} == {(state, cause, None, turn)}
    assert len(labels) == 8


@pytest.mark.parametrize(
    ("line", "rationale"),
    [
        ("3: move forward - nearer", "move forward - nearer"),
        ("- 3. nearer", "nearer"),
        ("**3**: nearer", "nearer"),
        ("3) nearer", "nearer"),
        ("Action 3: nearer", "nearer"),
        ("timestep three: nearer", ""),
        ("30: nearer", ""),
        ("3:", ""),
        ("3 -> 4: nearer", "nearer"),
        ("3 to 4 (left): nearer", "left): nearer"),
    ],
)
def test_lines_are_found_by_their_number(line: str, rationale: str) -> None:
    labels = RgVlm().read(converse(RgVlm(), sample(), line, GOOD))
    assert labels[3].rationale == rationale


def test_the_second_turn_may_go_to_another_rater() -> None:
    first, second = (exchange.request for exchange in converse(RgVlm(score_rater=1), sample(), ANALYSIS, GOOD).exchanges)
    assert (first.rater, second.rater) == (0, 1)


def test_the_question_depends_on_what_is_asked_and_on_nothing_else() -> None:
    first = RgVlm().next(sample(), [])
    again = RgVlm().next(sample(), [])
    assert first is not None
    assert again is not None
    assert first.question == again.question
    assert first.question != RgVlm(RgVlm.Config(tile=64)).next(sample(), []).question  # type: ignore[union-attr]
    assert first.question != RgVlm().next(sample(1), []).question  # type: ignore[union-attr]
    moved = Request.from_record({**first.to_record(), "subject": [9, 0, 8, 0]}, first.pictures)
    assert moved.question == first.question
    assert Request.from_record(first.to_record(), first.pictures) == first


PROMPT = "[system]\ns\n[analyse]\nlook: $instruction\n[score]\nscore $count\n[repair]\nno: $error\n"


def test_a_prompt_file_replaces_the_texts_and_the_version(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# a comment\n" + PROMPT)
    method = RgVlm(RgVlm.Config(prompt=path))
    request = method.next(sample(), [])
    assert request is not None
    assert request.messages[0].text == "look: go to the red ball, then open the $5 door"
    assert request.system == "s"
    assert len({made.version for made in (method, RgVlm(), RgVlm(RgVlm.Config(note="red is you")), RgVlm(RgVlm.Config(tile=64)))}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROMPT.replace("[repair]", "[mend]"), r"look at \[repair\]"),
        (PROMPT.replace("$count", "$number"), r"section \[score\] uses \$number"),
        (PROMPT.replace("$count", "5 $ each"), r"section \[score\] has a lone '\$'"),
        ("", "a prompt file has the sections"),
    ],
)
def test_a_bad_prompt_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        RgVlm(RgVlm.Config(prompt=path))
    assert str(path) in str(caught.value)


def test_a_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the prompt"):
        RgVlm(RgVlm.Config(prompt=tmp_path / "none.txt"))
