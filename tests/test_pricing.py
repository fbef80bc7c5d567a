"""What asking costs: the vendors' own worked examples, and bounds that hold."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import genai_prices
import numpy as np
import pytest
from genai_prices import data_snapshot
from genai_prices.types import TimeOfDateConstraint
from hypothesis import given
from hypothesis import strategies as st

from guerdon import pricing
from guerdon.answers import AnswerSpec, Scores, Text
from guerdon.errors import UsageError
from guerdon.records import Evidence, Message, Picture, PictureFormat, Price, Request, Subject

KNOWN = [
    ("openai", "gpt-5.6-luna"), ("openai", "gpt-5.5"), ("openai", "gpt-5.4"), ("openai", "gpt-5.2"), ("openai", "gpt-5-mini"),
    ("openai", "gpt-5-nano"), ("openai", "gpt-4.1-mini"), ("openai", "gpt-4.1-nano"), ("openai", "o4-mini"), ("openai", "gpt-5.1"),
    ("openai", "gpt-4o"), ("openai", "gpt-4o-mini"), ("openai", "o3"), ("anthropic", "claude-haiku-4-5"), ("anthropic", "claude-opus-4-7"),
    ("google", "gemini-2.5-flash"), ("google", "gemini-3.8-flash"),
]  # fmt: skip


def request(
    *sizes: tuple[int, int], text: str = "What happens?", system: str = "", answer: AnswerSpec | None = None, actions: int = 8
) -> Request:
    """A first turn about pictures of (width, height)."""
    pictures = tuple(Picture(str(number), np.broadcast_to(np.uint8(0), (height, width, 3))) for number, (width, height) in enumerate(sizes))
    return Request(
        evidence=Evidence("go", ("left",) * actions, ()),
        messages=(Message("user", text, pictures),),
        answer=answer or Text(),
        purpose="analyse",
        subject=Subject(0, 0, actions),
        system=system,
    )


# --- pictures -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "width", "height", "tokens"),
    [
        # developers.openai.com, "Images and vision": "A 1024 x 1024 image needs 32 x 32 = 1024 patches. No resizing is needed. The billable
        # image input is ceil(1024 x 1.2) = 1229 tokens."
        ("openai", "gpt-5.4", 1024, 1024, 1229),
        # "A 2048 x 2048 image initially needs 64 x 64 = 4096 patches. The patch budget reduces it to 1600 x 1600 pixels, or 50 x 50 = 2500
        # patches. The estimate is ceil(2500 x 1.2) = 3000 tokens."
        ("openai", "gpt-5.4", 2048, 2048, 3000),
        ("openai", "gpt-5.4-mini-2026-03-17", 2048, 2048, 3000),
        # The same guide, version of spring 2026, for a budget of 1,536 patches: "A 1800 x 2400 image ... 1452" (33 x 44 patches), times the
        # multiplier.
        ("openai", "gpt-4.1-nano", 1800, 2400, math.ceil(1452 * 2.46)),
        ("openai", "o4-mini", 1024, 1024, math.ceil(1024 * 1.72)),
        # No budget of patches for `auto`: 3840 x 2160 is 120 x 68 patches.
        ("openai", "gpt-5.6-sol", 3840, 2160, math.ceil(120 * 68 * 1.2)),
        # Tiles, from the guide's earlier versions: "A 1024 x 1024 square image in detail: high mode costs 765 tokens"; "A 2048 x 4096 image
        # in detail: high mode costs 1105 tokens".
        ("openai", "gpt-4o", 1024, 1024, 765),
        ("openai-chat", "gpt-4o-2024-08-06", 2048, 4096, 1105),
        ("openai", "gpt-4o-mini", 1024, 1024, 2833 + 4 * 5667),
        ("openai", "gpt-5.1", 512, 512, 70 + 140),
        # platform.claude.com, "Vision", table of examples: 200 x 200 and 1000 x 1000 in both tiers, 1920 x 1080 resized to 1456 x 819 in
        # the standard tier, 3840 x 2160 resized to 2576 x 1449 in the high-resolution tier.
        ("anthropic", "claude-haiku-4-5-20251001", 200, 200, 64),
        ("anthropic", "claude-haiku-4-5", 1000, 1000, 1296),
        ("anthropic", "claude-haiku-4-5", 1920, 1080, 1560),
        ("anthropic", "claude-sonnet-4-6", 3840, 2160, 1560),
        ("anthropic", "claude-opus-4-7", 200, 200, 64),
        ("anthropic", "claude-opus-4-7", 1000, 1000, 1296),
        ("anthropic", "claude-opus-5-5", 1920, 1080, 2691),
        ("anthropic", "claude-sonnet-5", 3840, 2160, 4784),
        # ai.google.dev, "Image understanding": "258 tokens if both dimensions <= 384 pixels"; "for an image of dimensions 960x540 would
        # have a crop unit size of 360. Divide each dimension by 360 and the number of tile is 3 * 2 = 6."
        ("google", "gemini-2.5-flash", 384, 384, 258),
        ("google", "gemini-2.5-flash", 960, 540, 6 * 258),
        # ai.google.dev, "Media resolution", Gemini 3, default: 1120.
        ("google", "gemini-3.8-flash", 960, 540, 1120),
        ("google", "gemini-3-flash-preview", 100, 100, 1120),
    ],
)
def test_the_vendors_own_examples(provider: str, model: str, width: int, height: int, tokens: int) -> None:
    assert pricing.picture_tokens(provider, model, width, height) == tokens


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-6-luna"), ("openai", "gpt-5.4-pro"), ("openai", "gpt-4-turbo"), ("google", "gemini-4-argon"),
        ("google", "gemini-2.5-flash-tts"), ("anthropic", "claude-2"), ("openrouter", "gpt-4o"), ("openai-compatible", "gpt-4o"),
        ("scripted", "perfect"), ("nobody", "gpt-4o"),
    ],
)  # fmt: skip
def test_an_undocumented_model_has_no_known_picture_tokens(provider: str, model: str) -> None:
    assert pricing.picture_tokens(provider, model, 1000, 1000) is None


@given(st.sampled_from(KNOWN), st.integers(1, 6000), st.integers(1, 6000))
def test_what_is_reserved_for_a_picture_exceeds_its_formula(rater: tuple[str, str], width: int, height: int) -> None:
    tokens = pricing.picture_tokens(*rater, width, height)
    assert tokens is not None
    empty, one = (
        pricing.quote(request(*sizes), provider=rater[0], model=rater[1], max_output_tokens=1) for sizes in ([], [(width, height)])
    )
    assert 0 < tokens < one.input_tokens - empty.input_tokens


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_budgets_are_kept_and_smaller_pictures_not_enlarged(width: int, height: int) -> None:
    def tokens(model: str, provider: str = "openai") -> int:
        return pricing.picture_tokens(provider, model, width, height) or 0

    assert tokens("gpt-5.4") <= 3000
    assert tokens("gpt-5-nano") <= 1536 * 1.5
    assert tokens("claude-haiku-4-5", "anthropic") <= 1568
    assert tokens("claude-opus-5-5", "anthropic") <= 4784
    if max(width, height) <= 512:
        assert tokens("gpt-5.4") == math.ceil(round(math.ceil(width / 32) * math.ceil(height / 32) * 1.2, 6))
        assert tokens("gpt-4o") == 255


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_an_undocumented_model_is_reserved_for_like_the_dearest_of_its_vendor(width: int, height: int) -> None:
    def tokens(provider: str, model: str) -> int:
        return pricing.quote(request((width, height)), provider=provider, model=model, max_output_tokens=1).input_tokens

    for provider, unknown in (("openai", "gpt-7"), ("anthropic", "claude-next"), ("google", "gemini-9")):
        assert tokens(provider, unknown) >= max(tokens(*rater) for rater in KNOWN if rater[0] == provider)
    # A model on a server of one's own: every 14 x 14 pixels a token, which is the smallest patch in use.
    assert tokens("openai-compatible", "qwen2.5-vl") >= (width // 14) * (height // 14)


# --- prices -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "price"), [("0.10,0.40", Price(0.1, 0.4)), ("0, 0", Price(0, 0)), ("3,15", Price(3, 15))])
def test_a_price_is_read(text: str, price: Price) -> None:
    assert pricing.parse_price(text) == price


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "-1,2", "1,nan", "inf,1", "1;2", "$1,$2"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no price\. Write dollars per million input and output tokens"):
        pricing.parse_price(text)


@pytest.mark.parametrize(("provider", "model"), [*KNOWN, ("openai", "gpt-6-luna"), ("azure", "gpt-4o"), ("google-cloud", "gemini-2.5-pro")])
def test_expected_dollars_are_those_of_the_price_list(provider: str, model: str) -> None:
    usage = genai_prices.Usage(input_tokens=12_345, output_tokens=678)
    listed = genai_prices.calc_price(usage, model, provider_id=provider.partition("-")[0])
    assert pricing.usual_dollars(provider, model, 12_345, 678) == pytest.approx(float(listed.total_price))


def test_batches_cost_half_where_the_list_says_so() -> None:
    for provider, model in (("google", "gemini-2.5-flash"), ("openai", "gpt-5.4-mini"), ("anthropic", "claude-haiku-4-5")):
        now, batch = pricing.price_of(provider, model), pricing.price_of(provider, model, batch=True)
        assert now is not None
        assert batch == Price(now.input / 2, now.output / 2)
    assert pricing.price_of("google-cloud", "claude-haiku-4-5") is not None
    assert pricing.price_of("google-cloud", "claude-haiku-4-5", batch=True) is None, "none is listed, so none is claimed"
    now, batch = (
        pricing.quote(request(), provider="google-cloud", model="claude-haiku-4-5", max_output_tokens=9, batch=batch)
        for batch in (False, True)
    )
    assert now == batch, "the ordinary price bounds it"


@pytest.mark.parametrize(
    ("provider", "model"), [("openai-compatible", "gpt-4o"), ("ollama", "qwen"), ("openai", "no-such-model"), ("nobody", "gpt-4o")]
)
def test_an_unlisted_price_is_unknown(provider: str, model: str) -> None:
    assert pricing.price_of(provider, model) is None
    assert pricing.quote(request(), provider=provider, model=model, max_output_tokens=9).dollars is None
    assert pricing.estimate(request(), provider=provider, model=model).dollars is None
    stated = pricing.quote(request(), provider=provider, model=model, max_output_tokens=1_000_000, price=Price(0, 2))
    assert stated.dollars == pytest.approx(2)


def test_what_runs_on_this_machine_is_free() -> None:
    for provider in ("scripted", "replay", "hf"):
        assert pricing.price_of(provider, "") == Price(0, 0)
        assert pricing.quote(request((300, 300)), provider=provider, model="", max_output_tokens=99).dollars == 0.0
        assert pricing.estimate(request((300, 300)), provider=provider, model="").dollars == 0.0


@given(st.sampled_from([*KNOWN, ("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro")]), st.integers(0, 400_000), st.booleans())
def test_no_way_of_billing_exceeds_the_bound(rater: tuple[str, str], tokens: int, batch: bool) -> None:
    """Everything read anew or everything written to the vendor's cache, in the tier of short or of long requests."""
    bound = pricing.dollars_at_most(*rater, tokens, 1000, batch=batch)
    assert bound is not None
    for part in (tokens, tokens // 2):
        for cached in ({}, {"cache_write_tokens": part}):
            usage = genai_prices.Usage(input_tokens=part, output_tokens=1000, **cached)
            context = {"processing": "batch"} if batch else None
            billed = genai_prices.calc_price(usage, rater[1], provider_id=rater[0], price_context=context)
            assert float(billed.total_price) <= bound * (1 + 1e-9)


def test_an_announced_rise_of_prices_counts_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """gemini-3.8-flash costs twice as much from 1 January 2027: a batch handed over on the day before may be billed after it."""

    class Clock(datetime):
        today_is = datetime(2026, 12, 1, tzinfo=UTC)

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return cls.today_is

    monkeypatch.setattr(pricing, "datetime", Clock)
    usual, most = (pricing.usual_dollars, pricing.dollars_at_most)
    before = usual("google", "gemini-3.8-flash", 1_000_000, 0)
    assert before is not None
    assert most("google", "gemini-3.8-flash", 1_000_000, 0) == pytest.approx(before)
    Clock.today_is = datetime(2026, 12, 31, tzinfo=UTC)
    assert usual("google", "gemini-3.8-flash", 1_000_000, 0) == pytest.approx(before)
    assert most("google", "gemini-3.8-flash", 1_000_000, 0) == pytest.approx(2 * before)


def test_cheap_hours_do_not_lower_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a price depends on the hour, the dearest one is reserved at any hour."""
    snapshot = data_snapshot.get_snapshot()
    provider, model = next(
        (provider, model)
        for provider in snapshot.providers
        for model in provider.models
        if isinstance(model.prices, list) and any(isinstance(each.constraint, TimeOfDateConstraint) for each in model.prices)
    )
    bounds = set()
    usual = set()
    for hour in range(24):
        monkeypatch.setattr(pricing, "_now", lambda form, hour=hour: datetime(2026, 11, 21, hour, tzinfo=UTC).strftime(form))
        bounds.add(pricing.dollars_at_most(provider.id, model.id, 1000, 1000))
        usual.add(pricing.usual_dollars(provider.id, model.id, 1000, 1000))
    assert len(usual) > 1
    assert bounds == {max(dollars or 0 for dollars in usual)}


# --- requests -----------------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300), st.text(max_size=100), st.integers(1, 40))
def test_a_quote_counts_every_byte_as_a_token(text: str, system: str, actions: int) -> None:
    asked = request((300, 300), text=text, system=system, answer=Scores(actions), actions=actions)
    quoted = pricing.quote(asked, provider="google", model="gemini-2.5-flash", max_output_tokens=500)
    expected = pricing.estimate(asked, provider="google", model="gemini-2.5-flash", thinking_tokens=300)
    assert expected.input_tokens is not None
    assert quoted.input_tokens >= len(text.encode()) + len(system.encode()) + 258
    assert quoted.input_tokens > expected.input_tokens
    assert quoted.output_tokens == 500
    assert quoted.dollars is not None
    assert expected.dollars is not None
    assert quoted.dollars > expected.dollars > 0


def test_a_quote_survives_text_that_no_vendor_could_be_sent() -> None:
    assert pricing.quote(request(text="\ud800"), provider="openai", model="gpt-4o", max_output_tokens=1).input_tokens > 3


def test_the_form_of_pictures_changes_no_token() -> None:
    quotes = {
        pricing.quote(request((640, 480)), provider="openai", model="gpt-4o", max_output_tokens=5, form=form)
        for form in (PictureFormat(), PictureFormat("jpeg", 50))
    }
    assert len(quotes) == 1


def test_an_estimate_names_its_parts() -> None:
    asked = request((1024, 1024), (1024, 1024), text="x" * 400, actions=8)
    found = pricing.estimate(asked, provider="openai", model="gpt-5.4", thinking_tokens=100)
    assert (found.pictures, found.picture_tokens, found.text_tokens) == (2, 2 * 1229, 100)
    assert found.output_tokens == 8 * pricing.ANALYSIS_TOKENS_AN_ACTION + 100
    assert found.input_tokens == 2 * 1229 + 100
    scores = pricing.estimate(request(answer=Scores(8)), provider="openai", model="gpt-5.4")
    assert scores.output_tokens == 10 + 8 * pricing.SCORE_TOKENS
    assert pricing.estimate(asked, provider="openai", model="gpt-5.4", output_tokens=7).output_tokens == 7
    assert pricing.estimate(asked, provider="openai", model="gpt-5.4", max_output_tokens=50).output_tokens == 50
    unknown = pricing.estimate(asked, provider="openai", model="gpt-6-luna")
    assert (unknown.picture_tokens, unknown.input_tokens, unknown.dollars) == (None, None, None)
    told = pricing.estimate(asked, provider="openai", model="gpt-6-luna", tokens_a_picture=1000)
    assert told.picture_tokens == 2000
    assert told.dollars is not None
