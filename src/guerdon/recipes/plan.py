"""What labelling would take, before anything is sent: requests, tokens, money and time, for several raters side by side.

Nothing leaves this machine and no key is needed. The numbers are those of `reckoning.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from guerdon import samples
from guerdon.errors import UsageError
from guerdon.recipes import label, raters, reckoning
from guerdon.recipes.data import open_data
from guerdon.recipes.settings import callable_with_settings


@dataclass(frozen=True, kw_only=True)
class Config(label.Config):
    """What would be labelled, and whose costs are compared. Takes what `label` takes."""

    run: Path = Path()
    """Not needed: nothing is written."""
    vlm: tuple[str, ...] = ("embedded",)
    """Whose costs to show, side by side, each as if it answered alone: "google:MODEL", "openai:MODEL", "anthropic:MODEL",
    "openai-compatible:MODEL@URL" ..."""
    seconds_per_request: float = reckoning.SECONDS_PER_REQUEST
    """Seconds that one answer takes."""
    output_tokens: int | None = None
    """Length of one answer in tokens, thinking included, instead of the assumed one."""
    picture_tokens: int | None = None
    """Tokens of one picture, instead of the vendor's formula."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("output_tokens", "picture_tokens"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is at least 1, got {count}")
        if not 0.0 < self.seconds_per_request < math.inf:
            raise UsageError(f"seconds_per_request is a number above 0, got {self.seconds_per_request}")


@dataclass(frozen=True)
class Plan:
    """What labelling a dataset would take."""

    judged: str
    """What is judged at a time, in the plural: "windows", "pictures" ..."""
    windows: int
    """How many of them there are."""
    transitions: int
    """Transitions judged, counted once for each annotation."""
    drawn: int
    """Those whose pictures were drawn; the others are reckoned by their length."""
    raters: tuple[reckoning.Planned, ...]
    """In the order in which they were named."""

    def per_thousand_transitions(self, planned: reckoning.Planned) -> float | None:
        """Dollars for 1,000 transitions; None if the price is unknown."""
        return None if planned.dollars is None else 1000 * planned.dollars / self.transitions


@callable_with_settings(Config)
def plan(config: Config) -> Plan:
    """Reckons what `label` would take with the same settings. Sends nothing, writes nothing, needs no key and reads no store: what is
    answered already costs nothing again, and is counted here all the same.

    Raises:
        DatasetError, UsageError: each says what to do.
    """
    asked = reckoning.asked_of(
        config.vlm, config.rater_settings, config.price, output_tokens=config.output_tokens, picture_tokens=config.picture_tokens
    )
    dataset = open_data(config.dataset, config)
    for spec in config.vlm:
        raters.check_world(spec, dataset.environment)
    method = label.make_method(replace(config, vlm=config.vlm[:1]), dataset)
    config = label.with_kind(config, method)
    selection = label.selection_of(config, dataset)
    drawn = reckoning.draw(samples.select(dataset, config.sampling), method)
    columns = tuple(label.planned_with(config, drawn, [each], seconds_per_request=config.seconds_per_request) for each in asked)
    return Plan(config.sampling.judged, selection.samples, selection.transitions, len(drawn.conversations), columns)
