"""The ceiling: never passed, whatever fails, whoever is killed, however many share it; and what was billed is never forgotten."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guerdon.asking import scheduler
from guerdon.asking.limits import Limits
from guerdon.asking.progress import Progress
from guerdon.asking.scheduler import ask
from guerdon.asking.store import Claim, Key, Store
from guerdon.errors import CeilingReached, UsageError
from guerdon.records import Failure, Quote, Reply, Request, Transcript, Usage
from tests.test_scheduler import Fake, Sleeps, TwoTurns, collect, sample

pytestmark = pytest.mark.anyio
RUN = "a"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _others_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "OTHERS_MONEY", 0.1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.sqlite") as opened:
        yield opened


class Priced(Fake):
    """A rater that says what a request may cost at most, and what it cost in the end."""

    def __init__(
        self,
        most: float = 0.5,
        price: float = 0.5,
        *,
        answer: Callable[[Request], Reply | Failure] | None = None,
        delay: float = 0.0,
        name: str = "fake",
    ) -> None:
        super().__init__(answer or (lambda request: Reply(f"to {request.purpose}", usage=Usage(10, 2, price))), delay=delay, name=name)
        self._most = most

    def quote(self, request: Request) -> Quote | None:
        return Quote(10, 100, self._most)


async def ask_until_broke(
    store: Store, provider: Priced, ceiling: float, windows: int = 100, **options: object
) -> tuple[list[Transcript], CeilingReached | None]:
    ended: list[Transcript] = []
    try:
        async for transcript in ask(map(sample, range(windows)), TwoTurns(), [provider], store, run=RUN, ceiling=ceiling, **options):  # type: ignore[arg-type]
            ended.append(transcript)
    except CeilingReached as error:
        return ended, error
    return ended, None


# --- the ordinary course ---


async def test_the_run_stops_at_the_ceiling_and_goes_on_with_a_higher_one(store: Store) -> None:
    provider = Priced()
    ended, error = await ask_until_broke(store, provider, 5.0)
    assert error is not None
    assert str(error).startswith("a: the ceiling of $5 is reached: $5 are spent, ")
    assert "the next request may cost $0.5" in str(error)
    assert "--max-cost" in str(error)
    assert len(provider.asked) == 10
    assert len(ended) == 5  # no money went into halves of conversations
    assert store.spent(RUN) == 5.0
    again = Priced()
    ended, error = await ask_until_broke(store, again, 7.0)
    assert error is not None
    assert (len(again.asked), store.spent(RUN)) == (4, 7.0)


async def test_a_ceiling_that_is_high_enough_changes_nothing(store: Store) -> None:
    ended, error = await ask_until_broke(store, Priced(), 10.0, windows=10)
    assert (len(ended), error) == (10, None)


async def test_what_was_reserved_and_not_used_is_spent_on_others(store: Store) -> None:
    provider = Priced(most=0.5, price=0.01, delay=0.002)
    ended, error = await ask_until_broke(store, provider, 1.1, windows=30)
    assert error is None
    assert len(ended) == 30
    assert store.spent(RUN) == pytest.approx(0.6)


async def test_begun_conversations_get_their_money_first(store: Store) -> None:
    for ceiling in (3.0, 4.5, 6.0):
        provider = Priced(delay=0.003)
        ended, error = await ask_until_broke(store, provider, ceiling, windows=40, concurrency=16)
        assert error is not None
        assert all(transcript.failure is None for transcript in ended)
        asked = [request.purpose for request in provider.asked]
        assert asked.count("analyse") - asked.count("score") <= 1


async def test_free_raters_need_no_money(store: Store) -> None:
    ended, error = await ask_until_broke(store, Priced(most=0.0, price=0.0), 0.0, windows=5)
    assert (len(ended), error) == (5, None)


async def test_what_lies_in_the_store_costs_nothing(store: Store) -> None:
    await ask_until_broke(store, Priced(), 100.0, windows=5)
    ended, error = await ask_until_broke(store, Priced(), 0.0, windows=5)
    assert (len(ended), error) == (5, None)


@pytest.mark.parametrize("price", [None, "second"])
async def test_a_rater_without_a_price_is_refused_before_anything_is_sent(store: Store, price: str | None) -> None:
    known, unknown = Priced(), Fake(name="dear")
    raters = [known, unknown] if price else [unknown]
    with pytest.raises(UsageError, match=r"dear: a ceiling cannot be kept, because no price is known\. Give --price"):
        await collect(ask([sample(0)], TwoTurns(second_rater=len(raters) - 1), raters, store, run=RUN, ceiling=1.0))
    assert known.asked == unknown.asked == []


@pytest.mark.parametrize("ceiling", [-1.0, float("nan"), float("inf")])
async def test_a_ceiling_that_is_no_sum_of_money_is_refused(store: Store, ceiling: float) -> None:
    with pytest.raises(UsageError, match="a ceiling is a sum of dollars"):
        await ask_until_broke(store, Priced(), ceiling)


async def test_an_unknown_fate_stays_spent(store: Store) -> None:
    outcomes = iter([Failure("timeout", final=False), Failure("rate_limit", final=False), *[Reply("fine", usage=Usage(1, 1, 0.1))] * 9])
    provider = Priced(most=0.5, answer=lambda _request: next(outcomes))
    events: list[Progress] = []
    ended, error = await ask_until_broke(store, provider, 2.0, windows=1, sleep=Sleeps(), on_event=events.append)
    assert (len(ended), error) == (1, None)
    assert store.spent(RUN) == pytest.approx(0.7)  # the time-out 0.5, the refusal nothing, two replies
    assert events[-1].charged == pytest.approx(0.7)
    assert events[-1].reserved == 0.0
    assert events[-1].dollars == pytest.approx(0.2)


async def test_progress_shows_what_is_in_flight_and_reserved(store: Store) -> None:
    events: list[Progress] = []
    await ask_until_broke(store, Priced(most=0.5, price=0.25, delay=0.003), 100.0, windows=12, concurrency=4, on_event=events.append)
    assert max(event.in_flight for event in events) >= 2
    assert all(event.reserved <= 4 * 0.5 for event in events)
    assert max(event.reserved for event in events) >= 1.0
    last = events[-1]
    assert (last.in_flight, last.reserved, last.charged, last.allowed) == (0, 0.0, 6.0, 4)


async def test_a_reservation_of_somebody_else_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "OTHERS_MONEY", 30.0)
    theirs = Key("another question", "another rater", 0)
    assert await store.claim(theirs, "them", 60, run=RUN, dollars=1.0, ceiling=1.5) is Claim.GRANTED
    events: list[Progress] = []
    run = asyncio.create_task(ask_until_broke(store, Priced(), 1.5, windows=1, on_event=events.append))
    while not any(event.waiting == "money" for event in events):
        await asyncio.sleep(0.005)
    await store.release("them")
    ended, error = await run
    assert error is None
    assert len(ended) == 1


async def test_a_reservation_that_stays_is_not_waited_for_for_ever(store: Store) -> None:
    assert await store.claim(Key("q", "r", 0), "dead", 60, run=RUN, dollars=1.0, ceiling=1.5) is Claim.GRANTED
    _ended, error = await ask_until_broke(store, Priced(), 1.5, windows=1)
    assert error is not None
    assert "($1 of it by requests whose end is not known)" in str(error)


async def test_an_error_while_waiting_for_others_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_run: str) -> tuple[float, float]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(store, "balance", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        async with asyncio.timeout(10):
            await ask_until_broke(store, Priced(), 2.0)


async def test_a_price_that_becomes_unknown_is_said(store: Store) -> None:
    class Forgetful(Priced):
        def quote(self, request: Request) -> Quote | None:
            return Quote(10, 100, 0.1 if request.purpose == "analyse" else None)

    with pytest.raises(UsageError, match=r"no price of a request is known.*--price"):
        await ask_until_broke(store, Forgetful(), 5.0)


async def test_what_another_process_has_spent_is_learned_at_the_ceiling(tmp_path: Path) -> None:
    """Both begin far from the ceiling; together they reach it, and neither leaves money for half a conversation behind."""
    with Store.open(tmp_path / "s.sqlite") as one, Store.open(tmp_path / "s.sqlite") as two:
        raters = Priced(delay=0.01), Priced(delay=0.01)
        runs = await asyncio.gather(
            *(ask_until_broke(store, rater, 8.0, concurrency=4) for store, rater in zip((one, two), raters, strict=True))
        )
        assert [type(error) for _ended, error in runs] == [CeilingReached, CeilingReached]
        assert one.spent(RUN) == 8.0
        assert sum(len(rater.asked) for rater in raters) == 16


async def test_a_hard_stop_leaves_what_was_in_flight_spent_and_gives_back_the_rest(store: Store) -> None:
    provider = Priced(delay=60)
    task = asyncio.create_task(ask_until_broke(store, provider, 100.0, concurrency=5))
    while provider.in_flight < 5:
        await asyncio.sleep(0.001)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    costs = store.costs(RUN)
    assert (costs.lost, costs.charged, costs.reserved) == (5, 2.5, 0.0)


# --- anything may happen ---


class Gambler(Priced):
    """Bills at random, up to what it quoted; fails at random; notes what it billed the moment a request arrives."""

    def __init__(self, seed: int, name: str, *, bills: Path | None = None) -> None:
        super().__init__(name=name)
        self.billed = 0.0
        self._bills = bills
        self._dice = random.Random(seed)

    def quote(self, request: Request) -> Quote | None:
        return Quote(10, 10, random.Random(request.question).choice([0.01, 0.05, 0.2]))

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        quote = self.quote(request)
        assert quote is not None
        assert quote.dollars is not None
        price = round(quote.dollars * self._dice.choice([0.1, 0.5, 1.0]), 9)
        fate = self._dice.random()
        refused = fate < 0.1
        self.billed += 0.0 if refused else price
        if self._bills is not None:
            with self._bills.open("a") as file:  # survives the death of this process
                file.write("" if refused else f"{price}\n")
        await asyncio.sleep(self._dice.choice([0.0, 0.001, 0.01]))
        if refused:
            return Failure("rate_limit", final=False)
        if fate < 0.2:
            return Failure(self._dice.choice(["timeout", "network"]), final=False)  # billed, but nobody was told
        if fate < 0.25:
            return Failure("refusal", final=True, usage=Usage(10, 1, price))
        return Reply("fine", usage=Usage(10, 10, None if fate < 0.3 else price))


async def gamble(seed: int, folder: Path) -> None:
    """Several runs share a file and a ceiling; some are cancelled, some killed as hard as a coroutine can be; then again."""
    dice = random.Random(seed)
    path, ceiling = folder / f"{seed}.sqlite", dice.choice([0.0, 0.1, 0.5, 2.0])
    billed = 0.0
    for round_ in range(2):
        stores = [Store.open(path) for _ in range(dice.choice([1, 1, 2, 3]))]
        raters = [Gambler(1000 * seed + 10 * round_ + number, "gambler") for number in range(len(stores))]
        options = {
            "concurrency": dice.choice([1, 4, 12]),
            "repeats": dice.choice([1, 2]),
            "sleep": Sleeps(),
            "limits": Limits(patience=1e9),
        }
        options["limits"] = Limits(patience=1e9)
        tasks = [
            asyncio.create_task(ask_until_broke(store, rater, ceiling, windows=8, **options))
            for store, rater in zip(stores, raters, strict=True)
        ]
        for task in tasks:
            if dice.random() < 0.4:
                await asyncio.sleep(dice.uniform(0, 0.05))
                for _ in range(dice.choice([1, 2, 2])):
                    task.cancel()
                    await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, tuple | asyncio.CancelledError) for outcome in outcomes), outcomes
        billed += sum(rater.billed for rater in raters)
        costs = stores[0].costs(RUN)
        for store in stores:
            store.close()
        assert costs.charged <= ceiling + 1e-9, f"seed {seed}"
        assert costs.reserved == 0.0, f"seed {seed}"
        assert costs.charged >= billed - 1e-9, f"seed {seed}"


@pytest.mark.parametrize("part", range(4))
async def test_no_gamble_passes_the_ceiling(tmp_path: Path, part: int) -> None:
    for seed in range(10 * part, 10 * part + 10):
        await gamble(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
async def test_no_gamble_of_a_thousand_passes_the_ceiling(tmp_path: Path, part: int) -> None:
    for seed in range(100 + 100 * part, 200 + 100 * part):
        await gamble(seed, tmp_path)
        (tmp_path / f"{seed}.sqlite").unlink()


PROCESS = """
import sys
from pathlib import Path
from guerdon.asking import scheduler
from guerdon.asking.loop import run_sync
from guerdon.asking.store import Store
from tests.test_budget import Gambler, ask_until_broke
scheduler.LEASE, scheduler.OTHERS_MONEY = 1.0, 0.3
with Store.open(Path(sys.argv[1])) as store:
    rater = Gambler(int(sys.argv[4]), "gambler", bills=Path(sys.argv[2]))
    run_sync(ask_until_broke(store, rater, float(sys.argv[3]), windows=300, concurrency=8))
"""


async def kill_real_processes(folder: Path, seed: int, ceiling: float, processes: int) -> None:
    store_path, bills = folder / f"{seed}.sqlite", folder / f"{seed}.bills"
    bills.touch()
    dice = random.Random(seed)

    def begin(number: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", PROCESS, str(store_path), str(bills), str(ceiling), str(10 * seed + number)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def wait_for_bills(more_than: int, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 60
        while len(bills.read_text().splitlines()) <= more_than and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)

    running = [begin(number) for number in range(processes)]
    for process in running:
        wait_for_bills(len(bills.read_text().splitlines()) + dice.randrange(8), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Store.open(store_path) as store:
        assert store.spent(RUN) <= ceiling + 1e-9
        assert store.spent(RUN) >= sum(map(float, bills.read_text().split())) - 1e-9
    assert begin(processes).wait(timeout=100) == 0  # the next one goes on, to the end or to the ceiling
    with Store.open(store_path) as store:
        costs = store.costs(RUN)
        billed = sum(map(float, bills.read_text().split()))
        assert billed - 1e-9 <= costs.charged + costs.reserved <= ceiling + 1e-9


async def test_killed_processes_never_pass_the_ceiling(tmp_path: Path) -> None:
    await kill_real_processes(tmp_path, 1, ceiling=1.0, processes=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 8))
async def test_several_killed_processes_never_pass_the_ceiling(tmp_path: Path, seed: int) -> None:
    await kill_real_processes(tmp_path, seed, ceiling=random.Random(seed).choice([1.0, 5.0, 20.0]), processes=3)
