"""Carries out conversations: which request goes out when, what is tried again, when everything stops.

Reads samples, asks raters, writes the store; the only place of the package that sends requests. A conversation asks the method for its next
request until there is none. Each request is looked up in the store first and sent only if it is not there; each reply is on disk before the
next request of its conversation is sent. Samples are pulled only as fast as conversations end, so a hundred thousand windows take the
memory of those in flight.

Failures come in three kinds. One that would only repeat itself (`final`) ends its conversation. A transient one is tried again after a
pause, a few times. One that lies with the account (authentication, quota) stops the run: requests in flight finish and are saved, no other
is sent. Cancelling (Ctrl-C) stops a run in the same way; cancelling once more does not wait. Durations are seconds.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from guerdon import seeding
from guerdon.asking.store import ACCOUNT_CAUSES, Key, Store
from guerdon.errors import AuthenticationRefused, ProviderError, QuotaExhausted, UsageError
from guerdon.interfaces import Method, Provider
from guerdon.records import Cause, Exchange, Failure, Reply, Request, Sample, Transcript

LEASE = 12.0
"""Seconds a claim lives without being renewed: how long the requests in flight of a killed process wait for the next one."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt, and the most that doubling it leads to."""
LONGEST_RETRY_AFTER = 300.0
"""A provider that asks to wait longer is not waited for: the conversation fails, and a later run asks again."""
_POLL_FIRST, _POLL_LONGEST = 0.02, 1.0

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for progress bars. Counts are of this call of `ask`."""

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
    dollars: float = 0.0
    """Sum of the known prices of what was sent."""
    price_unknown: int = 0
    """Replies whose price is not known."""


class _Stopped(Exception):
    """The run is stopping: this conversation sends nothing more. No error by itself."""


async def ask(
    samples: Iterable[Sample],
    method: Method,
    raters: Sequence[Provider],
    store: Store,
    *,
    run: str,
    concurrency: int = 8,
    repeat: int = 0,
    retry_failed: bool = False,
    attempts: int = 4,
    on_event: Callable[[Progress], None] | None = None,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[Transcript]:
    """Carries out one conversation per sample and yields each when it has ended, in the order in which they end.

    Iterate inside `contextlib.aclosing`, so that leaving the loop early also waits for what is in flight.

    Args:
        samples: pulled one at a time, as conversations end.
        method: says what to ask next.
        raters: whom to ask; `Request.rater` is an index into them.
        store: where replies are looked up and written.
        run: name under which `Store.costs` sums up.
        concurrency: conversations in flight at once.
        repeat: which of several independent answers is wanted.
        retry_failed: also ask what failed for good before.
        attempts: how often a request is sent at most while it fails for transient causes.
        on_event: called with the state of the run after every request and every conversation.
        sleep: waits out the pauses between attempts; tests pass one that does not wait.

    Raises:
        AuthenticationRefused, QuotaExhausted: if the account may not or cannot go on; everything answered so far is in the store.
        ProviderError: if a rater cannot be asked at all.
        StoreError: if an answer could not be written down.
        UsageError: if the method asks a rater that was not given.
    """
    if concurrency < 1 or attempts < 1:
        raise UsageError(f"concurrency and attempts must be at least 1, got {concurrency} and {attempts}")
    asker = _Asker(method, raters, store, run, repeat, retry_failed, attempts, on_event or (lambda _progress: None), sleep)
    pending = iter(samples)
    in_flight: set[asyncio.Task[Transcript]] = set()
    heartbeat = asyncio.create_task(asker.keep_claims())
    try:
        while True:
            while len(in_flight) < concurrency and not asker.stopping.is_set() and (sample := next(pending, None)) is not None:
                in_flight.add(asyncio.create_task(asker.converse(sample)))
            if not in_flight:
                break
            ended, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
            for transcript in [task.result() for task in ended if not asker.stopped_by(task)]:
                yield transcript
        asker.raise_what_stopped_it()
    finally:
        asker.stopping.set()
        try:
            await _finish(in_flight)
        finally:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
            await asker.close()


async def _finish(in_flight: set[asyncio.Task[Transcript]]) -> None:
    """Waits until the requests in flight are answered and saved; a second cancellation ends them instead."""
    if not in_flight:
        return
    try:
        await asyncio.wait(in_flight)
    except asyncio.CancelledError:
        for task in in_flight:
            task.cancel()
        raise
    finally:
        await asyncio.gather(*in_flight, return_exceptions=True)


class _Asker:
    """What the conversations of one run share."""

    def __init__(
        self,
        method: Method,
        raters: Sequence[Provider],
        store: Store,
        run: str,
        repeat: int,
        retry_failed: bool,
        attempts: int,
        on_event: Callable[[Progress], None],
        sleep: Sleep,
    ) -> None:
        self._method, self._raters, self._store = method, raters, store
        self._run, self._repeat, self._retry_failed, self._attempts = run, repeat, retry_failed, attempts
        self._on_event, self._sleep = on_event, sleep
        self._owner = f"{os.getpid()}/{uuid.uuid4().hex}"
        self._claims = 0
        self._counts: Counter[str] = Counter()
        self._failures: Counter[Cause] = Counter()
        self._dollars = 0.0
        self._reason: BaseException | None = None
        self.stopping = asyncio.Event()

    # --- stopping ---

    def stopped_by(self, task: asyncio.Task[Transcript]) -> bool:
        """Whether the conversation broke off. An error stops the whole run; the first one is raised at the end."""
        error = task.exception()
        if error is None:
            return False
        if self._reason is None and not isinstance(error, _Stopped):
            self._reason = error
        self.stopping.set()
        return True

    def raise_what_stopped_it(self) -> None:
        """Raises the error that stopped the run, if one did."""
        if self._reason is not None:
            raise self._reason

    async def keep_claims(self) -> None:
        """Renews the claims of this run for as long as it is alive."""
        while True:
            await asyncio.sleep(LEASE / 4)
            if self._claims:
                await self._store.renew(self._owner, LEASE)

    async def close(self) -> None:
        """Gives up claims that a cancellation has left behind."""
        if self._claims:
            await self._store.release(self._owner)

    # --- one conversation ---

    async def converse(self, sample: Sample) -> Transcript:
        """All exchanges about one sample, to the end or to the first failure."""
        exchanges: list[Exchange] = []
        while (request := self._method.next(sample, tuple(exchanges))) is not None:
            exchanges.append(await self._exchange(request))
            if isinstance(exchanges[-1].outcome, Failure):
                break
        self._counts["done"] += 1
        self._report()
        return Transcript(sample, tuple(exchanges), self._repeat)

    async def _exchange(self, request: Request) -> Exchange:
        provider = self._rater(request)
        key = Key(request.question, provider.rater.key, self._repeat)
        found = await self._store.find(key.question, key.rater, key.repeat, retry_failed=self._retry_failed)
        for attempt in range(1, self._attempts + 1):
            found = found or await self._claim(key)
            if found is not None:
                self._counts["found"] += 1
                self._report()
                return Exchange(request, found)
            outcome = await self._send(provider, request)
            if isinstance(outcome, Reply) or outcome.final or attempt == self._attempts or not _worth_waiting(outcome):
                break
            await self._pause(_pause_length(request, attempt, outcome))
        return Exchange(request, outcome, asked_now=True)

    def _rater(self, request: Request) -> Provider:
        if not 0 <= request.rater < len(self._raters):
            what = f"the method '{self._method.name}' asks rater number {request.rater + 1}, but {len(self._raters)} were given"
            raise UsageError(what, cure="Give --vlm once for each rater.")
        return self._raters[request.rater]

    async def _claim(self, key: Key) -> Reply | Failure | None:
        """None once the request is ours to send, or what another process stored while it was not."""
        wait = _POLL_FIRST
        while True:
            self._refuse_if_stopping()
            granted = await self._store.claim(key, self._owner, LEASE, retry_failed=self._retry_failed)
            if granted is True:
                self._claims += 1
                return None
            if granted is not False:
                return granted
            await self._until_stopped(asyncio.sleep(wait))
            wait = min(2 * wait, _POLL_LONGEST)

    async def _send(self, provider: Provider, request: Request) -> Reply | Failure:
        """One attempt, written down, which also ends the claim. (A claim left behind by an error is given up in `close`.)"""
        self._refuse_if_stopping()
        started = time.time()
        outcome = await provider.ask(request, repeat=self._repeat)
        counted = await self._store.record(request, provider.rater, self._repeat, outcome, run=self._run, started=started)
        self._claims -= 1
        self._count(outcome)
        if isinstance(outcome, Failure) and outcome.cause in ACCOUNT_CAUSES:
            raise _account_error(provider, outcome)
        return counted

    def _refuse_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise _Stopped

    async def _pause(self, seconds: float) -> None:
        await self._until_stopped(self._sleep(seconds))
        self._refuse_if_stopping()

    async def _until_stopped(self, waiting: Awaitable[None]) -> None:
        """Awaits `waiting`, but no longer than until the run stops."""
        both = {asyncio.ensure_future(waiting), asyncio.create_task(self.stopping.wait())}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()

    # --- telling ---

    def _count(self, outcome: Reply | Failure) -> None:
        usage = outcome.usage
        self._counts["asked"] += 1
        self._counts["input_tokens"] += usage.input_tokens or 0
        self._counts["output_tokens"] += usage.output_tokens or 0
        self._dollars += usage.dollars or 0.0
        if isinstance(outcome, Failure):
            self._failures[outcome.cause] += 1
        elif usage.dollars is None:
            self._counts["price_unknown"] += 1
        self._report()

    def _report(self) -> None:
        self._on_event(Progress(failures=dict(self._failures), dollars=self._dollars, **self._counts))


def _worth_waiting(failure: Failure) -> bool:
    return failure.retry_after is None or failure.retry_after <= LONGEST_RETRY_AFTER


def _pause_length(request: Request, attempt: int, failure: Failure) -> float:
    """Seconds before the next attempt: doubling, or what the provider asked for; spread out, so that not all come back at once."""
    spread = float(seeding.generator(0, "pause", request.question, attempt).uniform(0.5, 1.5))
    doubling = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * spread
    return doubling if failure.retry_after is None else failure.retry_after + spread * FIRST_PAUSE


def _account_error(provider: Provider, failure: Failure) -> ProviderError:
    where = provider.rater.name
    status = f" (HTTP {failure.status})" if failure.status else ""
    cure = "Everything answered so far is kept: the same command goes on from here."
    if failure.cause == "quota":
        return QuotaExhausted(f"the account has no quota left{status}", where=where, cure=f"Top it up or wait. {cure}")
    return AuthenticationRefused(f"the key was refused{status}", where=where, cure=f"Check the key and what it may use. {cure}")
