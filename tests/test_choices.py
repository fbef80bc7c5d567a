"""Reading named classes and preferences: as strict as scores, and never a guessed label."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guerdon.answers import Choice, Preference, Unreadable, answer_from_record
from tests import tiny_vlm
from tests.test_answers import BITS, JSON, MEANT_AS_OBJECT, NoJSON, parse, parse_object

LEVELS = ("Bad", "Average", "Good")
THREE, ONE = Choice(LEVELS, 3), Choice(LEVELS)
PREFERENCE = Preference()


@pytest.mark.parametrize(
    "reply",
    [
        '{"ratings": ["Bad", "Good", "Average"]}',
        '```json\n{"ratings": ["Bad", "Good", "Average"]}\n```',
        'The analysis gives:\n{"ratings": ["Bad", "Good", "Average"]}\nas asked.',
        '["Bad", "Good", "Average"]',
        '```\n["Bad", "Good", "Average"]\n```',
        '{"ratings": ["bad", "GOOD ", "\\n average"]}',
        '{"note": 1, "ratings": ["Bad", "Good", "Average"]}',
        '{"ratings": ["Bad", "Good", "Average"]} and once more {"ratings": ["bad", "good", "average"]}',
        '\\boxed{{"ratings": ["Bad", "Good", "Average"]}}',
        'one of {Bad, Good}: {"ratings": ["Bad", "Good", "Average"]}',
    ],
)
def test_ratings_are_read_as_places_among_the_options(reply: str) -> None:
    assert THREE.read(reply) == (0, 2, 1)


@pytest.mark.parametrize(
    "reply",
    ["Good", "good ", " GOOD\n", "Good.", '"Good"', "'Good'", "**Good**", "`Good`.", "```\nGood\n```", '["Good"]', '{"ratings": ["good"]}'],
)
def test_a_single_rating_may_be_the_bare_name(reply: str) -> None:
    assert ONE.read(reply) == (2,)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON object"),
        ("I cannot help with that.", "no JSON object"),
        ("Good, Good, Bad", "no JSON object"),
        ("Good", "with 3 of the options Bad, Average, Good"),
        ('{"ratings": ["Bad", "Good"]}', "2 ratings, 3 were asked for"),
        ('{"ratings": ["Bad", "Good", "Good", "Good"]}', "4 ratings, 3 were asked for"),
        ('{"ratings": []}', "0 ratings"),
        ('{"ratings": [0, 2, 1]}', "rating 0 is 0, none of the options"),
        ('{"ratings": ["Bad", "2", "Good"]}', 'rating 1 is "2", none of the options'),
        ('{"ratings": ["Bad", "Great", "Good"]}', 'rating 1 is "Great", none of the options Bad, Average, Good'),
        ('{"ratings": ["Bad", "Good.", "Good"]}', 'rating 1 is "Good.", none of the options'),
        ('{"ratings": ["Bad", "Bad or Good", "Good"]}', "none of the options"),
        ('{"ratings": ["Bad", "", "Good"]}', "none of the options"),
        ('{"ratings": ["Bad", null, "Good"]}', "rating 1 is null"),
        ('{"ratings": ["Bad", true, "Good"]}', "rating 1 is true"),
        ('{"ratings": [["Bad"], "Good", "Good"]}', "none of the options"),
        ('{"ratings": "Bad"}', "must be a list of 3"),
        ('{"ratings": {"0": "Bad"}}', "must be a list"),
        ('{"ratings": ["Bad", "Good", "Average"', "damaged or cut off"),
        ('{"ratings": ["Bad", "Good", Average]}', "damaged or cut off"),
        ("{'ratings': ['Bad', 'Good', 'Average']}", "damaged or cut off"),
        ('{"ratings": ["Bad", "Good", "Good"]} or {"ratings": ["Bad", "Good", "Bad"]}', "2 lists of ratings that differ"),
        ('{"ratings": ["Bad", "Good", "Good"]} or {"ratings": ["Bad",', "damaged or cut off"),
        ('{"ratings": ["Bad", "Good", "Good"], "ratings": ["Bad", "Good", "Bad"]}', "a key is given twice"),
        ('{"result": {"ratings": ["Bad", "Good", "Good"]}}', "no JSON object"),
        ('{"Ratings": ["Bad", "Good", "Good"]}', "no JSON object"),
        ('{"scores": ["Bad", "Good", "Good"]}', "no JSON object"),
        ('["Bad", "Good", "Average"] is my answer', "no JSON object"),
        ('{"ratings":' + "[" * 5000, "damaged or cut off"),
        ("{" * 5000, "no JSON object"),
    ],
)
def test_other_ratings_are_unreadable_with_their_reason(reply: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)):
        THREE.read(reply)


@pytest.mark.parametrize(
    "reply",
    ["not Good", "Good enough", "Good!", "Good?", "Bad Good", "GoodGood", "- Good", "Rating: Good", "2", "(Good)", '["Good", "Good"]', "..",
     '{"ratings": "Good"}', '{"rating": "Good"}', '"Good" or "Bad"', 'Good\n{"ratings": ["Bad"'],
)  # fmt: skip
def test_a_single_rating_is_the_name_and_nothing_else(reply: str) -> None:
    with pytest.raises(Unreadable):
        ONE.read(reply)


def test_options_that_marks_tell_apart_are_read_only_when_they_are_exact() -> None:
    either = Choice(("A", "A.", "B"))
    assert (either.read("a"), either.read("A."), either.read("B.")) == ((0,), (1,), (2,))
    with pytest.raises(Unreadable):
        either.read('"A"')


def test_a_reason_is_fit_to_quote_whatever_the_options() -> None:
    many = Choice(tuple(f"class number {number} of very many" for number in range(99)), 3)
    for reply in ("?", '{"ratings": 1}', '{"ratings": ["x", "y", "z"]}', json.dumps({"ratings": ["y" * 500] * 3})):
        with pytest.raises(Unreadable) as caught:
            many.read(reply)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"better": "first"}', 0.0),
        ('{"better": "neither"}', 0.5),
        ('{"better": "second"}', 1.0),
        ('```json\n{"better": "Second "}\n```', 1.0),
        ('So {"better": "first"}, that is {"better": "FIRST"}.', 0.0),
        ("Second.", 1.0),
        (" first\n", 0.0),
        ('"neither"', 0.5),
        ("**Second**", 1.0),
    ],
)
def test_preferences_are_read(reply: str, value: float) -> None:
    assert PREFERENCE.read(reply) == value


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON object"),
        ("Image 2", "no JSON object"),
        ("2", "no JSON object"),
        ("-1", "no JSON object"),
        ("0.5", "no JSON object"),
        ("unsure", "no JSON object"),
        ("both", "no JSON object"),
        ("the second one", "no JSON object"),
        ("first or second", "no JSON object"),
        ('["first"]', "no JSON object"),
        ('[{"better": "first"}]', "no JSON object"),
        ('{"better": ["first"]}', '"better" is ["first"], not "first", "second" or "neither"'),
        ('{"better": "both"}', '"better" is "both"'),
        ('{"better": "none"}', '"better" is "none"'),
        ('{"better": ""}', '"better" is ""'),
        ('{"better": null}', '"better" is null'),
        ('{"better": 1}', '"better" is 1'),
        ('{"better": 0.5}', '"better" is 0.5'),
        ('{"better": false}', '"better" is false'),
        ('{"better": "first", "better": "second"}', "a key is given twice"),
        ('{"better": "first"} {"better": "second"}', "2 preferences that differ"),
        ('{"better": "first"} {"better": "sec', "damaged or cut off"),
        ('{"result": {"better": "first"}}', "no JSON object"),
    ],
)
def test_nothing_but_neither_is_no_preference(reply: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)):
        PREFERENCE.read(reply)


# --- what is written is read back, whatever stands around it ------------------------------------------------------------------------

_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
OPTIONS = st.lists(_names, min_size=2, max_size=6, unique_by=lambda name: name.strip().casefold()).filter(
    lambda names: all(name.strip().casefold() for name in names)
)
PROSE = st.text(st.characters(codec="utf-8", exclude_characters="{[`")) | st.sampled_from(["a set {0, 1}: ", "{{", "Thus:\n"])
"""What holds no object of its own and begins no list."""


def among(answer: str, before: str, after: str, fenced: bool) -> str:
    """An answer with prose around it; what is nothing but prose before it does not begin with what would make it a list."""
    if fenced:
        return f"```json\n{answer}\n```"
    return f"{before}{answer}{after}"


@given(options=OPTIONS, before=PROSE, after=PROSE, fenced=st.booleans(), data=st.data())
def test_ratings_are_read_back_from_among_prose(options: list[str], before: str, after: str, fenced: bool, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(options) - 1), min_size=1, max_size=9))
    specification = Choice(tuple(options), len(chosen))
    answer = specification.render(chosen)
    assert specification.read(answer) == tuple(chosen)
    assert specification.read(among(answer, before, after, fenced)) == tuple(chosen)
    assert specification.read(f"{answer}\n{answer}") == tuple(chosen)


@given(value=st.sampled_from([0.0, 0.5, 1.0]), before=PROSE, after=PROSE, fenced=st.booleans())
def test_preferences_are_read_back_from_among_prose(value: float, before: str, after: str, fenced: bool) -> None:
    assert PREFERENCE.read(among(PREFERENCE.render(value), before, after, fenced)) == value


# --- an oracle: JSON by its own grammar, names by a pattern --------------------------------------------------------------------------

ALONE = r"""["'.`*_]*\s*({})\s*["'.`*_]*"""


def expected(reply: str, key: str, names: tuple[str, ...], n: int | None) -> tuple[int, ...] | None:
    """Which names the reply gives for `key`, a list of `n` or (None) a single one; None if it does not say so plainly."""
    body = reply.strip()
    lines = body.split("\n")
    if len(lines) > 1 and re.fullmatch(r"```\s*[a-zA-Z]*\s*", lines[0]) and body.endswith("```"):
        body = "\n".join(lines[1:])[:-3].strip()
    found: list[object] = []
    try:
        if body.startswith("["):
            whole, end = parse(body, 0)
            found = [whole] if end == len(body) and n is not None else []
        else:
            at = body.find("{")
            while at >= 0:
                if MEANT_AS_OBJECT.match(body, at):
                    pairs, end = parse_object(body, at)
                    found += [pairs[key]] if key in pairs else []
                    at = body.find("{", end)
                else:
                    at = body.find("{", at + 1)
    except NoJSON:
        return None
    if not found:
        alone = re.fullmatch(ALONE.format("|".join(names)), body, re.IGNORECASE)
        return (names.index(alone.group(1).lower()),) if alone and n in (None, 1) else None
    answers = set()
    for candidate in found:
        items = [candidate] if n is None else candidate
        if not isinstance(items, list) or len(items) != (n or 1):
            return None
        plain = [item.strip().casefold() if isinstance(item, str) else None for item in items]
        answers.add(tuple(names.index(item) if item in names else -1 for item in plain))
    (answer,) = answers if len(answers) == 1 else ((-1,),)
    return None if -1 in answer else answer


WORDS = [
    '"Bad"', '"good "', '"GOOD"', '"average"', '"first"', '"Second"', '"neither"', "Good", "second", "First", "neither.", '"Good."', '"bad',
    "'Good'", "0", "2", "0.5", "null", "true", "[]", '["Good"]', '"\\u0047ood"', '"\\ud800"', '"very good"', '"both"', '""', "**bad**",
]  # fmt: skip
PIECES = [
    '{"ratings": ["Good"]}', '{"ratings": ["Bad", "Good", "Average"]}', '{"better": "first"}', '"ratings": ', '"better": ', "{", "}", "[",
    "]", ", ", *WORDS,
]  # fmt: skip
AROUND = [
    "", "", "```json\n{}\n```", "So:\n{}\nas asked.", "{} {}", "[{}]", '{{"result": {}}}', "\\boxed{{{}}}", '"{}"', "\ufeff{}", "**{}**.",
]  # fmt: skip


@st.composite
def nearly_named(draw: st.DrawFn) -> str:
    """An answer in which a few things went wrong, or none."""
    values = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    text = draw(st.sampled_from(['{{"ratings": [{}]}}', '{{"better": {}}}', "[{}]", "{}"])).format(", ".join(values))
    around = draw(st.sampled_from(AROUND))
    text = around.format(text, text) if around else text
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        stop = min(len(text), place + draw(st.integers(0, 3)))
        bit = draw(st.sampled_from(["", "", *BITS, *WORDS]) | st.text(max_size=2))
        text = text[:place] + bit + text[stop:]
    return text


KEYS = st.sampled_from(["ratings", "better", "a"])
REPLIES = (
    nearly_named()
    | st.text(st.characters(), max_size=30)  # lone surrogates, too
    | st.lists(st.sampled_from(PIECES + BITS), max_size=10).map("".join)
    | st.dictionaries(KEYS, JSON, max_size=3).map(json.dumps)
    | JSON.map(json.dumps)
)
PLAIN_LEVELS = tuple(level.lower() for level in LEVELS)


def read(specification: Choice | Preference, reply: str) -> tuple[int, ...] | float | str:
    """What the reply says, or why it says nothing."""
    try:
        return specification.read(reply)
    except Unreadable as error:
        return str(error)


def agrees_with_the_oracle(reply: str) -> None:
    for specification, key, names, n in (
        (ONE, "ratings", PLAIN_LEVELS, 1), (THREE, "ratings", PLAIN_LEVELS, 3), (PREFERENCE, "better", Preference.OPTIONS, None),
    ):  # fmt: skip
        right, found = expected(reply, key, names, n), read(specification, reply)
        if isinstance(found, str):
            assert right is None, found
            assert len(found) < 200, "fit to quote"
        else:
            assert right is not None, found
            assert found == (right if n else right[0] / 2)
            assert type(found) is (tuple if n else float)


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


@pytest.mark.parametrize("reply", ["```" + "\n" * 60_000 + "x", '{"x' * 60_000, "{ " * 60_000, "." * 200_000, '"' * 200_000 + "x"])
@pytest.mark.timeout(20)
def test_no_reply_takes_for_ever_to_read(reply: str) -> None:
    for specification in (ONE, THREE, PREFERENCE):
        with pytest.raises(Unreadable):
            specification.read(reply)


# --- specifications -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("specification", [Choice(("No", "Yes")), THREE, PREFERENCE])
def test_records_round_trip(specification: Choice | Preference) -> None:
    assert answer_from_record(json.loads(json.dumps(specification.to_record()))) == specification


def test_schemas_name_the_options() -> None:
    ratings = THREE.schema()["properties"]["ratings"]
    assert (ratings["minItems"], ratings["maxItems"], ratings["items"]) == (3, 3, {"type": "string", "enum": ["Bad", "Average", "Good"]})
    assert PREFERENCE.schema()["properties"]["better"] == {"type": "string", "enum": ["first", "neither", "second"]}


@pytest.mark.parametrize("wrong", [{"n": 0}, {"options": ("Bad",)}, {"options": ("Bad", "bad ")}, {"options": ("Bad", " ")}])
def test_a_specification_checks_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Choice needs"):
        Choice(**{"options": LEVELS, **wrong})


def test_what_is_no_answer_is_not_written() -> None:
    for value in (0.3, -0.5, 2.0):
        with pytest.raises(ValueError):
            PREFERENCE.render(value)
    for place in (-1, 3):
        with pytest.raises(ValueError, match="positions 0 to 2"):
            THREE.render([0, place, 1])


@pytest.mark.parametrize("specification", [ONE, THREE, Choice(("Sehr schlecht", "gut", "größer"), 20), PREFERENCE])
@pytest.mark.parametrize("tokens", ["bytes", "words"])
def test_a_local_model_can_write_nothing_else(tokens: tiny_vlm.Tokens, specification: Choice | Preference) -> None:
    pytest.importorskip("llguidance")
    pytest.importorskip("transformers")
    from guerdon.providers._grammar import Vocabulary

    tokenizer = tiny_vlm._tokenizer(tokens)
    vocabulary = Vocabulary(tokenizer, len(tokenizer) + 3, [1])
    for seed in range(5):
        random = np.random.default_rng(seed)
        constraint = vocabulary.constraint(specification)
        assert constraint is not None
        written: list[int] = []
        while not constraint.complete:
            written.append(int(random.choice(np.flatnonzero(constraint.allowed()))))
            constraint.advance(written[-1])
            assert len(written) < 2000
        found: Any = specification.read(vocabulary.text(written))
        assert json.loads(vocabulary.text(written)) == json.loads(specification.render(found))
