"""Carries out conversations: which request goes out when, what is tried again, what it may cost, when everything stops.

Reads samples, asks raters, writes the store; the only place of the package that sends requests one by one. A conversation asks the method
for its next request until there is none. Each request is looked up in the store first and sent only if it is not there; each reply is on
disk before the next request of its conversation is sent. Samples are pulled only as fast as conversations end, so a hundred thousand
windows take the memory of those in flight.

A request passes three doors: the gate of its rater (`guerdon.asking.limits`: requests in flight, limits per minute, pauses), the claim on
its key (nobody else is sending it) and, with a ceiling, the purse (the most that it can cost is reserved in the same transaction as the
claim). Conversations that have begun pass all three before new ones.

Failures come in four kinds. One that would only repeat itself (`final`) ends its conversation. A transient one is tried again after a
pause, a few times. A rater that gives nothing but failures is asked less and less, then stops the run. A failure that lies with the account
(authentication, quota) stops the run at once: requests in flight finish and are saved, no other is sent. Cancelling (Ctrl-C) stops a run in
the same way; cancelling once more does not wait. Durations are seconds, money US dollars.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from guerdon import seeding
from guerdon.asking._ledger import UNBILLED
from guerdon.asking._owners import new_owner
from guerdon.asking.limits import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER, Gate, Limits, Pace, Pass, Sleep
from guerdon.asking.progress import Progress
from guerdon.asking.store import ACCOUNT_CAUSES, Claim, Key, Store
from guerdon.errors import AuthenticationRefused, CeilingReached, GuerdonError, ProviderError, QuotaExhausted, UsageError
from guerdon.interfaces import Method, Provider
from guerdon.records import Cause, Exchange, Failure, Quote, Reply, Request, Sample, Transcript

LEASE = 12.0
"""Seconds a claim lives without being renewed: how long the requests in flight of a killed process wait for the next one."""
OTHERS_MONEY = 60.0
"""Seconds for which a run waits at its ceiling while another process holds reservations and nothing changes."""
_POLL_FIRST, _POLL_LONGEST = 0.02, 1.0
_MOST_HOPES = 10  # rounds in a row in which a request ought to fit and nobody gets anything: other processes are quicker


class InBatches(UsageError):
    """All that is left to be asked lies in batches of vendors, which a run without batches does not collect."""


class _LiesInBatch(Exception):
    """This conversation cannot go on before a batch has been collected. No error by itself: others can."""


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
    repeats: int = 1,
    retry_failed: bool = False,
    attempts: int = 4,
    ceiling: float | None = None,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    on_event: Callable[[Progress], None] | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Transcript]:
    """Carries out conversations about each sample and yields each when it has ended, in the order in which they end.

    Iterate inside `contextlib.aclosing`, so that leaving the loop early also waits for what is in flight.

    Args:
        samples: pulled one at a time, as conversations end.
        method: says what to ask next.
        raters: whom to ask; `Request.rater` is an index into them.
        store: where replies are looked up and written.
        run: name under which the store sums up what was spent.
        concurrency: the most conversations in flight at once; fewer requests than that are while a rater is overloaded.
        repeat: number of the first of several independent answers.
        repeats: independent answers wanted for each sample; each is a conversation of its own.
        retry_failed: also ask what failed for good before.
        attempts: how often a request is sent at most while it fails for transient causes.
        ceiling: dollars that the run may spend in all, over restarts and processes; None for no limit.
        limits: what each rater may be asked at most, and for how long it may be silent.
        on_event: called with the state of the run after every request and every conversation, and when it begins to wait for something.
        sleep: waits out pauses; tests pass one that does not wait.
        clock: the time that pauses and limits go by, in seconds.

    Raises:
        AuthenticationRefused, QuotaExhausted: if the account may not or cannot go on; everything answered so far is in the store.
        RaterUnreachable: if nothing but failures came for too long; everything answered so far is in the store.
        CeilingReached: if the next request could cost more than is left; everything answered so far is in the store.
        ProviderError: if a rater cannot be asked at all.
        StoreError: if an answer could not be written down.
        InBatches: if requests lie in a vendor's batch and nothing else is left to do; their conversations are not yielded.
        UsageError: if the method asks a rater that was not given, or a ceiling is to be kept and a rater has no known price.
    """
    if concurrency < 1 or attempts < 1 or repeats < 1:
        raise UsageError(f"concurrency, attempts and repeats must be at least 1, got {concurrency}, {attempts} and {repeats}")
    if ceiling is not None and not 0 <= ceiling < float("inf"):
        raise UsageError(f"a ceiling is a sum of dollars, not negative, got {ceiling}")
    gates = _Gates(raters, limits, concurrency, clock, sleep)
    asker = _Asker(method, raters, store, run, retry_failed, attempts, ceiling, gates, on_event, sleep)
    pending = _conversations(samples, range(repeat, repeat + repeats))
    in_flight: set[asyncio.Task[Transcript]] = set()
    ended: asyncio.Queue[asyncio.Task[Transcript]] = asyncio.Queue()
    heartbeat = asyncio.create_task(asker.keep_claims())
    try:
        while True:
            while len(in_flight) < concurrency and not asker.stopping.is_set() and (wanted := next(pending, None)) is not None:
                conversation = asyncio.create_task(asker.converse(*wanted))
                in_flight.add(conversation)
                conversation.add_done_callback(ended.put_nowait)
            if not in_flight:
                break
            conversation = await ended.get()
            in_flight.remove(conversation)
            if not asker.stopped_by(conversation):
                yield conversation.result()
        asker.raise_what_stopped_it()
    finally:
        asker.stop()
        try:
            await _finish(in_flight)
        finally:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
            await asker.close()


def _conversations(samples: Iterable[Sample], repeats: Iterable[int]) -> Iterator[tuple[int, Sample, int]]:
    """Number, sample and repeat of each conversation, lazily."""
    number = 0
    for sample in samples:
        for repeat in repeats:
            yield number, sample, repeat
            number += 1


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


class _Gates:
    """The gates of all raters; providers with the same identity share one."""

    def __init__(self, raters: Sequence[Provider], limits: Limits, concurrency: int, clock: Callable[[], float], sleep: Sleep) -> None:
        self.limits = limits
        self.changed: Callable[[], None] = _nothing
        self._by_rater: dict[str, Gate] = {}
        for provider in raters:
            if provider.rater.key not in self._by_rater:
                pace = Pace(limits, concurrency, provider.rater.name)
                self._by_rater[provider.rater.key] = Gate(pace, clock, sleep, lambda: self.changed())

    def of(self, provider: Provider) -> Gate:
        return self._by_rater[provider.rater.key]

    @property
    def allowed(self) -> int:
        return min((gate.pace.allowed for gate in self._by_rater.values()), default=0)

    @property
    def waits_for(self) -> str:
        return next((gate.waits_for for gate in self._by_rater.values() if gate.waits_for), "")

    def close(self) -> None:
        for gate in self._by_rater.values():
            gate.close(_Stopped)


@dataclass(eq=False)
class _Talk:
    """A conversation on its way."""

    number: int
    repeat: int
    begun: bool = False
    """Whether something was sent for it, or a turn of it found."""
    place: Gate | None = None
    """Where it has a place among the requests in flight."""

    def leave(self) -> None:
        """Gives the place back, if there is one."""
        place, self.place = self.place, None
        if place is not None:
            place.leave()


@dataclass(eq=False)
class _Hand:
    """A claim that is ours, or that we are about to get."""

    dollars: float | None
    sent: bool = False
    """Whether the request may be with the rater."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Asker:
    """What the conversations of one run share."""

    def __init__(
        self,
        method: Method,
        raters: Sequence[Provider],
        store: Store,
        run: str,
        retry_failed: bool,
        attempts: int,
        ceiling: float | None,
        gates: _Gates,
        on_event: Callable[[Progress], None] | None,
        sleep: Sleep,
    ) -> None:
        self._method, self._raters, self._store = method, raters, store
        self._run, self._retry_failed, self._attempts = run, retry_failed, attempts
        self._gates, self._on_event, self._sleep = gates, on_event, sleep
        self._owner = new_owner()
        self._in_hand: dict[Key, _Hand] = {}
        self._purse = None if ceiling is None else _Purse(ceiling, store, run, self._in_hand)
        self._counts: Counter[str] = Counter()
        self._failures: Counter[Cause] = Counter()
        self._dollars = self._charged = 0.0
        self._reason: BaseException | None = None
        self._in_batches: Counter[str] = Counter()
        """Conversations that broke off because a request of theirs lies in a batch, by the rater's name."""
        self._told_waiting = ""
        self.stopping = asyncio.Event()
        gates.changed = self._report_waiting
        if self._purse is not None:
            self._purse.changed = self._report_waiting

    # --- stopping ---

    def stop(self) -> None:
        """From now on nothing is sent; whoever waits for leave to send breaks off."""
        self.stopping.set()
        self._gates.close()
        if self._purse is not None:
            self._purse.close()
        self._report_waiting()

    def _stop_because(self, error: BaseException) -> None:
        if self._reason is None and not isinstance(error, _Stopped):
            self._reason = error
        self.stop()

    def stopped_by(self, task: asyncio.Task[Transcript]) -> bool:
        """Whether the conversation broke off. An error stops the whole run; the first one is raised at the end."""
        error = task.exception()
        if error is None:
            return False
        if not isinstance(error, _LiesInBatch):
            self._stop_because(error)
        return True

    def raise_what_stopped_it(self) -> None:
        """Raises the error that stopped the run, if one did."""
        if self._reason is not None:
            raise self._reason
        if self._in_batches:
            count = sum(self._in_batches.values())
            what = f"the next request of {count} conversation{'s' if count > 1 else ''} lies in a batch; all others have ended"
            cure = "Run the same command with --batch to collect it. Everything answered so far is kept."
            raise InBatches(what, where=", ".join(sorted(self._in_batches)), cure=cure)

    async def keep_claims(self) -> None:
        """Renews the claims of this run for as long as it is alive. A claim that cannot be renewed could be paid twice: the run stops."""
        while True:
            await asyncio.sleep(LEASE / 4)
            if self._in_hand:
                try:
                    await self._store.renew(self._owner, LEASE)
                except Exception as error:
                    self._stop_because(error)
                    return

    async def close(self) -> None:
        """Gives up claims that were left behind. What may have been sent stays spent: nobody knows what became of it."""
        try:
            await asyncio.gather(
                *((self._store.abandon if hand.sent else self._store.release)(self._owner, key) for key, hand in self._in_hand.items())
            )
        except GuerdonError:
            if self._reason is None:
                raise  # otherwise the first error tells more; these claims lapse by themselves
        finally:
            # Nothing must refer to itself in a circle: raters may hold open files, which are to close with their last user.
            self._gates.changed = _nothing
            if self._purse is not None:
                self._purse.changed = _nothing

    # --- one conversation ---

    async def converse(self, number: int, sample: Sample, repeat: int) -> Transcript:
        """All exchanges about one sample, to the end or to the first failure."""
        talk = _Talk(number, repeat)
        if self._purse is not None:
            self._purse.begin(number)
        exchanges: list[Exchange] = []
        try:
            while (request := self._method.next(sample, tuple(exchanges))) is not None:
                exchanges.append(await self._exchange(talk, request))
                talk.begun = True
                if isinstance(exchanges[-1].outcome, Failure):
                    break
        finally:
            talk.leave()
            if self._purse is not None:
                self._purse.end(number)
        self._counts["done"] += 1
        self._report()
        return Transcript(sample, tuple(exchanges), repeat)

    async def _exchange(self, talk: _Talk, request: Request) -> Exchange:
        provider = rater_for(request, self._raters, self._method)
        gate = self._gates.of(provider)
        if talk.place is not gate:
            talk.leave()
        key = Key(request.question, provider.rater.key, talk.repeat)
        found = await self._find(key)
        quote = None if found is not None else self._quote(provider, request)
        for attempt in range(1, self._attempts + 1):
            try:
                entered = found if found is not None else await self._obtain(talk, gate, key, quote, attempt)
            except _LiesInBatch:
                self._in_batches[provider.rater.name] += 1
                raise
            if not isinstance(entered, Pass):
                return self._found(request, gate, entered)
            outcome = await self._send(provider, request, key)
            spread = _spread(request, attempt) if isinstance(outcome, Failure) else 1.0
            counted = await self._write_down(provider, request, key, outcome)
            gate.learn(entered, outcome, first_attempt=attempt == 1, spread=spread)
            if isinstance(outcome, Reply) or outcome.final or attempt == self._attempts or not _worth_waiting(outcome):
                return Exchange(request, counted, asked_now=True)
            talk.begun = True
            talk.leave()
            if outcome.retry_after is None and not gate.pace.down:  # otherwise the gate makes everybody wait
                await self._pause(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * spread)
        raise AssertionError("the last attempt returns")

    async def _find(self, key: Key) -> Reply | Failure | None:
        return await self._store.find(key.question, key.rater, key.repeat, retry_failed=self._retry_failed)

    def _found(self, request: Request, gate: Gate, found: Reply | Failure) -> Exchange:
        self._counts["found"] += 1
        if isinstance(found, Reply):
            gate.pace.note_answer()
        self._report()
        return Exchange(request, found)

    def _quote(self, provider: Provider, request: Request) -> Quote | None:
        """The most that a request can consume. With a ceiling, no rater may be without a price: said before anything is sent."""
        if self._purse is not None and not self._purse.prices_known:
            for other in self._raters:
                _require_price(other, other.quote(request), "no price is known")
            self._purse.prices_known = True
        quote = provider.quote(request)
        if self._purse is not None:
            _require_price(provider, quote, "no price of a request is known")
        return quote

    async def _obtain(self, talk: _Talk, gate: Gate, key: Key, quote: Quote | None, attempt: int) -> Pass | Reply | Failure:
        """Leave to send a request, its claim and its money; or what somebody else has stored meanwhile."""
        wait = _POLL_FIRST
        dollars = None if quote is None else quote.dollars
        while True:
            self._refuse_if_stopping()
            if (hand := self._in_hand.get(key)) is not None:  # another conversation of ours is sending the same
                talk.leave()
                await self._until_stopped(hand.ended.wait())
                if (found := await self._find(key)) is not None:
                    return found
                continue
            if self._purse is not None and not talk.begun:
                await self._purse.after_others(talk.number)
            holding, talk.place = talk.place is gate, None
            tokens = gate.pace.expected_tokens(quote)
            leave = await gate.enter(tokens, begun=talk.begun, order=talk.number, attempts=attempt - 1, holding=holding)
            if key in self._in_hand or (self._purse is not None and not talk.begun and self._purse.others_first):
                gate.withdraw(leave)
                continue
            try:
                round_, claimed = await self._claim(talk, key, dollars)
            except BaseException:
                gate.withdraw(leave)
                raise
            if claimed is Claim.GRANTED:
                talk.place = gate
                return leave
            gate.withdraw(leave)
            if not isinstance(claimed, Claim):
                return claimed
            if claimed is Claim.IN_BATCH:
                raise _LiesInBatch
            if claimed is Claim.HELD:
                await self._until_stopped(asyncio.sleep(wait))
                wait = min(2 * wait, _POLL_LONGEST)
            elif self._purse is not None:
                await self._purse.more(talk.number, round_, dollars or 0.0, begun=talk.begun)

    async def _claim(self, talk: _Talk, key: Key, dollars: float | None) -> tuple[int, Reply | Failure | Claim]:
        """Tries to get the claim; in which round of the purse, and what came of it."""
        if self._purse is None:
            return 0, await self._take(key, dollars, None)
        async with self._purse.turn(dollars or 0.0, begun=talk.begun):
            self._refuse_if_stopping()
            if key in self._in_hand:
                return self._purse.round, Claim.HELD
            round_, ceiling = self._purse.round, self._purse.limit(begun=talk.begun)
            self._purse.keep(talk.number, dollars or 0.0)
            claimed = await self._take(key, dollars, ceiling)
            if claimed is Claim.GRANTED:
                self._purse.granted(talk.number)
            elif not talk.begun:
                self._purse.keep(talk.number, 0.0)
        return round_, claimed

    async def _take(self, key: Key, dollars: float | None, ceiling: float | None) -> Reply | Failure | Claim:
        hand = self._in_hand[key] = _Hand(dollars)
        # A cancellation in here leaves the hand behind, so that `close` gives back a claim that was granted unnoticed.
        claimed = await self._store.claim(
            key, self._owner, LEASE, run=self._run, retry_failed=self._retry_failed, dollars=dollars, ceiling=ceiling
        )
        if claimed is not Claim.GRANTED:
            self._put_down(key, hand)
        return claimed

    def _put_down(self, key: Key, hand: _Hand) -> None:
        """The claim is not ours any more."""
        del self._in_hand[key]
        hand.ended.set()

    async def _send(self, provider: Provider, request: Request, key: Key) -> Reply | Failure:
        """One attempt. (A claim left behind by an error is given up in `close`.)"""
        self._refuse_if_stopping()
        hand = self._in_hand[key]
        hand.sent = True
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._gates.limits.timeout) as patience:
                return await provider.ask(request, repeat=key.repeat)
        except TimeoutError:
            if not patience.expired():
                raise
            return Failure("timeout", final=False, code="no_outcome", seconds=time.perf_counter() - began)
        except ProviderError:
            hand.sent = False  # raised before anything is sent, or for an error that no vendor bills
            raise

    async def _write_down(self, provider: Provider, request: Request, key: Key, outcome: Reply | Failure) -> Reply | Failure:
        """Stores an attempt, which also ends the claim."""
        started = time.time() - outcome.seconds
        counted = await self._store.record(request, provider.rater, key.repeat, outcome, run=self._run, started=started, owner=self._owner)
        hand = self._in_hand[key]
        self._put_down(key, hand)
        charged = _charge(outcome, hand.dollars)
        self._charged += charged
        if self._purse is not None:
            self._purse.charged(charged)
        self._count(outcome)
        if isinstance(outcome, Failure) and outcome.cause in ACCOUNT_CAUSES:
            raise account_error(provider.rater.name, outcome)
        return counted

    def _refuse_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise _Stopped

    async def _pause(self, seconds: float) -> None:
        await self._until_stopped(self._sleep(seconds))
        self._refuse_if_stopping()

    async def _until_stopped(self, waiting: Awaitable[object]) -> None:
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
        self._counts["thinking_tokens"] += usage.thinking_tokens or 0
        self._counts["cached_tokens"] += usage.cached_tokens or 0
        self._dollars += usage.dollars or 0.0
        if isinstance(outcome, Failure):
            self._failures[outcome.cause] += 1
        elif usage.dollars is None:
            self._counts["price_unknown"] += 1
        self._report()

    @property
    def _waiting(self) -> str:
        if self.stopping.is_set():
            return "stopping" if any(hand.sent for hand in self._in_hand.values()) else ""
        return self._gates.waits_for or ("money" if self._purse is not None and self._purse.waited_for else "")

    def _report_waiting(self) -> None:
        if self._waiting == self._told_waiting:
            return
        try:
            self._report()
        except Exception as error:  # raised by the listener; here nobody else would hear of it
            self._stop_because(error)

    def _report(self) -> None:
        if self._on_event is None:
            return
        self._told_waiting = self._waiting
        reserved = sum(hand.dollars or 0.0 for hand in self._in_hand.values())
        self._on_event(
            Progress(
                failures=dict(self._failures),
                dollars=self._dollars,
                charged=self._charged,
                reserved=reserved,
                in_flight=sum(hand.sent for hand in self._in_hand.values()),
                allowed=self._gates.allowed,
                waiting=self._told_waiting,
                **self._counts,
            )
        )


class _Purse:
    """Who may ask for money next, when a run has a ceiling. The store keeps the ceiling; this keeps order.

    A request that does not fit waits for the next round: one begins whenever money may have come back. If nothing is in flight and nobody
    is left who has not tried in this round, no money will come back.

    Args:
        ceiling: dollars.
        store, run: where the money is counted.
        in_hand: claims of this process.
    """

    def __init__(self, ceiling: float, store: Store, run: str, in_hand: Mapping[Key, _Hand]) -> None:
        self.prices_known = False
        self.round = 0
        self.changed: Callable[[], None] = _nothing
        self._ceiling, self._store, self._run, self._in_hand = ceiling, store, run, in_hand
        self._alive: set[int] = set()
        self._spent = store.spent(run)
        self._one_by_one = asyncio.Lock()
        self._hopes = 0
        self._kept: dict[int, float] = {}
        self._kept_sum = 0.0
        self._first_in_line: set[int] = set()
        self._waiting: dict[int, tuple[float, asyncio.Future[None]]] = {}
        self._held_back: dict[int, asyncio.Future[None]] = {}
        self._poll: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for money."""
        return bool(self._waiting)

    @property
    def others_first(self) -> bool:
        """Whether conversations that have begun wait for money."""
        return bool(self._first_in_line)

    def begin(self, number: int) -> None:
        """A conversation begins."""
        self._alive.add(number)

    def end(self, number: int) -> None:
        """A conversation has ended; what was kept for its next turn is free."""
        self._alive.discard(number)
        self._first_in_line.discard(number)
        if self._kept.get(number):
            self.keep(number, 0.0)
            self.next_round()
        self._let_others_in()
        self._check()

    @asynccontextmanager
    async def turn(self, dollars: float, *, begun: bool) -> AsyncIterator[None]:
        """Near the ceiling new conversations ask for money one after the other, so that each knows what the one before will need."""
        if begun or 2 * (self._spent + 2 * (self._kept_sum + dollars)) < self._ceiling:
            yield
            return
        async with self._one_by_one:
            yield

    def limit(self, *, begun: bool) -> float:
        """Dollars that the run may spend with this request. A new conversation leaves as much as the turns of those that have begun may
        need: half a conversation is money for nothing."""
        return self._ceiling if begun else max(self._ceiling - self._kept_sum, 0.0)

    def keep(self, number: int, dollars: float) -> None:
        """A conversation asks for `dollars`, and may need as much again for its next turn."""
        before = self._kept.pop(number, 0.0)
        if dollars:
            self._kept[number] = dollars
        self._kept_sum = self._kept_sum - before + dollars if self._kept else 0.0

    def granted(self, number: int) -> None:
        """A request got its money."""
        self._hopes = 0
        self._first_in_line.discard(number)
        self._let_others_in()

    def charged(self, dollars: float) -> None:
        """A request has ended and cost so much: what was reserved beyond that is free."""
        self._spent += dollars
        self.next_round()

    def next_round(self) -> None:
        """Money may have come back: who waits may try again."""
        self.round += 1
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for _dollars, future in waiting:
            if not future.done():
                future.set_result(None)
        if waiting:
            self.changed()

    async def after_others(self, number: int) -> None:
        """Waits while conversations that have begun wait for money."""
        while self._first_in_line and not self._closed:
            future = self._held_back[number] = asyncio.get_running_loop().create_future()
            self._check()
            try:
                await future
            finally:
                self._held_back.pop(number, None)
        if self._closed:
            raise _Stopped

    def _let_others_in(self) -> None:
        if self._first_in_line and not self._closed:
            return
        for future in self._held_back.values():
            if not future.done():
                future.set_result(None)

    async def more(self, number: int, tried_in: int, dollars: float, *, begun: bool) -> None:
        """Waits for the round after the one in which a request did not fit.

        Raises:
            CeilingReached: if no money will come back.
        """
        if begun:
            self._first_in_line.add(number)
        if tried_in != self.round:
            return
        if self._closed:
            raise _Stopped
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = (dollars, future)
        self.changed()
        self._check()
        try:
            await future
        finally:
            if self._waiting.get(number, (0.0, None))[1] is future:
                del self._waiting[number]

    def _check(self) -> None:
        """Whether anybody can still bring money back; if not, the run is at its ceiling, or waits for other processes."""
        if self._closed or self._in_hand or not self._waiting or self._alive - self._waiting.keys() - self._held_back.keys():
            return
        if self._poll is None:
            self._poll = asyncio.get_running_loop().create_task(self._wait_for_other_processes(self.round))

    async def _wait_for_other_processes(self, round_: int) -> None:
        """Begins a round when another process has spent or given back money; ends the run when none will."""
        try:
            await self._store.end_dead_claims(self._run)
            (charged, reserved), wait, waited = await self._store.balance(self._run), _POLL_FIRST, 0.0
            began = (charged, reserved)
            while reserved > 0 and waited < OTHERS_MONEY and (charged, reserved) == began:
                await asyncio.sleep(wait)
                waited, wait = waited + wait, min(2 * wait, _POLL_LONGEST)
                await self._store.end_dead_claims(self._run)
                charged, reserved = await self._store.balance(self._run)
            self._poll, self._spent = None, charged
            if (charged, reserved) != began or self._somebody_fits(charged + reserved):
                self.next_round()
            elif self.round == round_:
                self._give_up(charged + reserved, reserved)
            else:
                self._check()  # who came to wait meanwhile took this poll for theirs
        except Exception as error:  # nobody awaits this task: what is not told to those who wait, they wait for for ever
            self._fail(error)

    def _somebody_fits(self, spent: float) -> bool:
        """Whether a request fits now that was refused because of others that were refused at the same time."""
        self._hopes += 1
        return self._hopes < _MOST_HOPES and any(
            spent + dollars + 1e-8 <= self.limit(begun=number in self._first_in_line)
            for number, (dollars, _) in self._waiting.items()
            if number in self._first_in_line or not self._first_in_line
        )

    def _give_up(self, spent: float, reserved: float) -> None:
        least = min((dollars for dollars, _ in self._waiting.values()), default=0.0)
        others = f" (${reserved:.6g} of it by requests whose end is not known)" if reserved else ""
        what = f"the ceiling of ${self._ceiling:.6g} is reached: ${spent:.6g} are spent{others}, the next request may cost ${least:.6g}"
        cure = "Everything answered so far is kept: the same command goes on from here with a higher --max-cost."
        self._fail(CeilingReached(what, where=self._run, cure=cure))

    def _fail(self, error: Exception) -> None:
        for _dollars, future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        """Nobody gets money any more."""
        self._closed = True
        if self._poll is not None:
            self._poll.cancel()
        for _dollars, future in self._waiting.values():
            if not future.done():
                future.set_exception(_Stopped())
        self._let_others_in()


def _nothing() -> None:
    return


def _worth_waiting(failure: Failure) -> bool:
    return failure.retry_after is None or failure.retry_after <= LONGEST_RETRY_AFTER


def _spread(request: Request, attempt: int) -> float:
    """About 1, another for each request and attempt, so that not all come back at once."""
    return float(seeding.generator(0, "pause", request.question, attempt).uniform(0.5, 1.5))


def _charge(outcome: Reply | Failure, reserved: float | None) -> float:
    """What an attempt counts for under a ceiling, as the store counts it."""
    if outcome.usage.dollars is not None:
        return outcome.usage.dollars
    return 0.0 if isinstance(outcome, Failure) and outcome.cause in UNBILLED else reserved or 0.0


def rater_for(request: Request, raters: Sequence[Provider], method: Method) -> Provider:
    """Who is to be asked. Raises UsageError if the method asks a rater that was not given."""
    if not 0 <= request.rater < len(raters):
        what = f"the method '{method.name}' asks rater number {request.rater + 1}, but {len(raters)} were given"
        raise UsageError(what, cure="Give --vlm once for each rater.")
    return raters[request.rater]


def _require_price(provider: Provider, quote: Quote | None, what: str) -> None:
    if quote is None or quote.dollars is None:
        cure = "Give --price INPUT,OUTPUT in dollars per million tokens, or leave the ceiling out."
        raise UsageError(f"a ceiling cannot be kept, because {what}", where=provider.rater.name, cure=cure)


def account_error(where: str, failure: Failure, *, told: str = "", kept: str = "Everything answered so far is kept") -> ProviderError:
    """What stops a run when the account may not or cannot go on. `told`: what the vendor said, if more than a status."""
    told = told or (f"HTTP {failure.status}" if failure.status else "")
    status = f" ({told})" if told else ""
    cure = f"{kept}: the same command goes on from here."
    if failure.cause == "quota":
        return QuotaExhausted(f"the account has no quota left{status}", where=where, cure=f"Top it up or wait. {cure}")
    return AuthenticationRefused(f"the key was refused{status}", where=where, cure=f"Check the key and what it may use. {cure}")
