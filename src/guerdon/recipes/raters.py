"""From a `--vlm` text to a rater that may be asked.

    scripted, scripted:noisy, replay:FOLDER     a file of `providers/` (or of an installed plug-in), with its own argument after the colon
    openai-compatible:MODEL@URL                 the same: a server of one's own that speaks OpenAI's chat completions
    google:MODEL, openai:MODEL, ...             a prefix that pydantic-ai knows

Also guards the user's pictures: frames of a dataset are sent to another machine only after somebody has agreed to it once. Reads and writes
the list of hosts agreed to (JSON, host -> time).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guerdon import discover
from guerdon.errors import ConsentNeeded, UnknownName, UsageError, WriteFailed
from guerdon.interfaces import Provider
from guerdon.pricing import parse_price
from guerdon.records import Price
from guerdon.runs import read_json, user_data_folder, write_json

_CHAT = "chat"
"""The file behind all vendor prefixes; not a name of its own."""


def provider_names() -> list[str]:
    """What may stand before the colon of `--vlm` besides the prefixes of vendors, sorted. Imports no provider."""
    return sorted(set(discover.names("providers")) - {_CHAT})


def provider_of(spec: str) -> str:
    """Name of the provider file behind a `--vlm` text: the vendors' prefixes all belong to "chat"."""
    name = spec.partition(":")[0]
    return name if name in discover.names("providers") else _CHAT


def prices_of(specs: Sequence[str], prices: Sequence[str]) -> list[Price | None]:
    """What the user says that each rater costs; a single price holds for all of them. Raises UsageError for a text that is no price."""
    stated = [parse_price(text) for text in prices]
    return [*stated] * len(specs) if len(stated) == 1 else [*stated] or [None] * len(specs)


def build(spec: str, *, config: Any = None, **context: Any) -> Provider:
    """The rater that a `--vlm` text names.

    Args:
        spec: e.g. "scripted:perfect", "replay:recorded/", "google:gemini-2.5-flash".
        config: settings of that provider (its `Config`); its defaults if None.
        context: what only some providers need, e.g. `truth` and `truth_id` for `scripted`; each takes what it knows by name.

    Raises:
        UnknownName: if nothing has that name; the message lists what there is.
        ProviderError, UsageError, MissingExtra: if the rater cannot be built; the message says what to do.
    """
    name, _, argument = spec.partition(":")
    if name in provider_names():
        return _construct(discover.load("providers", name), argument, config, context)
    chat = discover.load("providers", _CHAT)
    if ":" not in spec:
        raise _unknown(name)
    try:
        return _construct(chat, spec, config, context)
    except UnknownName:
        raise _unknown(name) from None


def check_world(spec: str, world: Mapping[str, Any]) -> None:
    """Raises UsageError if the rater that a `--vlm` text names reads recordings of other worlds only. Builds no rater.

    Args:
        spec: the text.
        world: what the recorder of a dataset wrote about it (`Dataset.environment`).
    """
    check = getattr(discover.load("providers", provider_of(spec)), "check_world", None)
    if check is not None:
        check(world)


def _construct(provider: Any, argument: str, config: Any, context: dict[str, Any]) -> Provider:
    """Calls the provider's `build`, or its constructor if it has none, with what it takes of the context."""
    make: Callable[..., Provider] = getattr(provider, "build", provider)
    known = inspect.signature(make).parameters
    given = {"argument": argument, "config": config, **context}
    if argument and "argument" not in known:
        raise UsageError(f"takes nothing after the colon, got '{argument}'", where=provider.__module__.rpartition(".")[2])
    return make(**{name: value for name, value in given.items() if name in known and value is not None})


def _unknown(name: str) -> UnknownName:
    from guerdon.providers.chat import prefixes

    cure = f"Or a vendor's prefix, as PREFIX:MODEL: {', '.join(prefixes())}."
    return UnknownName("rater", name, provider_names(), cure=cure)


# --- consent ------------------------------------------------------------------------------------------------------------------------


def default_consent_path() -> Path:
    """The user's own list of hosts agreed to."""
    return user_data_folder() / "consent.json"


def require_consent(
    provider: Provider,
    *,
    yes: bool = False,
    remembered: Path | None = None,
    question: Callable[[str], str] | None = None,
) -> None:
    """Makes sure that the user agrees to frames being sent to the provider's host, unless it is this machine. Each host is agreed to once.

    Args:
        provider: the rater that is about to be asked.
        yes: the user agrees (flag `--yes`); what is agreed to is printed all the same.
        remembered: where agreements are kept; `default_consent_path()` if None.
        question: asks the user and returns the answer; by default the terminal, or nobody if there is none.

    Raises:
        ConsentNeeded: if the user does not agree, or cannot be asked.
        RunError: if the list of agreements is damaged.
    """
    host = provider.remote
    if not host:
        return
    path = remembered or default_consent_path()
    agreed: dict[str, str] = read_json(path) if path.is_file() else {}
    if host in agreed:
        return
    print(f"Pictures, instructions and actions of the dataset will be sent to {host} ({provider.rater.name}).", file=sys.stderr)
    ask = question or (input if sys.stdin.isatty() and sys.stderr.isatty() else None)
    if not yes and (ask is None or ask("Send them? [y/N] ").strip().lower() not in ("y", "yes")):
        raise ConsentNeeded(f"nobody has agreed to frames being sent to {host}", cure="Agree to it once with --yes.")
    try:
        write_json(path, {**agreed, host: datetime.now(UTC).isoformat(timespec="seconds")})
    except WriteFailed as error:  # agreed all the same; it will be asked again
        print(f"note: the agreement could not be kept: {error}", file=sys.stderr)
