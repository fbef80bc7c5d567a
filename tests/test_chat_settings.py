"""What raters that are asked over HTTP share: waiting times, causes that are told in words only, schemas in words."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from guerdon.answers import Scores
from guerdon.providers._settings import in_words, retry_after, status_cause, told_cause, without_thinking
from guerdon.records import Cause


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed Oct 21 07:28:00 2015"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_come_is_so_many_seconds_away() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(90, abs=5)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("Your credit balance is too low to access the API", "quota"),
        ("Key limit exceeded (total limit)", "quota"),
        ("Insufficient credits. This account never purchased credits.", "quota"),
        ("Your project has reached its spend limit", "quota"),
        ("insufficient_quota", "quota"),
        ("billing_hard_limit_reached", "quota"),
        ("billing_not_active", "quota"),
        ("Request too large for gpt-4.1 on tokens per min: Limit 30000, Requested 31000", "bad_request"),
        ("content_policy_violation", "blocked"),
        ("Output blocked by content filtering policy", "blocked"),
        ("Invalid prompt: your prompt was flagged as potentially violating our usage policy", "blocked"),
        ("model-x is not a multimodal model", "unsupported"),
        ("This model does not support image inputs", "unsupported"),
        ("This model doesn't support images", "unsupported"),
        ("messages[0]: unknown variant `image_url`, expected `text`", "unsupported"),
        ("Invalid content type. image_url is only supported by certain models.", "unsupported"),
        ("No endpoints found that support image input", "unsupported"),
        ("You exceeded your current quota, please check your plan and billing details", None),  # Google: also for a minute's limit
        ("Rate limit reached. Upgrade at https://console.example/settings/billing", None),
        ("You uploaded an unsupported image. Please make sure your image has of one the following formats", None),
        ("Incorrect API key provided", None),
        ("The model is overloaded", None),
    ],
)
def test_some_causes_are_told_in_words_only(words: str, cause: Cause | None) -> None:
    told = told_cause(None, words, 3)
    assert (told[0] if told else None) == cause
    assert told is None or told[1] == (cause != "quota")  # an account can be filled up; the rest would only repeat itself


@pytest.mark.parametrize(
    ("status", "cause", "final"),
    [
        (307, "network", False),
        (400, "bad_request", True),
        (401, "authentication", False),
        (404, "bad_request", True),
        (409, "overload", False),
        (429, "rate_limit", False),
        (451, "blocked", True),
        (499, "network", False),
        (500, "overload", False),
        (501, "unsupported", True),
        (524, "timeout", False),
        (529, "overload", False),
        (599, "overload", False),
    ],
)
def test_a_status_has_one_cause_for_all_raters(status: int, cause: Cause, final: bool) -> None:
    assert status_cause(status) == (cause, final)


def test_thoughts_are_cut_off() -> None:
    scores = '{"scores": [3, 9]}'
    for text in (
        f"<think>\n{scores}\n</think>\n{scores}",
        f"so\n</think>\n\n{scores}",
        f"◁think▷1◁/think▷{scores}",
        f"[THINK]x[/THINK]{scores}",
    ):
        assert without_thinking(text) == scores
    assert without_thinking(f"<think> {scores}") == ""
    assert without_thinking("0: I think </so> it moved") == "0: I think </so> it moved"


def test_a_schema_in_words_is_the_schema() -> None:
    words = in_words(Scores(3).schema())
    assert json.loads(words[words.index("{") :]) == Scores(3).schema()
