"""Reading answers: strict, and never a guessed number."""

import json
import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.answers import Scores, Text, Unreadable, answer_from_record

THREE = Scores(3)


@pytest.mark.parametrize(
    "reply",
    [
        '{"scores": [0, 5, 10]}',
        '```json\n{"scores": [0, 5, 10]}\n```',
        'The analysis gives:\n{"scores": [0, 5, 10]}\nas asked.',
        "[0, 5, 10]",
        "```\n[0, 5, 10]\n```",
        '{"scores": [0, 5.0, 1e1]}',
        '{"note": "x", "scores": [0, 5, 10]}',
        'first {"scores": [0, 5, 10]} and once more {"scores": [0, 5, 10]}',
        'a set {0, 1} of levels: {"scores": [0, 5, 10]}',
        '\\boxed{{"scores": [0, 5, 10]}}',
        '{"say \\"so\\"": 1, "scores": [-0.0, 5, 10]}',
        '{"note": 1' + "0" * 5000 + ', "scores": [0, 5, 10]}',
    ],
)
def test_reads_exactly_what_was_asked(reply: str) -> None:
    assert THREE.read(reply) == (0, 5, 10)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON object"),
        ("N/A", "no JSON object"),
        ("I cannot help with that.", "no JSON object"),
        ('{"scores": [0, 5]}', "2 scores, 3 were asked for"),
        ('{"scores": [0, 5, 10, 1]}', "4 scores, 3 were asked for"),
        ('{"scores": []}', "0 scores"),
        ('{"scores": ["8/10", 5, 5]}', 'score 0 is "8/10", not a number'),
        ('{"scores": ["7", 5, 5]}', "not a number"),
        ('{"scores": [0, 5, 11]}', "score 2 is 11, outside 0..10"),
        ('{"scores": [0, -1, 10]}', "score 1 is -1, outside 0..10"),
        ('{"scores": [0, \u22121, 10]}', "damaged"),
        ('{"scores": [0, 5.5, 10]}', "score 1 is 5.5, not a whole number"),
        ('{"scores": [0, NaN, 10]}', "NaN is not a number"),
        ('{"scores": [0, 1e999, 10]}', "score 1 is 1E+999, outside 0..10"),
        ('{"scores": [0, 1e99999999999999999999, 10]}', "not a whole number"),
        ('{"scores": [0, 5.0000000000000000001, 10]}', "score 1 is 5.0000000000000000001, not a whole number"),
        ('{"scores": [0, 5, 9.9999999999999999999]}', "not a whole number"),
        ('{"scores": [0, 5, 1' + "0" * 5000 + "]}", "outside 0..10"),
        ('{"scores": [0, true, 10]}', "score 1 is true, not a number"),
        ('{"scores": [0, null, 10]}', "score 1 is null, not a number"),
        ('{"scores": [[0, 5, 10]]}', "1 scores"),
        ('{"scores": "0, 5, 10"}', "must be a list"),
        ('{"scores": {"0": 1}}', "must be a list"),
        ('{"scores": [0, 5, 10', "damaged or cut off"),
        ('{"example": {"scores": [0, 5, 10]}, "scores": [1, 5', "damaged or cut off"),
        ('{"example": {"scores": [0, 5, 10]}, "scores": [1, 5, N/A]}', "damaged or cut off"),
        ("{'example': {\"scores\": [0, 5, 10]}, 'scores': [1, 5, 5]}", "damaged or cut off"),
        ('{"scores": [0, 5, 10]} or rather {"scores": [1, 5,', "damaged or cut off"),
        ('{"result": {"scores": [0, 5, 10]}}', "no JSON object"),
        ('{"Scores": [0, 5, 10]}', "no JSON object"),
        ('{"scores": [0, 5, 10], "scores": [1, 5, 10]}', "a key is given twice"),
        ('{"scores": [0, 5, 10]} or {"scores": [1, 5, 10]}', "lists of scores that differ"),
        ("scores: 0, 5, 10", "no JSON object"),
        ("[0, 5, 10] is my answer", "no JSON object"),
        ("{" * 5000, "no JSON object"),
        ('{"scores":' + "[" * 5000, "damaged or cut off"),
    ],
)
def test_everything_else_is_unreadable_with_its_reason(reply: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)):
        THREE.read(reply)


@given(st.lists(st.integers(0, 10), min_size=1, max_size=12))
def test_written_answers_are_read_back(scores: list[int]) -> None:
    specification = Scores(len(scores))
    assert specification.read(specification.render(scores)) == tuple(scores)


@given(st.text())
def test_junk_never_becomes_a_number(reply: str) -> None:
    try:
        scores = THREE.read(reply)
    except Unreadable:
        return
    assert json.loads(reply) == list(scores), "only a bare list of three numbers may be read from text that hypothesis made up"


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5)


@given(st.recursive(LEAVES, lambda children: st.lists(children, max_size=4), max_leaves=8))
def test_any_json_is_read_exactly_or_not_at_all(value: object) -> None:
    try:
        scores = THREE.read(json.dumps({"scores": value}))
    except Unreadable:
        return
    assert list(scores) == value
    assert all(0 <= score <= 10 for score in scores)


@pytest.mark.parametrize("reply", ["```" + "\n" * 60_000 + "x", '{"x' * 60_000, "{ " * 60_000, "{a" * 60_000, '{"a":' * 60_000])
def test_no_reply_takes_long_to_read(reply: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable):
        THREE.read(reply)
    assert time.process_time() - began < 1.0


def test_deep_nesting_is_unreadable_at_every_depth() -> None:
    """There is a depth at which Python can still read, but not write."""
    for depth in (*range(sys.getrecursionlimit() - 250, sys.getrecursionlimit() + 10), 100_000):
        with pytest.raises(Unreadable):
            THREE.read('{"scores": [' + "[" * depth + "]" * depth + ", 5, 10]}")


def test_text_needs_a_visible_character() -> None:
    assert Text().read("  words ") == "words"
    with pytest.raises(Unreadable):
        Text().read(" \n ")


@pytest.mark.parametrize("specification", [Text(), Scores(4), Scores(2, -1, 1)])
def test_records_round_trip(specification: Text | Scores) -> None:
    assert answer_from_record(json.loads(json.dumps(specification.to_record()))) == specification


def test_schema_says_how_many_and_between_what() -> None:
    items = Scores(8, 0, 10).schema()["properties"]["scores"]
    assert (items["minItems"], items["maxItems"], items["items"]) == (8, 8, {"type": "integer", "minimum": 0, "maximum": 10})


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 2, "low": 3, "high": 3}])
def test_a_specification_checks_itself(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Scores needs"):
        Scores(**wrong)
