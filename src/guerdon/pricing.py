"""What asking costs: tokens of texts and pictures by vendor, and prices in US dollars.

Two kinds of number, never mixed. An *estimate* is what is expected: four characters a token, pictures by the vendor's published formula,
answers of usual length. A *quote* is what one attempt can cost at most, and money is reserved by it: a byte a token, pictures by the
formula plus a margin, the whole allowance of output (thinking counts against it with all three large vendors), the dearest price that can
apply.

Prices come from genai-prices, which others keep current. How many tokens a picture comes to is in no price list; each vendor's rule is in
the tables here, with its source and the date on which it was read. A model that no rule names has an unknown number of picture tokens:
None, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

from guerdon.answers import AnswerSpec, Choice, Preference, Scores
from guerdon.errors import UsageError
from guerdon.records import PictureFormat, Price, Quote, Request, canonical_json

# --- pictures -----------------------------------------------------------------------------------------------------------------------


class PictureScheme(Protocol):
    """A vendor's rule for the tokens of one picture."""

    def tokens(self, width: int, height: int) -> int:
        """Tokens of a picture of `width` x `height` pixels, as the vendor documents it."""
        ...

    def at_most(self, width: int, height: int) -> int:
        """More than the vendor will count, whatever the rule leaves open."""
        ...


def _with_margin(tokens: int) -> int:
    """Vendors call their rules approximate, and frame each picture with a few tokens of their own: a tenth and 16 tokens more."""
    return tokens + math.ceil(tokens / 10) + 16


def _fitted(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """The size after shrinking to a longest side; nothing is enlarged."""
    if longest is None or max(width, height) <= longest:
        return width, height
    factor = longest / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _covered(width: int, height: int, side: int) -> int:
    """Squares of `side` pixels that cover a picture."""
    return math.ceil(width / side) * math.ceil(height / side)


@dataclass(frozen=True)
class OpenAIPatches:
    """32 x 32 patches after fitting a longest side and, if there is one, a budget of patches; times the model's multiplier."""

    multiplier: float
    longest: int | None
    budget: int | None

    def tokens(self, width: int, height: int) -> int:
        width, height = _fitted(width, height, self.longest)
        patches = _covered(width, height, 32)
        if self.budget is not None and patches > self.budget:
            factor = math.sqrt(32 * 32 * self.budget / (width * height))
            across, down = width * factor / 32, height * factor / 32
            # A side of less than one patch cannot be rounded down to whole patches; the vendor's formula would divide to zero.
            factor *= min(max(1, math.floor(across)) / across, max(1, math.floor(down)) / down)
            patches = min(_covered(max(1, int(width * factor)), max(1, int(height * factor)), 32), self.budget)
        return math.ceil(round(patches * self.multiplier, 6))  # 1000 * 1.2 is 1200, whatever binary fractions say

    def at_most(self, width: int, height: int) -> int:
        return _with_margin(self.tokens(width, height))


@dataclass(frozen=True)
class OpenAITiles:
    """512 x 512 tiles after fitting 2048 x 2048 and a shortest side of 768; each costs `tile` tokens, and the picture `base` more."""

    base: int
    tile: int

    def tokens(self, width: int, height: int) -> int:
        width, height = _fitted(width, height, 2048)
        if min(width, height) > 768:
            factor = 768 / min(width, height)
            width, height = math.floor(round(width * factor, 6)), math.floor(round(height * factor, 6))
        return self.base + self.tile * _covered(width, height, 512)

    def at_most(self, width: int, height: int) -> int:
        return _with_margin(self.tokens(width, height))


@dataclass(frozen=True)
class AnthropicPatches:
    """28 x 28 patches of the largest size that keeps the proportions, a longest side and a number of patches."""

    longest: int
    budget: int

    def tokens(self, width: int, height: int) -> int:
        sides = _fitted(width, height, self.longest)
        if _covered(*sides, 28) <= self.budget:
            return _covered(*sides, 28)
        # The patches grow with the longer side, so the largest size that fits is found by halving.
        low, high = 1, max(sides)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _covered(*_fitted(width, height, middle), 28) <= self.budget else (low, middle)
        return _covered(*_fitted(width, height, low), 28)

    def at_most(self, width: int, height: int) -> int:
        # Older pages of the same vendor say width * height / 750, which is a little more than one patch in 784 pixels.
        width, height = _fitted(width, height, self.longest)
        return _with_margin(max(self.tokens(width, height), min(math.ceil(width * height / 750), self.budget)))


@dataclass(frozen=True)
class GoogleTiles:
    """258 tokens for a picture of at most 384 x 384 pixels, else 258 for each tile."""

    def tokens(self, width: int, height: int) -> int:
        if max(width, height) <= 384:
            return 258
        return 258 * _covered(width, height, min(max(int(min(width, height) / 1.5), 256), 768))

    def at_most(self, width: int, height: int) -> int:
        # Another page of the vendor gives 256 tokens and about 2048 more for looking closer, instead of tiles.
        return _with_margin(max(self.tokens(width, height), 2304))


@dataclass(frozen=True)
class FixedBudget:
    """The same number of tokens for every picture."""

    budget: int

    def tokens(self, width: int, height: int) -> int:
        del width, height
        return self.budget

    def at_most(self, width: int, height: int) -> int:
        return _with_margin(self.tokens(width, height))


_DATE = r"(-\d{4}-\d{2}-\d{2}|[-@]\d{8})?"
"""Snapshots of a model follow the model's rule."""

# https://developers.openai.com/api/docs/guides/images-vision, "Model sizing behavior", "Patch-based image tokenization" and "Tile-based
# image tokenization", for the detail "auto", which is what is sent. Read on 21 November 2026. The models marked deprecated there have no
# row for sizes any more; their budget of 1,536 patches is that of the guide's version of spring 2026. Nothing is documented there for
# GPT-6, for the "pro" models and for specialised ones: unknown.
_OPENAI: tuple[tuple[str, PictureScheme], ...] = (
    (r"gpt-5\.6-(sol|terra|luna)", OpenAIPatches(1.2, 65_535, None)),
    (r"gpt-5\.5", OpenAIPatches(1.2, 6000, 10_000)),
    (r"gpt-5\.4(-mini|-nano)?", OpenAIPatches(1.2, 2048, 2500)),
    (r"gpt-5\.2", OpenAIPatches(1.2, 2048, 6144)),
    (r"gpt-4\.1-mini", OpenAIPatches(1.62, 2048, 6144)),
    (r"gpt-5-mini", OpenAIPatches(1.2, None, 1536)),
    (r"gpt-5-nano", OpenAIPatches(1.5, None, 1536)),
    (r"gpt-4\.1-nano", OpenAIPatches(2.46, None, 1536)),
    (r"o4-mini", OpenAIPatches(1.72, None, 1536)),
    (r"gpt-5(\.1)?", OpenAITiles(70, 140)),
    (r"gpt-4o|gpt-4\.1", OpenAITiles(85, 170)),
    (r"gpt-4o-mini", OpenAITiles(2833, 5667)),
    (r"o1|o1-pro|o3", OpenAITiles(75, 150)),
)

# https://platform.claude.com/docs/en/build-with-claude/vision, "Resolution and token cost": the high-resolution tier is "Claude 4.7 and
# later models", the standard tier all others. Read on 21 November 2026.
_ANTHROPIC: tuple[tuple[str, PictureScheme], ...] = (
    (r"claude-3-.+|claude-(opus|sonnet|haiku)-4(-[0-6])?", AnthropicPatches(1568, 1568)),
    (r"claude-(opus|sonnet|haiku)-4-[789]|claude-[a-z]+-[5-9](-\d)?", AnthropicPatches(2576, 4784)),
)

# https://ai.google.dev/gemini-api/docs/image-understanding, "Token calculation" (Gemini 2.0 and 2.5), and .../docs/media-resolution, "Token
# counts" (Gemini 3: the default resolution, which is what is sent). Read on 21 November 2026.
_GOOGLE: tuple[tuple[str, PictureScheme], ...] = (
    (r"gemini-2\.[05]-(pro|flash|flash-lite)(-\d{3}|-preview(-\d{2}-\d{2,4})?)?", GoogleTiles()),
    (r"gemini-3(\.\d)?-(pro|flash|flash-lite)(-preview(-\d{2}-\d{2,4})?)?", FixedBudget(1120)),
)

_VENDORS: Mapping[str, str] = {
    "anthropic": "anthropic", "gateway/anthropic": "anthropic",
    "google": "google", "google-cloud": "google", "gateway/google": "google", "gateway/google-cloud": "google",
    "openai": "openai", "openai-chat": "openai", "openai-responses": "openai", "gateway/openai": "openai",
}  # fmt: skip
"""Prefix of a `--vlm` text -> vendor whose rules for pictures hold."""
_SCHEMES: Mapping[str, tuple[tuple[str, PictureScheme], ...]] = {"openai": _OPENAI, "google": _GOOGLE, "anthropic": _ANTHROPIC}
_PRICE_LISTS: Mapping[str, str] = {
    **_VENDORS,
    "azure": "azure", "bedrock": "aws", "bedrock-mantle": "aws", "cerebras": "cerebras", "cohere": "cohere", "deepseek": "deepseek",
    "fireworks": "fireworks", "gateway/bedrock": "aws", "gateway/groq": "groq", "groq": "groq", "mistral": "mistral",
    "moonshotai": "moonshotai", "openrouter": "openrouter", "ovhcloud": "ovhcloud", "together": "together", "xai": "x-ai", "zai": "zai",
}  # fmt: skip
"""Prefix -> name of its list in genai-prices. Named one by one, because that package takes "openai-compatible" for OpenAI itself."""
FREE: frozenset[str] = frozenset({"embedded", "scripted", "replay", "hf"})
"""Raters that run on this machine: asking them costs no money."""


@lru_cache(maxsize=256)
def _scheme(provider: str, model: str) -> PictureScheme | None:
    for pattern, scheme in _SCHEMES.get(_VENDORS.get(provider, ""), ()):
        if re.fullmatch(f"(?:{pattern}){_DATE}", model.lower()):
            return scheme
    return None


def picture_tokens(provider: str, model: str, width: int, height: int) -> int | None:
    """Tokens that a picture of `width` x `height` pixels comes to, by the vendor's own formula; None if none is known for the model."""
    scheme = _scheme(provider, model)
    return None if scheme is None else scheme.tokens(width, height)


_OPEN_MODELS_MOST = 4096
"""No published open model spends more on a picture that it cuts into tiles (the most found: 13 tiles of 256 tokens)."""


def _picture_tokens_at_most(provider: str, model: str, width: int, height: int) -> int:
    """More tokens than a picture can come to: by the model's formula, else by the dearest of its vendor's, else by one token for each
    14 x 14 pixels, the smallest patch that is in use."""
    scheme = _scheme(provider, model)
    if scheme is not None:
        return scheme.at_most(width, height)
    known = _SCHEMES.get(_VENDORS.get(provider, ""), ())
    if known:
        return max(each.at_most(width, height) for _, each in known)
    return _with_margin(max(_covered(width, height, 14), _OPEN_MODELS_MOST))


# --- prices -------------------------------------------------------------------------------------------------------------------------


def parse_price(text: str) -> Price:
    """The price in a text such as "0.10,0.40": US dollars per million input and output tokens. Raises UsageError for any other text."""
    parts = text.split(",")
    try:
        first, second = (float(part) for part in parts)
        return Price(first, second)
    except ValueError:
        cure = "Write dollars per million input and output tokens, for example 0.10,0.40."
        raise UsageError(f"'{text}' is no price", cure=cure) from None


@dataclass(frozen=True)
class _Rates:
    """What a model costs, US dollars per million tokens, by the number of input tokens above which a rate holds."""

    input: tuple[tuple[int, float], ...]
    output: tuple[tuple[int, float], ...]
    cache_write: tuple[tuple[int, float], ...]

    def dearest(self, input_tokens: int) -> Price:
        """The most that can be charged for a request with up to `input_tokens`, also if the vendor writes all of it to its cache."""

        def most(*tiers: tuple[int, float]) -> float:
            return max(rate for start, rate in tiers if start < max(input_tokens, 1))

        return Price(most(*self.input, *self.cache_write), most(*self.output))

    def usual(self, input_tokens: int) -> Price:
        """What is charged for a request with `input_tokens` that the vendor has not seen before."""

        def rate(tiers: tuple[tuple[int, float], ...]) -> float:
            return next(rate for start, rate in reversed(tiers) if start < max(input_tokens, 1))

        return Price(rate(self.input), rate(self.output))


@lru_cache(maxsize=1024)
def _rates(provider: str, model: str, batch: bool, hour: str) -> _Rates | None:
    """Rates in an hour ("2026-11-30T16"); None if the list does not know the model, or no price of batches for it."""
    from genai_prices import data_snapshot

    when = datetime.strptime(hour, _HOUR).replace(tzinfo=UTC)
    if provider not in _PRICE_LISTS:
        return None
    try:
        _, info = data_snapshot.get_snapshot().find_provider_model(model, None, _PRICE_LISTS[provider], None)
    except LookupError:
        return None
    context = {"processing": "batch"} if batch else None
    variants = info.price_variants or ()
    if batch and not any(each.when == context and (each.constraint is None or each.constraint.active(when)) for each in variants):
        return None
    prices = info.get_prices(when, context)
    if prices.input_mtok is None or prices.output_mtok is None:
        return None
    return _Rates(_tiers(prices.input_mtok), _tiers(prices.output_mtok), _tiers(prices.cache_write_mtok))


@lru_cache(maxsize=1024)
def _rates_soon(provider: str, model: str, batch: bool, day: str) -> tuple[_Rates, ...]:
    """All rates that hold at some hour from the beginning of a day ("2026-11-30") to the end of the next but one: a batch may take a day,
    and neither an announced rise nor the end of cheap hours may catch what is under way. Empty if one of them is unknown."""
    begin = datetime.strptime(day, _DAY)
    hours = [(begin + timedelta(hours=later)).strftime(_HOUR) for later in range(72)]
    # Where no price of batches is listed, the ordinary one bounds it.
    found = {(_rates(provider, model, True, hour) if batch else None) or _rates(provider, model, False, hour) for hour in hours}
    return () if None in found else tuple(rates for rates in found if rates is not None)


def _tiers(price: object) -> tuple[tuple[int, float], ...]:
    """(input tokens above which it holds, dollars per million tokens), ascending."""
    if price is None:
        return ()
    tiers = getattr(price, "tiers", None)
    if tiers is None:
        return ((0, float(str(price))),)
    return ((0, float(price.base)), *((tier.start, float(tier.price)) for tier in tiers))  # type: ignore[attr-defined]


_DAY, _HOUR = "%Y-%m-%d", "%Y-%m-%dT%H"


def _now(form: str) -> str:
    return datetime.now(UTC).strftime(form)


def price_of(provider: str, model: str, batch: bool = False) -> Price | None:
    """List price of a model now for a request of ordinary length.

    Args:
        provider: prefix of the `--vlm` text, e.g. "google".
        model: the vendor's name of the model.
        batch: the price of requests that may wait; None if none is listed.
    """
    if provider in FREE:
        return Price(0.0, 0.0)
    rates = _rates(provider, model, batch, _now(_HOUR))
    return None if rates is None else rates.usual(1)


def dollars_at_most(
    provider: str, model: str, input_tokens: int, output_tokens: int, *, price: Price | None = None, batch: bool = False
) -> float | None:
    """The most that so many tokens in one request can cost; None if no price is known. `price`: what the user says, wins over any list."""
    if provider in FREE:
        return 0.0
    if price is not None:
        return price.dollars(input_tokens, output_tokens)
    soon = _rates_soon(provider, model, batch, _now(_DAY))
    return max((rates.dearest(input_tokens).dollars(input_tokens, output_tokens) for rates in soon), default=None)


def usual_dollars(
    provider: str, model: str, input_tokens: int, output_tokens: int, *, price: Price | None = None, batch: bool = False
) -> float | None:
    """What so many tokens in one request cost now if none of them comes from a cache; None if no price is known."""
    if provider in FREE:
        return 0.0
    if price is not None:
        return price.dollars(input_tokens, output_tokens)
    rates = _rates(provider, model, batch, _now(_HOUR))
    return None if rates is None else rates.usual(input_tokens).dollars(input_tokens, output_tokens)


# --- requests -----------------------------------------------------------------------------------------------------------------------

_REQUEST_OVERHEAD = 256
"""Tokens a request may cost beyond its texts: what vendors put around a conversation."""
_MESSAGE_OVERHEAD = 32
"""Tokens a message may cost beyond its text: role, separators, names."""
_SCHEMA_OVERHEAD = 1024
"""Tokens an answer's schema may cost beyond three times its bytes: it may be sent as such and in words, and vendors explain it to the model
in words of their own."""


def quote(
    request: Request,
    *,
    provider: str,
    model: str,
    max_output_tokens: int,
    form: PictureFormat | None = None,
    price: Price | None = None,
    batch: bool = False,
) -> Quote:
    """The most that one attempt at `request` can consume and cost: money is reserved by it.

    Texts count a token a byte, because no tokeniser in use makes more tokens than bytes. Pictures count by the vendor's formula with a
    margin, or by the dearest documented one if the model's is unknown. Output is the whole allowance: OpenAI's `max_output_tokens`,
    Anthropic's `max_tokens` and Google's `maxOutputTokens` all include thinking. Input costs the dearest of what can apply: the tier of
    long requests, and the surcharge for writing to the vendor's cache.

    Args:
        provider: prefix of the `--vlm` text, e.g. "google", "openai-compatible".
        model: the vendor's name of the model.
        max_output_tokens: the allowance sent with the request.
        form: how pictures travel; no vendor's tokens depend on it so far.
        price: what the user says that the model costs; wins over the list.
        batch: whether the request goes into a batch.
    """
    del form
    texts = [request.system, *(message.text for message in request.messages)]
    schema = request.answer.schema()
    tokens = _REQUEST_OVERHEAD + _MESSAGE_OVERHEAD * len(texts) + sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if schema is not None:
        tokens += _SCHEMA_OVERHEAD + 3 * len(canonical_json(schema).encode())
    for message in request.messages:
        for picture in message.pictures:
            height, width = picture.pixels.shape[:2]
            tokens += _picture_tokens_at_most(provider, model, width, height)
    dollars = dollars_at_most(provider, model, tokens, max_output_tokens, price=price, batch=batch)
    return Quote(tokens, max_output_tokens, dollars)


CHARACTERS_A_TOKEN = 4
"""What vendors give as a rule of thumb for English."""
ANALYSIS_TOKENS_AN_ACTION = 30
"""Expected length of free text, for each action it is about: a sentence or two."""
ANALYSIS_TOKENS_A_PICTURE = 100
"""Expected length of free text, for each picture it is about, if it is about no action. An assumption: a short paragraph."""
SCORE_TOKENS = 3
"""Expected length of a score in a list, with its comma."""
THINKING_TOKENS = 1000
"""Expected thinking before one answer, for models that think unless told not to. An assumption: vendors publish no figure."""


@dataclass(frozen=True)
class Estimate:
    """What one request is expected to consume and cost."""

    pictures: int
    picture_tokens: int | None
    """None if the vendor's formula is unknown."""
    text_tokens: int
    """Of the texts that are sent."""
    output_tokens: int
    """Thinking included."""
    dollars: float | None
    """None if the price or the formula is unknown. Zero is a price."""

    @property
    def input_tokens(self) -> int | None:
        """Texts and pictures."""
        return None if self.picture_tokens is None else self.picture_tokens + self.text_tokens


def answer_tokens(answer: AnswerSpec, actions: int, pictures: int = 0) -> int:
    """Expected length of a good answer about so many actions, without thinking. Of a pair, both count.

    `pictures`: single frames that are shown, 0 if that is not known. Where few of many are, nothing is said of the actions between them.
    """
    if isinstance(answer, Scores):
        return 10 + SCORE_TOKENS * answer.n
    if isinstance(answer, Choice):
        longest = max(math.ceil(len(option) / CHARACTERS_A_TOKEN) for option in answer.options)
        return 10 + (SCORE_TOKENS + longest) * answer.n
    if isinstance(answer, Preference):
        return 10
    if not actions and pictures:
        return ANALYSIS_TOKENS_A_PICTURE * pictures
    seen = min(actions, pictures - 1) if pictures else actions
    return ANALYSIS_TOKENS_AN_ACTION * max(seen, 1)


def answer_tokens_of(request: Request) -> int:
    """Expected length of a good answer to `request`, without thinking."""
    evidence = request.evidence
    return answer_tokens(request.answer, len(evidence.actions) + len(evidence.other_actions), len(evidence.frames))


def estimate(
    request: Request,
    *,
    provider: str,
    model: str,
    price: Price | None = None,
    batch: bool = False,
    output_tokens: int | None = None,
    thinking_tokens: int = 0,
    max_output_tokens: int | None = None,
    tokens_a_picture: int | None = None,
) -> Estimate:
    """What `request` is expected to cost. Nothing is assumed to come from a vendor's cache, which would be cheaper.

    Args:
        provider, model, price, batch: as for `quote`.
        output_tokens: length of the answer with its thinking, if the user knows better than `answer_tokens` and `thinking_tokens`.
        thinking_tokens: expected thinking, e.g. `THINKING_TOKENS` for a model that thinks by default.
        max_output_tokens: the allowance, which no answer exceeds.
        tokens_a_picture: tokens of each picture, if the user knows; wins over the formula.
    """
    schema = request.answer.schema()
    texts = [request.system, *(message.text for message in request.messages), canonical_json(schema) if schema else ""]
    text_tokens = math.ceil(sum(map(len, texts)) / CHARACTERS_A_TOKEN)
    sizes = [picture.pixels.shape[:2] for message in request.messages for picture in message.pictures]
    each = [picture_tokens(provider, model, width, height) if tokens_a_picture is None else tokens_a_picture for height, width in sizes]
    pictures = None if None in each else sum(tokens for tokens in each if tokens is not None)
    output = answer_tokens_of(request) + thinking_tokens if output_tokens is None else output_tokens
    output = output if max_output_tokens is None else min(output, max_output_tokens)
    dollars = None
    if provider in FREE:
        dollars = 0.0
    elif pictures is not None:
        dollars = usual_dollars(provider, model, text_tokens + pictures, output, price=price, batch=batch)
    return Estimate(len(sizes), pictures, text_tokens, output, dollars)
