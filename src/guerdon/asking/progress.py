"""Where a run of asking stands, for progress bars and logs: live and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guerdon.records import Cause


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for progress bars. Counts and sums are of this call of `ask`."""

    done: int = 0
    """Conversations that have ended, failed ones included."""
    asked: int = 0
    """Requests sent, every attempt counted."""
    found: int = 0
    """Requests whose answer lay in the store."""
    failures: Mapping[Cause, int] = field(default_factory=dict)
    """Attempts sent that failed, by cause."""
    input_tokens: int = 0
    output_tokens: int = 0
    """Includes thinking tokens."""
    thinking_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input tokens that vendors read from their caches."""
    dollars: float = 0.0
    """Sum of the known prices of what was sent."""
    price_unknown: int = 0
    """Replies whose price is not known."""
    charged: float = 0.0
    """Dollars that count against a ceiling: known prices, and where the price is unknown the most that it can have been."""
    reserved: float = 0.0
    """Dollars reserved for the requests in flight."""
    in_flight: int = 0
    """Requests sent, or handed to a vendor's queue, whose outcome is not written down yet."""
    allowed: int = 0
    """Requests that may be in flight now, of the rater that may have the fewest."""
    batches: int = 0
    """Batches that lie with a vendor."""
    finished: int = 0
    """Those of the requests in batches that are finished, as far as the vendor says so."""
    waiting: str = ""
    """What the next request waits for: "limit" (per minute), "retry-after" (the rater asked for a pause), "server" (it does not answer),
    "money" (reserved by others in flight), "vendor" (batches), "others" (other processes), or "" for nothing of that kind; "stopping" when
    only what is in flight is still awaited."""
