"""Reading answers: strict, and never a guessed number."""

import json
import re
import sys
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guerdon.answers import Choice, Scores, Text, Unreadable, answer_from_record

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


# --- an oracle: reads JSON with its own grammar, and judges numbers by their digits --------------------------------------------------

SPACE = re.compile(r"[ \t\n\r]*")
TEXT = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"')
NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
WORDS = ("true", "false", "null")
MEANT_AS_OBJECT = re.compile(r"""\{\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[\w-]+)\s*:""", re.DOTALL)


class NoJSON(Exception):
    pass


@dataclass(frozen=True)
class Digits:
    """A number as it is written."""

    sign: str
    whole: str
    fraction: str
    exponent: str

    def score(self) -> int | None:
        """The whole number from 0 to 10 that it is exactly, if it is one."""
        if len(self.exponent) > 15:
            return None  # beyond what anybody means
        digits = (self.whole + self.fraction).lstrip("0")
        power = int(self.exponent or "0") - len(self.fraction)
        short = digits.rstrip("0")
        power += len(digits) - len(short)
        if not short:
            return 0
        if power < 0 or len(short) + power > 2 or self.sign:
            return None
        value = int(short) * 10**power
        return value if value <= 10 else None


def parse(text: str, at: int) -> tuple[object, int]:
    """A JSON value and the place behind it. Objects are lists of pairs in a dict's place."""
    if text[at : at + 1] == "{":
        return parse_object(text, at)
    if text[at : at + 1] == "[":
        items: list[object] = []
        at = SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            return items, at + 1
        while True:
            value, at = parse(text, at)
            items.append(value)
            at = SPACE.match(text, at).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "]":
                return items, at + 1
            if text[at : at + 1] != ",":
                raise NoJSON
            at = SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if found := TEXT.match(text, at):
        return json.loads(found.group()), found.end()
    for word in WORDS:
        if text.startswith(word, at):
            return word == "true", at + len(word)
    if found := NUMBER.match(text, at):
        return Digits(*(part or "" for part in found.groups())), found.end()
    raise NoJSON


def parse_object(text: str, at: int) -> tuple[dict[str, object], int]:
    pairs: dict[str, object] = {}
    at = SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if text[at : at + 1] == "}":
        return pairs, at + 1
    while True:
        key = TEXT.match(text, at)
        if key is None:
            raise NoJSON
        at = SPACE.match(text, key.end()).end()  # type: ignore[union-attr]
        if text[at : at + 1] != ":":
            raise NoJSON
        value, at = parse(text, SPACE.match(text, at + 1).end())  # type: ignore[union-attr]
        name = json.loads(key.group())
        if name in pairs:
            raise NoJSON
        pairs[name] = value
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            return pairs, at + 1
        if text[at : at + 1] != ",":
            raise NoJSON
        at = SPACE.match(text, at + 1).end()  # type: ignore[union-attr]


def expected(reply: str, n: int) -> tuple[int, ...] | None:
    """What the reply says; None if it does not say so plainly."""
    body = reply.strip()
    lines = body.split("\n")
    if len(lines) > 1 and re.fullmatch(r"```\s*[a-zA-Z]*\s*", lines[0]) and body.endswith("```"):
        body = "\n".join(lines[1:])[:-3].strip()
    found: list[object] = []
    try:
        if body.startswith("["):
            whole, end = parse(body, 0)
            found = [whole] if end == len(body) else []
        else:
            at = body.find("{")
            while at >= 0:
                if MEANT_AS_OBJECT.match(body, at):
                    pairs, end = parse_object(body, at)
                    found += [pairs["scores"]] if "scores" in pairs else []
                    at = body.find("{", end)
                else:
                    at = body.find("{", at + 1)
    except NoJSON:
        return None
    answers = set()
    for candidate in found:
        if not isinstance(candidate, list) or len(candidate) != n:
            return None
        answers.add(tuple(item.score() if isinstance(item, Digits) else None for item in candidate))
    (answer,) = answers if len(answers) == 1 else (None,)
    return None if answer is None or None in answer else answer  # type: ignore[return-value]


SPELLINGS = [
    "0", "3", "7", "10", "-0", "-0.0", "0.0", "5.0", "1e1", "1E+1", "100e-1", "0.5e1", "0e999", "11", "-1", "1e400", "-1e400", "1e-400",
    "0.1", "5.5", "9.99999999999999999999", "10.0000000000000000000001", "1" + "0" * 5000, "1e" + "9" * 30, "05", "+5", ".5", "5.", "0x5",
    "1_0", "NaN", "Infinity", "-Infinity", "true", "false", "null", '"7"', '"8/10"', "8/10", "7 of 10", "N/A", "", "[7]", "[]", "{}", "٣",
    "５", "−1", '{"scores": [1, 2, 3]}', "{'scores': [1, 2, 3]}", '"\\ud800"', "[" * 30 + "]" * 30, "7, 7", "// seven",
]  # fmt: skip
"""Of a score, good and bad."""
BITS = [
    "{", "}", "[", "]", ",", ":", '"', "'", "\\", "`", "```", "```json\n", "\n", " ", "\ufeff", "\xa0", "\ud800", "\x00", "é", "-", ".",
    "e", "0", '"scores"', "scores", '"scores": [1, 2, 3]', '{"scores": [4, 5, 6]}', '"sc\\u006fres": [1, 2, 3],',
    '"note": "x {", ', "{0, 1}", "NaN", "<think>", "</think>", "//", "/*",
]  # fmt: skip
"""What gets into answers."""
AROUND = [
    "", "", "", "```json\n{}\n```", "```\n{}```", "The answer:\n{}\nas asked.", "<think>so {{0, 1}}</think>{}", "{} {}", "[{}]",
    '{{"result": {}}}', '{{"draft": {}, "scores": [1, 2,', "\\boxed{{{}}}", '"{}"', "\ufeff{}",
]  # fmt: skip
"""What answers stand in; "" for nothing."""


@st.composite
def nearly_answers(draw: st.DrawFn) -> str:
    """A good answer to THREE in which a few things went wrong, or none."""
    scores = draw(st.lists(st.sampled_from(SPELLINGS) | st.integers(0, 10).map(str), min_size=2, max_size=4))
    if draw(st.booleans()):
        scores = [str(number) for number in draw(st.lists(st.integers(0, 10), min_size=3, max_size=3))]
    text = "[" + draw(st.sampled_from([", ", ",", " ,\n"])).join(scores) + "]"
    if draw(st.integers(0, 4)):
        before, after = (draw(st.sampled_from(["", "", "", '"note": "x", ', '"scores": [1, 2, 3], '])) for _ in range(2))
        text = f'{{{before}"scores": {text}{", " + after.rstrip(", ") if after else ""}}}'
    around = draw(st.sampled_from(AROUND))
    text = around.format(text, text) if around else text
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        stop = min(len(text), place + draw(st.integers(0, 3)))
        kind = draw(st.sampled_from(["insert", "delete", "cut", "replace", "repeat"]))
        bit = draw(st.sampled_from(BITS) | st.text(max_size=2)) if kind in ("insert", "replace") else ""
        text = {
            "insert": text[:place] + bit + text[place:],
            "delete": text[:place] + text[stop:],
            "cut": text[:place],
            "replace": text[:place] + bit + text[stop:],
            "repeat": text[:stop] + text[place:],
        }[kind]
    return text


KEYS = st.sampled_from(["scores", "a"]) | st.text(max_size=2)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3))
REPLIES = (
    nearly_answers()
    | st.text()
    | st.text(alphabet=st.characters(), max_size=40)  # lone surrogates, too
    | st.lists(st.sampled_from(BITS + SPELLINGS), max_size=12).map("".join)
    | JSON.map(json.dumps)
    | JSON.map(lambda value: json.dumps({"scores": value}, ensure_ascii=False))
)


def read(reply: str) -> tuple[int, ...] | str:
    """The scores, or why there are none."""
    try:
        return THREE.read(reply)
    except Unreadable as error:
        return str(error)


def agrees_with_the_oracle(reply: str) -> None:
    found = read(reply)
    if isinstance(found, str):
        assert expected(reply, 3) is None, found
        assert len(found) < 200, "fit to quote"
    else:
        assert found == expected(reply, 3)
        assert all(type(score) is int for score in found)


@settings(max_examples=400, deadline=None)
@given(REPLIES)
def test_a_reply_is_read_exactly_or_not_at_all(reply: str) -> None:
    agrees_with_the_oracle(reply)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(REPLIES)
def test_the_same_over_a_hundred_thousand_replies(reply: str) -> None:
    agrees_with_the_oracle(reply)


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


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ('"probabilities": [[0.25, 0.75], [1, 0]]', ((0.25, 0.75), (1.0, 0.0))),
        ('"probabilities": [[0.2549, 0.7452], [1, 0]]', ((0.2549, 0.7452), (1.0, 0.0))),
        ('"probabilities": [[0.25, 0.75]]', None),
        ('"probabilities": [[0.25, 0.25, 0.5], [1, 0, 0]]', None),
        ('"probabilities": [[0.5, 0.4], [1, 0]]', None),
        ('"probabilities": [[1.5, -0.5], [1, 0]]', None),
        ('"probabilities": [["0.5", 0.5], [1, 0]]', None),
        ('"probabilities": [[true, false], [1, 0]]', None),
        ('"probabilities": {"bad": 1}', None),
        ('"confidence": 1', None),
    ],
)
def test_probabilities_beside_ratings(added: str, expected: tuple[tuple[float, ...], ...] | None) -> None:
    answer = Choice(("bad", "good"), 2)
    reply = f'{{"ratings": ["good", "bad"], {added}}}'
    assert answer.read(reply) == (1, 0), "what is added never changes what is read"
    assert answer.read_probabilities(reply) == expected
    assert answer.read_probabilities(f"{reply} or {reply}") is None


def test_nothing_is_made_up_where_no_probabilities_are_given() -> None:
    assert Choice(("bad", "good")).read_probabilities("good") is None
    assert Choice(("bad", "good")).read_probabilities('{"ratings": ["good"') is None
