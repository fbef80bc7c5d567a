"""The numbers behind `plan`, and behind what `label` says before it begins: requests, tokens, money and time for a rater or several.

Nothing leaves this machine and no key is needed: raters are read as text, not built. The requests are the real ones, drawn by the method
from the dataset's own windows, with answers of the expected length in place of real ones. All windows are counted; pictures are drawn for
some of them, and the others are reckoned by their length. What is said here of windows holds for all that a method may judge: a picture has
the length 0, a pair the length of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from guerdon import discover, pricing
from guerdon.answers import Choice, Preference, Scores
from guerdon.errors import UnknownName, UsageError
from guerdon.interfaces import Method
from guerdon.providers._settings import remote_host
from guerdon.recipes import raters
from guerdon.records import Exchange, Picture, Price, Reply, Request, Sample

_COMPATIBLE = "openai-compatible"
_ANSWERS_AT_ONCE = frozenset({"embedded", "scripted", "replay"})
"""Raters on this machine that keep nobody waiting: hundreds of answers a second."""
SECONDS_PER_REQUEST = 3.0
"""Seconds that one answer is assumed to take."""
MOST_DRAWN = 64
"""Windows whose pictures are drawn."""
_MOST_OBSERVATIONS = 4096
"""Observations that are read for that, roughly: of long episodes fewer than `MOST_DRAWN` are drawn."""
_FEWEST_DRAWN = 8
"""Windows whose pictures are drawn however long they are."""
BYTES_A_TOKEN = 4
"""Bytes of text that a token of a reply comes to when the reply is sent again in a later turn and counted there by its bytes."""
_UNREADABLE = "?!?"
"""A reply that is no answer but free text, and can be found where it is quoted."""
_LONGEST_CONVERSATION = 100
"""Turns after which a method that never stops asking is given up."""


@dataclass(frozen=True)
class Asked:
    """Who would be asked, as far as costs go."""

    name: str
    """The `--vlm` text."""
    provider: str
    model: str
    max_output_tokens: int | None
    """Allowance of one answer; None if the rater knows none."""
    price: Price | None = None
    """What the user says; the list's if None."""
    thinking_tokens: int = 0
    """Expected thinking before one answer."""
    output_tokens: int | None = None
    """Length of one answer with its thinking, if the user knows."""
    picture_tokens: int | None = None
    """Tokens of one picture, if the user knows."""

    @property
    def free(self) -> bool:
        """Whether asking costs nothing whatever is asked."""
        return self.provider in pricing.FREE or self.price == Price(0.0, 0.0)


@dataclass(frozen=True)
class Conversation:
    """The requests about one window. Their pictures have a size and no content."""

    length: int
    """Transitions of the window; 0 for a picture, those of both for a pair."""
    usual: tuple[Request, ...]
    """If every answer is a good one."""
    worst: tuple[Request, ...]
    """If no answer can be read: repairs included."""
    typical: bool = True
    """False if the window was drawn only because it has the most words of its length: it bounds the others and is not like them."""


@dataclass(frozen=True)
class Drawn:
    """The windows of a dataset and the requests about some of them."""

    lengths: Mapping[int, int]
    """Transitions in a window -> number of such windows."""
    conversations: tuple[Conversation, ...]

    @property
    def windows(self) -> int:
        """All windows, drawn or not."""
        return sum(self.lengths.values())


@dataclass(frozen=True)
class Planned:
    """What one rater is expected to take, for all windows and repeats. None is unknown."""

    rater: str
    requests: int
    pictures: int
    """Pictures sent; one that is sent again in a later turn counts again."""
    picture_tokens: int | None
    text_tokens: int
    output_tokens: int
    """Thinking included."""
    dollars: float | None
    """At the list price of today, if nothing comes from the vendor's cache."""
    batch_dollars: float | None
    """The same by the vendor's queue for requests that may wait."""
    hours: float | None
    """At the limits given."""
    ceiling: float | None
    """Dollars that are certainly enough for one attempt at each request: every answer uses its whole allowance, every window needs all the
    repairs that the method asks for."""
    unknown: tuple[str, ...] = ()
    """What is unknown, and what to do about it."""

    @property
    def input_tokens(self) -> int | None:
        """Of texts and pictures."""
        return None if self.picture_tokens is None else self.picture_tokens + self.text_tokens

    def to_record(self) -> dict[str, Any]:
        """The numbers as JSON-ready data."""
        return {**asdict(self), "unknown": list(self.unknown), "input_tokens": self.input_tokens}


# --- raters, read as text -----------------------------------------------------------------------------------------------------------


def asked_of(
    specs: Sequence[str],
    settings: Mapping[str, Any],
    prices: Sequence[str] = (),
    *,
    output_tokens: int | None = None,
    picture_tokens: int | None = None,
) -> list[Asked]:
    """Who would be asked: `read_rater` for each text, with its price. Raises as that does, and UsageError for a price that is none."""
    stated = raters.prices_of(specs, prices)
    return [
        read_rater(spec, settings, price=price, output_tokens=output_tokens, picture_tokens=picture_tokens)
        for spec, price in zip(specs, stated, strict=True)
    ]


def read_rater(
    spec: str,
    settings: Mapping[str, Any],
    *,
    price: Price | None = None,
    output_tokens: int | None = None,
    picture_tokens: int | None = None,
) -> Asked:
    """What costs depend on, from a `--vlm` text and the settings of providers by the name of their file: no rater is built.

    Raises:
        UnknownName: if nothing has that name, as building the rater would.
        UsageError: if the text names no model, or no server.
    """
    provider, _, model = spec.partition(":")
    file = raters.provider_of(spec)
    if provider == _COMPATIBLE:
        from guerdon.providers.openai_compatible import model_and_url

        model, url = model_and_url(model)
        if price is None and not remote_host(url, url):
            price = Price(0.0, 0.0)
    elif file == "chat":
        _check_vendor(spec, provider, model)
    return Asked(
        name=spec,
        provider=provider,
        model=model,
        max_output_tokens=getattr(_settings(file, settings), "max_output_tokens", None),
        price=price,
        thinking_tokens=pricing.THINKING_TOKENS if file == "chat" and _thinks(provider, model) else 0,
        output_tokens=output_tokens,
        picture_tokens=picture_tokens,
    )


def _settings(file: str, settings: Mapping[str, Any]) -> Any:
    if file in settings:
        return settings[file]
    made = discover.load("providers", file)
    return made.Config() if hasattr(made, "Config") else None


def _check_vendor(spec: str, prefix: str, model: str) -> None:
    """Raises as the chat rater does for a prefix that pydantic-ai does not know, and for a text that names no model."""
    from pydantic_ai.providers import infer_provider_class

    from guerdon.providers.chat import prefixes

    try:
        infer_provider_class(prefix)
    except ImportError:
        pass  # its package is not installed; what it costs can be said all the same
    except ValueError:
        cure = f"Or a vendor's prefix, as PREFIX:MODEL: {', '.join(prefixes())}."
        raise UnknownName("rater", prefix, raters.provider_names(), cure=cure) from None
    if not model:
        raise UsageError(f"'{spec}' names no model", cure="Write it as PREFIX:MODEL, for example google:gemini-2.5-flash.")


def _thinks(prefix: str, model: str) -> bool:
    """Whether a model thinks before it answers unless told not to, as far as pydantic-ai knows its kind."""
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.providers import infer_provider_class

    try:
        profile: Mapping[str, Any] = dict(infer_provider_class(prefix).model_profile(model) or {})
    except (ImportError, ValueError, UserError):
        return False
    if "google_supports_thinking_level" in profile:
        # pydantic-ai says nothing of Google's defaults: all that can think do so, except for the smallest (ai.google.dev, "Thinking").
        return bool(profile.get("supports_thinking")) and "lite" not in model
    return bool(profile.get("thinking_enabled_by_default") or profile.get("thinking_always_enabled"))


# --- requests -----------------------------------------------------------------------------------------------------------------------


def draw(windows: Iterable[Sample], method: Method, *, most: int = MOST_DRAWN) -> Drawn:
    """The requests about up to `most` of the windows, evenly spread, with those of each length that have the most words among them. Of
    windows with hundreds of transitions fewer are drawn."""
    everything = list(windows)
    lengths = Counter(map(_length, everything))
    observations = 1 + sum(length * count for length, count in lengths.items()) // max(len(everything), 1)
    chosen = _chosen(everything, min(most, max(_FEWEST_DRAWN, _MOST_OBSERVATIONS // observations)))
    return Drawn(lengths, tuple(_conversation(everything[index], method, typical=chosen[index]) for index in sorted(chosen)))


def _chosen(windows: Sequence[Sample], most: int) -> dict[int, bool]:
    """Index of each window to draw -> whether it is typical."""

    def words(index: int) -> tuple[int, int]:
        return len(windows[index].instruction) + sum(map(len, _actions(windows[index]))), -index

    by_length: dict[int, list[int]] = {}
    for index, sample in enumerate(windows):
        by_length.setdefault(_length(sample), []).append(index)
    lengths = sorted(by_length)
    chosen = {max(by_length[lengths[position]], key=words): False for position in _evenly(len(lengths), min(most, len(lengths)))}
    for index in _evenly(len(windows), min(most, len(windows))):
        if index in chosen or len(chosen) < most:
            chosen[index] = True
    return chosen


def _actions(sample: Sample) -> tuple[str, ...]:
    """Names of the actions, of a pair those of both."""
    return sample.actions + (sample.other.actions if sample.other else ())


def _length(sample: Sample) -> int:
    """Transitions that a sample shows, of a pair those of both."""
    return sample.segment.length + (sample.other.segment.length if sample.other else 0)


def _evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the positions 0 .. count-1, the last and, if there are two, the first among them."""
    return sorted({round(position) for position in np.linspace(count - 1, 0, wanted)})


def _conversation(sample: Sample, method: Method, *, typical: bool) -> Conversation:
    length = _length(sample)
    first = method.next(sample, [])
    if first is None:
        return Conversation(length, (), (), typical)
    first = first.with_pictures(_light)
    usual = _played(sample, method, first, _filler)
    worst = _played(sample, method, first, lambda _: _UNREADABLE)
    return Conversation(length, usual, worst, typical)


def _played(sample: Sample, method: Method, first: Request, reply: Callable[[Request], str]) -> tuple[Request, ...]:
    """The conversation that begins with `first` if every request gets its `reply`."""
    exchanges: list[Exchange] = []
    request: Request | None = first
    while request is not None and len(exchanges) < _LONGEST_CONVERSATION:
        exchanges.append(Exchange(request, Reply(reply(request))))
        request = method.next(sample, exchanges)
    return tuple(exchange.request for exchange in exchanges)


def _filler(request: Request) -> str:
    """An answer of the expected length."""
    answer = request.answer
    if isinstance(answer, Scores):
        return answer.render([answer.low] * answer.n)
    if isinstance(answer, Choice):
        longest = max(range(len(answer.options)), key=lambda position: len(answer.options[position]))
        return answer.render([longest] * answer.n)
    if isinstance(answer, Preference):
        return answer.render(0.5)
    characters = pricing.CHARACTERS_A_TOKEN * pricing.answer_tokens_of(request)
    return ("word " * characters)[:characters]


def _light(picture: Picture) -> Picture:
    """A picture of the same size that takes no memory."""
    return Picture(picture.id, np.broadcast_to(np.uint8(0), picture.pixels.shape))


# --- reckoning ----------------------------------------------------------------------------------------------------------------------


def planned(
    drawn: Drawn,
    asked: Sequence[Asked],
    *,
    repeats: int = 1,
    pilot: int = 0,
    concurrency: int = 16,
    seconds_per_request: float = SECONDS_PER_REQUEST,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> Planned:
    """What the conversations would take with the rater `asked[request.rater]` for each request; with one rater, it gets them all.

    Takes some ten milliseconds; `draw` takes as long as drawing up to `MOST_DRAWN` pictures.

    Args:
        repeats: independent answers to each question.
        pilot: windows that are asked about once more, with wrong instructions.
        concurrency: conversations in flight at once.
        seconds_per_request: seconds that one answer takes.
        requests_per_minute: limit of the account; none if None. `tokens_per_minute`: the same, input and output together.
    """
    times = repeats + min(pilot, drawn.windows) / max(drawn.windows, 1)

    def rater_of(request: Request) -> Asked:
        return asked[min(request.rater, len(asked) - 1)]

    usual = _weighted(drawn, lambda each: [_expected(request, rater_of(request)) for request in each.usual])
    certain = _at_most(drawn, lambda each: [_ceiling(request, rater_of(request), turn) for turn, request in enumerate(each.worst)])
    requests, pictures, picture_tokens, text_tokens, output_tokens, dollars, batch_dollars = (
        None if value is None else value * times for value in usual
    )
    answers = _whole(requests) or 0
    waiting = sum(each.provider not in _ANSWERS_AT_ONCE for each in asked) > 0
    tokens = (
        None if picture_tokens is None or text_tokens is None or output_tokens is None else picture_tokens + text_tokens + output_tokens
    )
    return Planned(
        rater=" then ".join(each.name for each in asked),
        requests=answers,
        pictures=_whole(pictures) or 0,
        picture_tokens=_whole(picture_tokens),
        text_tokens=_whole(text_tokens) or 0,
        output_tokens=_whole(output_tokens) or 0,
        dollars=dollars,
        batch_dollars=batch_dollars,
        hours=_hours(answers, tokens, concurrency, seconds_per_request, requests_per_minute, tokens_per_minute) if waiting else 0.0,
        ceiling=None if certain is None else certain * times,
        unknown=tuple(dict.fromkeys(reason for each in asked for reason in _unknown(each, drawn))),
    )


_Amounts = tuple[float | None, ...]
_NOTHING: _Amounts = (0.0,) * 7


def _expected(request: Request, asked: Asked) -> _Amounts:
    """Requests, pictures, tokens of pictures, of texts and of answers, dollars, dollars in batches."""

    def estimated(batch: bool) -> pricing.Estimate:
        return pricing.estimate(
            request,
            provider=asked.provider,
            model=asked.model,
            price=asked.price,
            batch=batch,
            output_tokens=asked.output_tokens,
            thinking_tokens=asked.thinking_tokens,
            max_output_tokens=asked.max_output_tokens,
            tokens_a_picture=asked.picture_tokens,
        )

    if asked.provider in _ANSWERS_AT_ONCE:
        return 1, 0, 0, 0, 0, 0.0, 0.0
    now = estimated(batch=False)
    dollars = 0.0 if asked.free else now.dollars
    # What a user says of a price holds for requests that are sent now; whether a batch would be cheaper is not known.
    waiting = 0.0 if asked.free else None if asked.price is not None else estimated(batch=True).dollars
    return 1, now.pictures, now.picture_tokens, now.text_tokens, now.output_tokens, dollars, waiting


def _ceiling(request: Request, asked: Asked, turn: int) -> float | None:
    """The most that one attempt can cost if the replies that it quotes are as long as they may be: all before this `turn`, each once, or as
    often as it is found."""
    if asked.free:
        return 0.0
    if asked.max_output_tokens is None:
        return None
    quote = pricing.quote(
        request, provider=asked.provider, model=asked.model, max_output_tokens=asked.max_output_tokens, price=asked.price
    )  # fmt: skip
    quoted = max(turn, sum(message.text.count(_UNREADABLE) for message in request.messages))
    tokens = quote.input_tokens + quoted * BYTES_A_TOKEN * asked.max_output_tokens
    return pricing.dollars_at_most(asked.provider, asked.model, tokens, asked.max_output_tokens, price=asked.price)


def _weighted(drawn: Drawn, amounts: Callable[[Conversation], list[_Amounts]]) -> _Amounts:
    """Sums over all windows: each counts like the mean of the typical ones of its length, or of the length nearest to it."""
    by_length: dict[int, list[_Amounts]] = {}
    typical = {each.length for each in drawn.conversations if each.typical}
    for each in drawn.conversations:
        if each.typical or each.length not in typical:
            by_length.setdefault(each.length, []).append(_summed(amounts(each)))
    total = _NOTHING
    for length, count in drawn.lengths.items():
        group = by_length[min(by_length, key=lambda known: (abs(known - length), known))]
        mean = tuple(None if value is None else value * count / len(group) for value in _summed(group))
        total = _summed([total, mean])
    return total


def _summed(amounts: Iterable[_Amounts]) -> _Amounts:
    """Sums by position; one that is unknown makes its sum unknown."""
    rows = [_NOTHING, *amounts]
    return tuple(None if None in column else sum(value for value in column if value is not None) for column in zip(*rows, strict=True))


def _at_most(drawn: Drawn, dollars: Callable[[Conversation], list[float | None]]) -> float | None:
    """Sum over all windows: each counts like the dearest of the drawn ones that are as long, or the next longer ones."""
    by_length: dict[int, float] = {}
    for each in drawn.conversations:
        parts = dollars(each)
        if None in parts:
            return None
        by_length[each.length] = max(by_length.get(each.length, 0.0), sum(part for part in parts if part is not None))
    longest = max(by_length, default=0)
    return sum(
        count * by_length[min((known for known in by_length if known >= length), default=longest)]
        for length, count in drawn.lengths.items()
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _hours(
    requests: int,
    tokens: float | None,
    concurrency: int,
    seconds: float,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
) -> float | None:
    """The slowest of what limits: the answers themselves, requests a minute, tokens a minute."""
    if tokens_per_minute is not None and tokens is None:
        return None
    limits = [requests * seconds / concurrency / 3600]
    if requests_per_minute is not None:
        limits.append(requests / requests_per_minute / 60)
    if tokens_per_minute is not None and tokens is not None:
        limits.append(tokens / tokens_per_minute / 60)
    return max(limits)


def _unknown(asked: Asked, drawn: Drawn) -> list[str]:
    if asked.free:
        return []
    found = []
    sizes = {picture.pixels.shape[:2] for each in drawn.conversations for request in each.usual for picture in request.pictures.values()}
    height, width = max(sizes, default=(1, 1))
    if asked.picture_tokens is None and pricing.picture_tokens(asked.provider, asked.model, width, height) is None:
        found.append(f"{asked.name}: tokens of a picture are not documented. Give them with --picture-tokens.")
    if asked.price is None and pricing.price_of(asked.provider, asked.model) is None:
        found.append(f"{asked.name}: no price is listed. Give it with --price, in dollars per million input,output tokens.")
    return found
