"""Carries out conversations through vendors' batch queues, at half price, for who can wait: all first turns, then all second turns.

Every conversation is advanced with stored answers as far as that goes. The requests that are then open are claimed under the name of a
batch of ours, put into the vendor's words in a temporary file, and handed over together; what comes back is stored like any other answer,
and the conversations go on from there. Pictures are drawn when a request is put into the file and are not kept.

A batch is money, so a kill at any moment must neither lose one nor pay for one twice. What is written down, in this order:

    intended, no requests    it is being put together: nothing has been sent
    intended                 it is about to be handed over: whether it arrived is asked of the vendor, later if need be
    submitted                it arrived, under the vendor's name
    ended                    every request has its outcome

The claims of a batch belong to it, not to a process. Whoever runs the same command later finds the batches that are open, looks for those
that may have arrived, collects those that have ended, and asks again only what certainly never arrived or failed for passing reasons. A
process that puts a batch together renews its claims; one that has not done so for a while is taken for dead. Durations are seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from guerdon.asking._ledger import BATCH
from guerdon.asking.progress import Progress
from guerdon.asking.scheduler import account_error, rater_for
from guerdon.asking.store import ACCOUNT_CAUSES, BatchRow, Claim, Key, Store
from guerdon.errors import (
    CeilingReached,
    ProviderError,
    RaterUnreachable,
    ResultsGone,
    StoreError,
    UsageError,
)
from guerdon.interfaces import BatchDraft, Batches, BatchStatus, Method, Provider
from guerdon.records import Cause, Exchange, Failure, Picture, Reply, Request, Sample, Transcript, digest

LEASE = 8 * 86400.0
"""Seconds for which the requests of a batch belong to it: vendors end a batch after a day at most, and keep its results for longer."""
DRAFT_LEASE = 600.0
"""Seconds for which the requests of a batch that is being put together belong to it."""
LARGEST = 10_000
"""Requests in one batch, unless more are asked for: so much may be lost by a vendor at once, and their texts are in memory for a moment."""
_CHUNK = 32
"""Conversations advanced, and results written, at a time."""
_KEPT = "Everything answered so far is kept, and so are the batches at the vendor"
_TROUBLES = 10
"""How often in a row a vendor may fail to say how a batch stands, or to take one."""

Sleep = Callable[[float], Awaitable[None]]


async def ask_in_batches(
    samples: Iterable[Sample],
    method: Method,
    raters: Sequence[Provider],
    store: Store,
    *,
    run: str,
    repeats: int = 1,
    retry_failed: bool = False,
    retry_lost: bool = False,
    attempts: int = 3,
    ceiling: float | None = None,
    poll: float = 60.0,
    largest: int | None = None,
    wait: bool = True,
    settling: float = 120.0,
    on_event: Callable[[Progress], None] | None = None,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[Transcript]:
    """Carries out conversations through the raters' batch queues and yields each when it has ended, in the order in which they end.

    Leaving early, an error or Ctrl-C ends nothing at the vendor: what was handed over is paid for, and the same call collects it. Iterate
    inside `contextlib.aclosing`, so that what is being put together is given up in an orderly way.

    Args:
        samples: all are kept in memory, their pictures are not.
        method: says what to ask next.
        raters: whom to ask; `Request.rater` is an index into them.
        store: where replies are looked up and written, and batches are kept track of.
        run: name under which `Store.costs` sums up.
        repeats: conversations about each sample, independent of each other.
        retry_failed: also ask what failed for good before.
        retry_lost: ask again, once more for money, what lies in a batch that the vendor no longer knows.
        attempts: how often a request is handed over at most while it fails for transient causes.
        ceiling: US dollars that the run may spend; None for no limit.
        poll: seconds between two looks at the vendors.
        largest: the most requests in one batch; `LARGEST` if not given, and never more than the vendor takes.
        wait: False to do what can be done now and return; batches may then be pending (`Progress.in_flight`).
        settling: seconds after which a process without a sign of life is taken for dead, and a vendor lists every batch that arrived.
        on_event: called with the state of the run whenever it changes.
        sleep: waits between two looks; tests pass one that does not wait.

    Raises:
        UsageError: if a rater has no batch queue, was not given, or has no known price and there is a ceiling.
        AuthenticationRefused, QuotaExhausted: if the account may not or cannot go on.
        RaterUnreachable: if a vendor does not answer.
        ProviderError: if a vendor refuses a whole batch, or no longer knows one; says what to do.
        CeilingReached: if nothing is pending and the next request could cost too much.
        StoreError: if something could not be written down.
    """
    if attempts < 1 or repeats < 1 or (largest is not None and largest < 1):
        raise UsageError(f"attempts, repeats and largest are at least 1, got {attempts}, {repeats} and {largest}")
    asker = _BatchAsker(
        samples=[(sample, repeat) for sample in samples for repeat in range(repeats)], method=method, raters=raters, store=store, run=run,
        retry_failed=retry_failed, retry_lost=retry_lost, attempts=attempts, ceiling=ceiling, largest=largest or LARGEST, wait=wait,
        settling=settling, on_event=on_event or (lambda _progress: None),
    )  # fmt: skip
    try:
        while True:
            await asker.look_after_batches()
            while asker.can_go_on():
                for transcript in await asker.advance():
                    yield transcript
            await asker.hand_over_all()
            if asker.finished():
                return
            if wait:
                await sleep(poll)
            asker.look_again()
    finally:
        await asker.close()


@dataclass
class _Order:
    """A batch that is being put together."""

    marker: str
    rater: int
    draft: BatchDraft
    items: dict[str, tuple[Request, int]] = field(default_factory=dict)
    """Its requests without their pixels."""
    keys: list[Key] = field(default_factory=list)

    @property
    def owner(self) -> str:
        return _owner(self.marker)

    def row(self, rater: str, run: str) -> BatchRow:
        """What the store knows of it once it is handed over."""
        return BatchRow(
            self.marker, rater, run, "intended", None, time.time(), self.draft.size, dict(zip(self.items, self.keys, strict=True))
        )


@dataclass
class _Open:
    """A request that nobody has answered, and the conversation that waits for it."""

    conversation: int
    request: Request
    key: Key


def _owner(batch: str) -> str:
    return BATCH + batch


class _BatchAsker:
    """The state of one call."""

    def __init__(
        self,
        *,
        samples: Sequence[tuple[Sample, int]],
        method: Method,
        raters: Sequence[Provider],
        store: Store,
        run: str,
        retry_failed: bool,
        retry_lost: bool,
        attempts: int,
        ceiling: float | None,
        largest: int,
        wait: bool,
        settling: float,
        on_event: Callable[[Progress], None],
    ) -> None:
        self._samples, self._method, self._raters, self._store, self._run = samples, method, raters, store, run
        self._retry_failed, self._retry_lost, self._attempts, self._ceiling = retry_failed, retry_lost, attempts, ceiling
        self._largest, self._wait, self._settling, self._on_event = largest, wait, settling, on_event
        self._queues = _queues(raters)
        self.ready: deque[int] = deque(range(len(samples)))
        """Conversations that may be able to go on: begun ones before new ones."""
        self._waiting: dict[Key, list[int]] = {}
        self._held_back: list[int] = []
        """Conversations that money or a full queue keeps from going on."""
        self._dearest = 0.0
        """The most that a request could cost that was too dear."""
        self._tries: Counter[Key] = Counter()
        self._failed: dict[Key, Failure] = {}
        """What became last of a request that failed in this call."""
        self._given_up: set[Key] = set()
        self._asked_now: set[Key] = set()
        self._orders: dict[int, _Order] = {}
        self._full: list[_Order] = []
        self._refusals: Counter[int] = Counter()
        self._paused: set[int] = set()
        """Raters whose queue takes nothing now."""
        self._troubles: Counter[str] = Counter()
        """How often in a row a vendor has not said how a batch stands."""
        self._unfetched: Counter[str] = Counter()
        """How often in a row its results could not be fetched, although it has ended."""
        self._pending: dict[str, BatchRow] = {}
        self._finished: dict[str, int] = {}
        self._collected = False
        self._counts: Counter[str] = Counter()
        self._failures: Counter[Cause] = Counter()
        self._dollars = 0.0
        self._heartbeat: asyncio.Task[None] | None = None

    # --- conversations ---

    def can_go_on(self) -> bool:
        """Whether there are conversations to advance. Where some are held back, the others are not even looked at: it would be in vain."""
        return bool(self.ready) and not self._held_back

    async def advance(self) -> list[Transcript]:
        """Takes some conversations as far as stored answers go, puts open requests into batches, and returns what has ended."""
        ended: list[Transcript] = []
        opened: list[_Open] = []
        for _ in range(min(_CHUNK, len(self.ready))):
            gone_on = await self._converse(self.ready.popleft())
            if isinstance(gone_on, Transcript):
                ended.append(gone_on)
            elif gone_on is not None:
                opened.append(gone_on)
        await self._claim_all(opened)
        self._report()
        return ended

    async def _converse(self, number: int) -> Transcript | _Open | None:
        sample, repeat = self._samples[number]
        exchanges: list[Exchange] = []
        while (request := self._method.next(sample, tuple(exchanges))) is not None:
            key = Key(request.question, rater_for(request, self._raters, self._method).rater.key, repeat)
            outcome = await self._store.find(key.question, key.rater, key.repeat, retry_failed=self._retry_failed)
            outcome = outcome or self._last_word(key)
            if outcome is None:
                return self._open(number, request, key)
            exchanges.append(Exchange(request, outcome, asked_now=key in self._asked_now))
            if isinstance(outcome, Failure):
                break
        self._counts["done"] += 1
        self._counts["found"] += sum(not exchange.asked_now for exchange in exchanges)
        return Transcript(sample, tuple(exchanges), repeat)

    def _open(self, number: int, request: Request, key: Key) -> _Open | None:
        if key in self._waiting:  # two conversations with the same question
            self._waiting[key].append(number)
            return None
        self._waiting[key] = [number]
        return _Open(number, request, key)

    def _last_word(self, key: Key) -> Failure | None:
        """The failure that ends the conversation: asking again is useless, or has been tried often enough."""
        failure = self._failed.get(key)
        if failure is None or not (failure.final or key in self._given_up or self._tries[key] >= self._attempts):
            return None
        return failure

    def _wake(self, keys: Iterable[Key]) -> None:
        """Lets conversations go on that wait for any of `keys`."""
        for key in keys:
            self.ready.extendleft(self._waiting.pop(key, ()))  # begun ones come before new ones

    # --- claiming and drafting ---

    async def _claim_all(self, opened: Sequence[_Open]) -> None:
        by_rater: dict[int, list[_Open]] = {}
        for one in opened:
            by_rater.setdefault(one.request.rater, []).append(one)
        for rater, of_rater in by_rater.items():
            rest = of_rater
            while rest and rater not in self._paused:
                rest = await self._put(rater, rest)
            self._hold_back(one.key for one in rest)

    async def _put(self, rater: int, opened: Sequence[_Open]) -> list[_Open]:
        """Claims requests and puts them into the rater's batch; returns those that have no place in it any more."""
        order = await self._order(rater)
        claims = [self._claim(order, one) for one in opened]
        granted = [one for one, taken in zip(opened, await asyncio.gather(*claims), strict=True) if taken]
        for position, one in enumerate(granted):
            name = _name(order.marker, one.key)
            placed = await order.draft.add(name, one.request, one.key.repeat)
            if placed is True:
                order.items[name] = (one.request.with_pictures(_bare), one.key.repeat)
                order.keys.append(one.key)
            elif isinstance(placed, Failure):
                await self._take_in(one.request, one.key, placed, self._run, order.owner, time.time())
                self._wake([one.key])
            else:
                rest = granted[position:]
                await asyncio.gather(*(self._store.release(order.owner, left.key) for left in rest))
                self._full.append(self._orders.pop(rater))
                await self._hand_over_full()
                return rest
        return []

    async def _order(self, rater: int) -> _Order:
        """The batch that is being put together for a rater, begun if there is none."""
        if rater not in self._orders:
            marker = f"g{uuid.uuid4().hex[:23]}"
            await asyncio.to_thread(self._store.intend_batch, marker, self._raters[rater].rater, self._run, {})
            self._orders[rater] = _Order(marker, rater, self._queues[rater].draft(self._largest))
            if self._heartbeat is None:
                self._heartbeat = asyncio.create_task(self._keep_claims())
        return self._orders[rater]

    async def _claim(self, order: _Order, one: _Open) -> bool:
        """Whether the request is ours to send."""
        dollars = self._price(one.request)
        taken = await self._store.claim(
            one.key, order.owner, DRAFT_LEASE, run=self._run, retry_failed=self._retry_failed, dollars=dollars, ceiling=self._ceiling
        )
        if taken is Claim.GRANTED:
            return True
        if taken is Claim.TOO_DEAR:
            self._dearest = max(self._dearest, dollars or 0.0)
            self._hold_back([one.key])
        elif not isinstance(taken, Claim):
            self._wake([one.key])
        return False  # held: it waits for a batch that is open, or for another process

    def _price(self, request: Request) -> float | None:
        quote = self._queues[request.rater].quote(request)
        if self._ceiling is not None and (quote is None or quote.dollars is None):
            what = f"a ceiling cannot be kept, because no price of batches is known for '{self._raters[request.rater].rater.name}'"
            raise UsageError(what, cure="Give its price with --price, or leave the ceiling out.")
        return None if quote is None else quote.dollars

    async def _keep_claims(self) -> None:
        """Gives signs of life for what is being put together or handed over."""
        while True:
            await asyncio.sleep(max(0.05, min(self._settling / 4, 15.0)))
            with suppress(StoreError):  # what is wrong with the store, the next write says; here the next sign of life may succeed
                for order in [*self._orders.values()]:
                    await self._store.renew(order.owner, DRAFT_LEASE)
                for order in [*self._full]:
                    await self._store.renew(order.owner, LEASE)

    # --- handing over ---

    async def hand_over_all(self) -> None:
        """Hands over everything that has been put together."""
        self._full += [self._orders.pop(rater) for rater in list(self._orders)]
        await self._hand_over_full()
        self._report()

    async def _hand_over_full(self) -> None:
        while self._full:
            order = self._full[0]
            try:
                if order.draft.size:
                    # Leaving now would leave open whether the batch arrived: it is handed over and written down first.
                    await _to_its_end(self._hand_over(order))
                else:
                    await self._drop(order.marker, "empty", order.keys)
            finally:
                order.draft.close()
                if order in self._full:
                    self._full.remove(order)

    async def _hand_over(self, order: _Order) -> None:
        store, provider = self._store, self._raters[order.rater]
        row = order.row(provider.rater.key, self._run)
        # First the lease, then the intent: who reads the intent must not take an old lease for the silence of a dead process.
        await store.renew(order.owner, LEASE)
        await asyncio.to_thread(store.intend_batch, order.marker, provider.rater, self._run, order.items)
        order.items = {}
        held, _left = await store.holds(order.owner)
        state = await asyncio.to_thread(store.batch_state, order.marker)
        if held != order.draft.size or state != "intended":
            # This process gave no sign of life for so long that others have taken some of its requests over, or have ended its batch:
            # nobody would look for it at the vendor.
            await self._drop(order.marker, "overtaken", order.keys)
            return
        answer = await self._queues[order.rater].create(order.marker, order.draft)
        if isinstance(answer, Failure):
            await self._refused(order.marker, order.rater, order.keys, answer)
            return
        self._counts["asked"] += order.draft.size
        self._asked_now.update(order.keys)
        self._pending[order.marker] = row
        if answer is not None:
            await asyncio.to_thread(store.batch_submitted, order.marker, answer)

    async def _drop(self, marker: str, state: str, keys: Iterable[Key]) -> None:
        """Ends a batch of which nothing was sent or done: its requests are free again."""
        await self._store.release(_owner(marker))
        await asyncio.to_thread(self._store.batch_ended, marker, state)
        self._pending.pop(marker, None)
        self._hold_back(keys)

    def _hold_back(self, keys: Iterable[Key]) -> None:
        """Lets conversations that wait for any of `keys` be looked at again in the next round."""
        for key in keys:
            self._held_back.extend(self._waiting.pop(key, ()))

    async def _refused(self, marker: str, rater: int, keys: Sequence[Key], failure: Failure) -> None:
        """A whole batch was turned away, and nothing of it was done. A queue that is full is tried again later, after others have ended."""
        await self._drop(marker, "refused", keys)
        where = self._raters[rater].rater.name
        if failure.cause in ACCOUNT_CAUSES:
            raise account_error(where, failure, told=_told(failure), kept=_KEPT)
        self._refusals[rater] += 1
        self._paused.add(rater)
        others = any(row.rater == self._raters[rater].rater.key for row in self._pending.values())
        if failure.final or (self._refusals[rater] >= _TROUBLES and not others):
            what = f"the vendor takes no batch of {len(keys)} requests ({_told(failure)})"
            cure = "Try a smaller one (largest), or ask without batches. Nothing was charged for it; everything answered so far is kept."
            raise ProviderError(what, where=where, cure=cure)

    # --- looking after batches ---

    async def look_after_batches(self) -> None:
        """Finds batches that are open, and collects those that have ended."""
        self._collected = False
        rows = [row for rater in {p.rater.key for p in self._raters} for row in await self._open_rows(rater)]
        self._pending = {row.id: row for row in rows if row.items}
        self._finished = {name: count for name, count in self._finished.items() if name in self._pending}
        for row in rows:
            await self._look_after(row)
            self._report()

    async def _open_rows(self, rater: str) -> list[BatchRow]:
        own = {order.marker for order in [*self._orders.values(), *self._full]}
        return [row for row in await asyncio.to_thread(self._store.open_batches, rater=rater) if row.id not in own]

    async def _look_after(self, row: BatchRow) -> None:
        rater = next(number for number, provider in enumerate(self._raters) if provider.rater.key == row.rater)
        vendor_id = row.vendor_id if row.state == "submitted" else await self._reconcile(row, rater)
        if vendor_id is None:
            return
        status = await self._queues[rater].status(vendor_id)
        if isinstance(status, Failure):
            if status.status == 404:
                await self._lost(row, rater, "the vendor knows no batch of that name (is the key one of the same account?)")
            else:
                self._trouble(row, rater, status)
            return
        self._troubles[row.id] = 0
        self._finished[row.id] = status.finished
        whole = status.rest
        if status.state == "failed" and whole is not None and whole.cause != "timeout":
            await self._queues[rater].forget(row.id, vendor_id)
            await self._refused(row.id, rater, list(row.items.values()), whole)
        elif status.state != "running":
            await self._collect(row, rater, vendor_id, status)

    async def _reconcile(self, row: BatchRow, rater: int) -> str | None:
        """The vendor's name of a batch that was about to be handed over; None if it never arrived, or that cannot be said yet."""
        silent = await self._silence(row)
        if not row.items:  # it was still being put together
            if silent:
                await self._drop(row.id, "unfinished", ())
            return None
        found = await self._queues[rater].find(row.id, since=row.created, size=len(row.items), others=self._known_names())
        if isinstance(found, str):
            await asyncio.to_thread(self._store.batch_submitted, row.id, found)
            return found
        if isinstance(found, Failure) and found.final:
            await self._lost(row, rater, f"it cannot be known whether it arrived ({_told(found)})")
        elif isinstance(found, Failure):
            if found.code != "batch_still_running":
                self._trouble(row, rater, found)
        elif silent and await self._silence(row):  # still: nobody has begun to hand it over meanwhile
            self._collected = True
            await self._drop(row.id, "never arrived", row.items.values())
        return None

    def _known_names(self) -> frozenset[str]:
        return frozenset(row.vendor_id for row in self._pending.values() if row.vendor_id)

    async def _silence(self, row: BatchRow) -> bool:
        """Whether who put a batch together has given no sign of life for so long that it is dead, and the vendor lists what arrived."""
        held, left = await self._store.holds(_owner(row.id))
        if held:
            whole = LEASE if row.items or left > DRAFT_LEASE else DRAFT_LEASE
            return whole - left >= self._settling
        return time.time() - row.created >= self._settling

    async def _lost(self, row: BatchRow, rater: int, why: str) -> None:
        """A batch whose requests may have been paid for, but whose answers cannot be had."""
        if not self._retry_lost:
            what = f"the batch '{row.id}' ({row.vendor_id or 'no name of the vendor'}) of {len(row.items)} requests is lost: {why}"
            cure = "Look for it in the vendor's console. To count it as paid and to ask again, use retry_lost (--retry-lost)."
            raise ProviderError(what, where=self._raters[rater].rater.name, cure=cure)
        await self._store.abandon(_owner(row.id))
        await asyncio.to_thread(self._store.batch_ended, row.id, "lost")
        self._pending.pop(row.id, None)
        self._collected = True
        self._wake(row.items.values())

    def _trouble(self, row: BatchRow, rater: int, failure: Failure) -> None:
        where = self._raters[rater].rater.name
        if failure.cause in ACCOUNT_CAUSES:
            raise account_error(where, failure, told=_told(failure), kept=_KEPT)
        self._troubles[row.id] += 1
        if self._troubles[row.id] >= _TROUBLES:
            cure = "It is still there, and so is everything answered so far: the same command goes on from here."
            raise RaterUnreachable(f"the vendor does not say how a batch stands ({_told(failure)})", where=where, cure=cure)

    async def _collect(self, row: BatchRow, rater: int, vendor_id: str, status: BatchStatus) -> None:
        """Stores every outcome of a batch that has ended."""
        asked = await asyncio.to_thread(self._store.batch_requests, row.id)
        requests = {name: (_request(record), repeat) for name, (record, repeat) in asked.items()}
        stopped: Failure | None = None
        seen: set[str] = set()

        async def take_in(outcomes: Mapping[str, Reply | Failure]) -> None:
            nonlocal stopped
            owner = _owner(row.id)
            await asyncio.gather(
                *(
                    self._take_in(requests[name][0], row.items[name], outcome, row.run, owner, row.created)
                    for name, outcome in outcomes.items()
                )
            )
            account = (o for o in outcomes.values() if isinstance(o, Failure) and o.cause in ACCOUNT_CAUSES)
            stopped = stopped or next(account, None)

        if status.state == "ended":
            chunk: dict[str, Reply | Failure] = {}
            try:
                async for name, outcome in self._queues[rater].results(vendor_id, requests):
                    if name in seen:
                        continue
                    seen.add(name)
                    chunk[name] = outcome
                    if len(chunk) >= _CHUNK:
                        await take_in(chunk)
                        chunk = {}
                await take_in(chunk)
            except ResultsGone as gone:
                await take_in(chunk)
                await self._lost(row, rater, gone.what)
                return
            except ProviderError:
                # The vendor may be better in a while; what it has told so far is kept.
                self._unfetched[row.id] += 1
                if self._unfetched[row.id] >= _TROUBLES or not self._wait:
                    raise
                return
        rest = status.rest or Failure("empty", final=False, code="no_result")
        missing = [name for name in requests if name not in seen]
        for names in _chunks(missing):
            await take_in(dict.fromkeys(names, rest))
        if rest.code == "batch_cancelled":
            # Somebody has stopped it: to hand it in again at once would defy them.
            self._given_up.update(row.items[name] for name in missing)
        await asyncio.to_thread(self._store.batch_ended, row.id, "ended")
        await self._queues[rater].forget(row.id, vendor_id)
        self._pending.pop(row.id, None)
        self._collected = True
        self._refusals[rater] = 0
        self._wake(row.items.values())
        if stopped is not None:
            raise account_error(self._raters[rater].rater.name, stopped, told=_told(stopped), kept=_KEPT)

    async def _take_in(self, request: Request, key: Key, outcome: Reply | Failure, run: str, owner: str, started: float) -> None:
        rater = next(provider.rater for provider in self._raters if provider.rater.key == key.rater)
        await self._store.record(request, rater, key.repeat, outcome, run=run, started=started, owner=owner, only_held=True)
        self._asked_now.add(key)
        usage = outcome.usage
        self._counts["input_tokens"] += usage.input_tokens or 0
        self._counts["output_tokens"] += usage.output_tokens or 0
        self._dollars += usage.dollars or 0.0
        if isinstance(outcome, Failure):
            self._tries[key] += 1
            self._failed[key] = outcome
            self._failures[outcome.cause] += 1
            if outcome.code == "batch_cancelled":
                self._given_up.add(key)
        elif usage.dollars is None:
            self._counts["price_unknown"] += 1

    # --- ending ---

    def finished(self) -> bool:
        """Whether there is nothing more to do now. Raises CeilingReached if only money is missing."""
        if not self._waiting and not self._held_back and not self.ready:
            return True
        ours = any(row.run == self._run for row in self._pending.values()) or self._waiting
        if self._dearest and not ours and not self._collected and not self._paused:
            raise self._no_money()
        return not self._wait and not self._collected

    def look_again(self) -> None:
        """Lets conversations be tried again that money, a full queue or another process has kept from going on."""
        covered = {key for row in self._pending.values() for key in row.items.values()}
        held = [key for key in self._waiting if key not in covered]
        self._wake(held)
        self.ready.extendleft(reversed(self._held_back))
        self._held_back, self._dearest = [], 0.0
        self._paused.clear()

    def _no_money(self) -> CeilingReached:
        spent = self._store.spent(self._run)
        what = f"${spent:.4f} of ${self._ceiling:.4f} are spent, and the next request could cost ${self._dearest:.4f}"
        cure = "Allow more: the same command goes on from here. Everything answered so far is kept."
        return CeilingReached(what, cure=cure)

    async def close(self) -> None:
        """Gives up what was being put together and has not been sent."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        for order in [*self._orders.values(), *self._full]:
            order.draft.close()
            await self._drop(order.marker, "given up", order.keys)

    def _report(self) -> None:
        waiting = "vendor" if self._pending else "money" if self._dearest else "others" if self._waiting and not self._orders else ""
        self._on_event(
            Progress(
                in_flight=sum(len(row.items) for row in self._pending.values()),
                batches=len(self._pending),
                finished=sum(self._finished.values()),
                failures=dict(self._failures),
                dollars=self._dollars,
                waiting=waiting,
                **self._counts,
            )
        )


# --- small things -------------------------------------------------------------------------------------------------------------------

Result = TypeVar("Result")


def _queues(raters: Sequence[Provider]) -> list[Batches]:
    queues = [provider.batches() for provider in raters]
    found = [queue for queue in queues if queue is not None]
    if len(found) < len(queues):
        without = ", ".join(f"'{provider.rater.name}'" for provider, queue in zip(raters, queues, strict=True) if queue is None)
        with_one = "openai:MODEL, anthropic:MODEL and google:MODEL"
        raise UsageError(f"{without} takes no batches", cure=f"{with_one} do; or ask without batches.")
    return found


async def _to_its_end(work: Awaitable[Result]) -> Result:
    """Awaits `work` to its end, also if this task is cancelled meanwhile; cancelling once more does not wait."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
        with suppress(asyncio.CancelledError):
            if (error := task.exception()) is not None:
                raise error from None
        raise


def _name(marker: str, key: Key) -> str:
    """Name of a request within a batch: begins with the batch's own, and is the same whenever it is made."""
    return f"{marker}-{digest(key.question, key.rater, str(key.repeat))[5:37]}"


def _told(failure: Failure) -> str:
    parts = (failure.cause, failure.code, f"HTTP {failure.status}" if failure.status else "")
    return ", ".join(dict.fromkeys(filter(None, parts)))


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[first : first + _CHUNK] for first in range(0, len(names), _CHUNK))


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def _bare(picture: Picture) -> Picture:
    return Picture(picture.id, _NO_PIXELS)


class _Names(dict[str, Picture]):
    """Every picture by its id, without pixels."""

    def __missing__(self, name: str) -> Picture:
        return Picture(sys.intern(name), _NO_PIXELS)


def _request(record: Mapping[str, Any]) -> Request:
    return Request.from_record(record, _Names())
