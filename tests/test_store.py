"""The reply store: nothing that was paid for is lost, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.answers import Scores
from guerdon.asking import _backends, _ledger, _tables
from guerdon.asking._backends import filesystem
from guerdon.asking.store import Claim, Costs, Key, Store, default_path
from guerdon.errors import StoreError, WriteFailed
from guerdon.records import Evidence, Failure, Message, Rater, Reply, Request, Subject, Usage

pytestmark = pytest.mark.anyio

RATER = Rater("scripted", "perfect", settings={"seed": 0})


def request(text: str = "What changed?", *, earlier: str = "") -> Request:
    messages = (Message("user", text),)
    if earlier:
        messages = (Message("user", text), Message("assistant", earlier), Message("user", "Score it."))
    return Request(Evidence("go to the ball", ("left",), ()), messages, Scores(1), "score", Subject(0, 0, 1))


def key(asked: Request, repeat: int = 0) -> Key:
    return Key(asked.question, RATER.key, repeat)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store can be opened, on either engine; nothing is there yet."""
    if request.param == "sqlite":
        return tmp_path / "replies.sqlite"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def store(place: Path | str) -> Iterator[Store]:
    with Store.open(place) as opened:
        yield opened


def rows(store: Store, statement: str) -> list[tuple[Any, ...]]:
    """What an SQL query finds in the store."""
    return store.backend.read(lambda connection: [tuple(row) for row in connection.execute(sa.text(statement))])


async def find(store: Store, asked: Request, repeat: int = 0, *, retry_failed: bool = False) -> Reply | Failure | None:
    return await store.find(asked.question, RATER.key, repeat, retry_failed=retry_failed)


async def test_a_reply_is_found_again_whole(store: Store) -> None:
    asked, reply = request(), Reply('{"scores": [7]}', "model-1", Usage(10, 5, 0.25), 1.5)
    assert await find(store, asked) is None
    await store.record(asked, RATER, 0, reply, run="a")
    assert await find(store, asked) == reply
    assert await find(store, asked, repeat=1) is None
    assert await store.find(asked.question, Rater("scripted", "noisy").key, 0) is None


def test_no_byte_of_a_reply_is_lost(store: Store) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.text(st.characters(), min_size=0))
    def check(text: str) -> None:
        async def round_trip() -> None:
            asked = request("q", earlier=text or "x")
            await store.record(asked, RATER, 0, Reply(text), run="a")
            found = await find(store, asked)
            assert isinstance(found, Reply)
            assert found.text == text

        asyncio.run(round_trip())

    check()


async def test_a_lone_surrogate_and_a_nul_survive_reopening(place: Path | str) -> None:
    text = "half \ud83d of a pair, and \x00"
    with Store.open(place) as store:
        store.begin_run("a", f"runs/{text}")
        await store.record(request(), RATER, 0, Reply(text, model=text), run="a")
        await store.record(request("bad"), RATER, 0, Failure("bad_request", final=True, code=text), run="a")
    with Store.open(place) as store:
        found = await find(store, request())
    assert isinstance(found, Reply)
    assert found.text == text


async def test_the_first_answer_wins_and_every_attempt_is_kept(store: Store) -> None:
    asked = request()
    assert (await store.record(asked, RATER, 0, Reply("first"), run="a")) == Reply("first")
    counted = await store.record(asked, RATER, 0, Reply("second"), run="a")
    assert isinstance(counted, Reply)
    assert counted.text == "first"
    assert store.costs("a").requests == 2


async def test_what_was_asked_of_whom_can_be_audited(store: Store) -> None:
    asked = request(earlier="\ud800 moved")
    await store.record(asked, RATER, 0, Reply("ok"), run="a")
    ((question, record),) = rows(store, "SELECT question, record FROM request")
    ((rater, identity),) = rows(store, "SELECT rater, identity FROM rater")
    assert question == asked.question
    assert Request.from_record(json.loads(record.decode("utf-8", "surrogatepass")), {}) == asked
    assert rater == RATER.key
    assert json.loads(identity)["settings"] == {"seed": 0}


async def test_a_final_failure_is_remembered_a_transient_one_is_not(store: Store) -> None:
    asked = request()
    await store.record(asked, RATER, 0, Failure("timeout", final=False), run="a")
    assert await find(store, asked) is None
    await store.record(asked, RATER, 0, Failure("blocked", final=True, code="SAFETY", status=200), run="a")
    assert await find(store, asked) == Failure("blocked", final=True, code="SAFETY", status=200)
    assert await find(store, asked, retry_failed=True) is None
    await store.record(asked, RATER, 0, Reply("after all"), run="b")
    assert await find(store, asked) == Reply("after all")


@pytest.mark.parametrize("cause", ["authentication", "quota"])
async def test_trouble_with_the_account_is_no_fate_of_a_question(store: Store, cause: str) -> None:
    await store.record(request(), RATER, 0, Failure(cause, final=True), run="a")  # type: ignore[arg-type]
    assert await find(store, request()) is None


async def test_costs_add_up_and_unknown_prices_are_counted(store: Store) -> None:
    outcomes: list[Reply | Failure] = [
        Reply("a", usage=Usage(100, 10, 0.5), seconds=2.0),
        Reply("b", usage=Usage(200, 20, None), seconds=1.0),
        Failure("rate_limit", final=False, seconds=0.5),
        Failure("rate_limit", final=False, seconds=0.5),
        Failure("truncated", final=True, usage=Usage(50, 5, 0.25)),
        Failure("timeout", final=False),
    ]
    for number, outcome in enumerate(outcomes):
        await store.record(request(str(number)), RATER, 0, outcome, run="mine")
    await store.record(request("other"), RATER, 0, Reply("c", usage=Usage(1, 1, 9.0)), run="other")
    failures = {"timeout": 1, "rate_limit": 2, "truncated": 1}
    # Unpriced: the reply without a price and the timeout, which the vendor may have charged. A refused rate is never charged.
    assert store.costs("mine") == Costs(6, 2, 350, 35, 0.75, 2, 4.0, failures, charged=0.75)  # type: ignore[arg-type]
    assert store.costs("nobody") == Costs(0, 0, 0, 0, 0.0, 0, 0.0, {})


# --- claims ---


async def test_a_claim_keeps_others_away_until_the_answer_is_there(store: Store) -> None:
    asked = request()
    assert await store.claim(key(asked), "me", 60) is Claim.GRANTED
    assert await store.claim(key(asked), "you", 60) is Claim.HELD
    assert await store.claim(key(asked), "me", 60) is Claim.HELD
    await store.record(asked, RATER, 0, Reply("done"), run="a")
    assert await store.claim(key(asked), "you", 60) == Reply("done")


async def test_of_two_claims_in_one_wave_one_is_granted(store: Store) -> None:
    asked = request()
    granted = await asyncio.gather(*(store.claim(key(asked), "me", 60) for _ in range(20)))
    assert sorted(granted, key=str) == [Claim.GRANTED] + [Claim.HELD] * 19


async def test_claims_lapse_are_renewed_and_released(store: Store) -> None:
    lapsed, renewed, released = request("a"), request("b"), request("c")
    assert await store.claim(key(lapsed), "dead", 0.0) is Claim.GRANTED
    assert await store.claim(key(renewed), "alive", 0.0) is Claim.GRANTED
    await store.renew("alive", 60)
    time.sleep(0.01)
    assert await store.claim(key(lapsed), "me", 60) is Claim.GRANTED
    assert await store.claim(key(renewed), "me", 60) is Claim.HELD
    assert await store.claim(key(released), "you", 60) is Claim.GRANTED
    await store.release("you")
    assert await store.claim(key(released), "me", 60) is Claim.GRANTED


async def test_a_claim_on_what_failed_for_good_tells_so(store: Store) -> None:
    failure = Failure("refusal", final=True)
    await store.record(request(), RATER, 0, failure, run="a")
    assert await store.claim(key(request()), "me", 60) == failure
    assert await store.claim(key(request()), "me", 60, retry_failed=True) is Claim.GRANTED


async def test_a_failed_attempt_ends_its_claim(store: Store) -> None:
    assert await store.claim(key(request()), "me", 60, dollars=0.01) is Claim.GRANTED
    await store.record(request(), RATER, 0, Failure("overload", final=False), run="a")
    assert await store.claim(key(request()), "you", 60) is Claim.GRANTED


async def test_a_late_record_leaves_the_claim_to_its_new_owner(store: Store) -> None:
    asked = request()
    assert await store.claim(key(asked), "slow", -1, run="a", dollars=0.25) is Claim.GRANTED
    assert await store.claim(key(asked), "quick", 60, run="a", dollars=0.25) is Claim.GRANTED
    await store.record(asked, RATER, 0, Failure("timeout", final=False), run="a", owner="slow")
    assert await store.claim(key(asked), "third", 60) is Claim.HELD
    costs = store.costs("a")
    # The slow request was charged when its claim was taken over; what it turns out to have been adds nothing.
    assert (costs.lost, costs.requests, costs.charged, costs.reserved) == (1, 1, 0.25, 0.25)
    await store.record(asked, RATER, 0, Reply("x", usage=Usage(1, 1, 0.375)), run="a", owner="slow")
    assert store.costs("a").charged == 0.375  # but for what it cost more than was feared


async def test_what_may_have_been_recorded_before_is_recorded_once(store: Store) -> None:
    for text in ("reply", "failure", "new"):
        assert await store.claim(key(request(text)), "batch/b", 60, run="a", dollars=0.25) is Claim.GRANTED
    outcomes: dict[str, Reply | Failure] = {"reply": Reply("x"), "failure": Failure("blocked", final=True)}
    for _ in range(2):
        for text, outcome in outcomes.items():
            assert await store.record(request(text), RATER, 0, outcome, run="a", owner="batch/b", only_held=True) == outcome
    assert (store.costs("a").requests, store.costs("a").charged) == (2, 0.5)
    await store.abandon("batch/b")
    late = Reply("late", usage=Usage(1, 1, 0.125))  # no answer yet: it is kept, and was charged already
    assert await store.record(request("new"), RATER, 0, late, run="a", owner="batch/b", only_held=True) == late
    assert (store.costs("a").requests, store.costs("a").charged) == (3, 0.75)


# --- money ---


async def test_a_ceiling_counts_what_was_charged_and_what_is_reserved(store: Store) -> None:
    first, second, third = request("1"), request("2"), request("3")
    assert await store.claim(key(first), "me", 60, run="a", dollars=0.4, ceiling=1.0) is Claim.GRANTED
    assert await store.claim(key(second), "me", 60, run="a", dollars=0.6, ceiling=1.0) is Claim.GRANTED
    assert store.spent("a") == 1.0
    assert await store.claim(key(third), "me", 60, run="a", dollars=0.1, ceiling=1.0) is Claim.TOO_DEAR
    assert await store.claim(key(third), "me", 60, run="a", dollars=0.0, ceiling=1.0) is Claim.GRANTED
    await store.record(first, RATER, 0, Reply("cheap", usage=Usage(1, 1, 0.05)), run="a")
    assert store.spent("a") == pytest.approx(0.65)
    assert await store.claim(key(request("4")), "me", 60, run="a", dollars=0.35, ceiling=1.0) is Claim.GRANTED
    assert await store.claim(key(request("5")), "me", 60, run="a", dollars=1e-9, ceiling=1.0) is Claim.TOO_DEAR
    assert await store.claim(key(request("5")), "me", 60, run="b", dollars=0.1, ceiling=1.0) is Claim.GRANTED


async def test_a_ceiling_holds_among_claims_that_come_at_once(store: Store) -> None:
    wishes = (store.claim(key(request(str(n))), "me", 60, run="a", dollars=0.07, ceiling=0.7) for n in range(40))
    taken = await asyncio.gather(*wishes)
    assert taken == [Claim.GRANTED] * 10 + [Claim.TOO_DEAR] * 30  # 0.07 ten times is 0.7, whatever floats make of it
    assert store.spent("a") == pytest.approx(0.7, abs=1e-12)


async def test_what_is_stored_is_had_at_any_ceiling(store: Store) -> None:
    await store.record(request(), RATER, 0, Reply("done"), run="a")
    assert await store.claim(key(request()), "me", 60, run="a", dollars=1.0, ceiling=0.0) == Reply("done")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ceiling": 1.0},
        {"dollars": -0.1},
        {"dollars": float("nan")},
        {"dollars": float("inf")},
        {"dollars": 1.0, "ceiling": -1.0},
        {"dollars": 1.0, "ceiling": float("nan")},
        {"dollars": 1.0, "ceiling": float("inf")},
    ],
)
async def test_amounts_that_are_none_are_refused(store: Store, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give dollars too|an amount of money is finite"):
        await store.claim(key(request()), "me", 60, run="a", **wrong)  # type: ignore[arg-type]
    assert await store.claim(key(request()), "me", 60) is Claim.GRANTED


@pytest.mark.parametrize(
    ("outcome", "charged"),
    [
        (Reply("x", usage=Usage(1, 1, 0.125)), 0.125),
        (Reply("x", usage=Usage(1, 1, 0.75)), 0.75),  # more than was reserved: it was spent all the same
        (Reply("x"), 0.5),
        (Reply("x", usage=Usage(1, 1, float("nan"))), 0.5),
        (Failure("timeout", final=False), 0.5),
        (Failure("network", final=False), 0.5),
        (Failure("refusal", final=True), 0.5),
        (Failure("truncated", final=True, usage=Usage(1, 1, 0.25)), 0.25),
        (Failure("rate_limit", final=False), 0.0),
        (Failure("overload", final=False), 0.0),
        (Failure("authentication", final=True), 0.0),
        (Failure("bad_request", final=True), 0.0),
    ],
)
async def test_an_attempt_is_charged_with_its_price_or_with_the_most_it_can_have_cost(
    store: Store, outcome: Reply | Failure, charged: float
) -> None:
    assert await store.claim(key(request()), "me", 60, run="a", dollars=0.5, ceiling=1.0) is Claim.GRANTED
    await store.record(request(), RATER, 0, outcome, run="a", owner="me")
    costs = store.costs("a")
    assert (costs.charged, costs.reserved, store.spent("a")) == (charged, 0.0, charged)
    assert rows(store, "SELECT charged FROM attempt") == [(round(charged * 1e9),)]


async def test_without_a_reservation_an_unknown_price_charges_nothing_but_is_counted(store: Store) -> None:
    await store.record(request(), RATER, 0, Reply("x"), run="a")
    assert await store.claim(key(request("2")), "me", 60, run="a") is Claim.GRANTED
    await store.record(request("2"), RATER, 0, Failure("timeout", final=False), run="a")
    costs = store.costs("a")
    assert (costs.charged, costs.dollars, costs.dollars_unknown) == (0.0, 0.0, 2)


async def test_a_claim_that_is_taken_over_stays_spent_in_its_own_run(store: Store) -> None:
    asked = request()
    assert await store.claim(key(asked), "dead", -1, run="theirs", dollars=0.25, ceiling=1.0) is Claim.GRANTED
    assert await store.claim(key(asked), "me", 60, run="mine", dollars=0.5, ceiling=0.4) is Claim.TOO_DEAR
    assert store.spent("theirs") == 0.25
    assert await store.claim(key(asked), "me", 60, run="mine", dollars=0.5, ceiling=0.5) is Claim.GRANTED
    theirs, mine = store.costs("theirs"), store.costs("mine")
    assert (theirs.lost, theirs.charged, theirs.reserved, theirs.requests, theirs.dollars_unknown) == (1, 0.25, 0.0, 0, 1)
    assert (mine.lost, mine.charged, mine.reserved) == (0, 0.0, 0.5)


async def test_a_claim_of_the_same_run_that_is_taken_over_counts_twice(store: Store) -> None:
    asked = request()
    assert await store.claim(key(asked), "dead", -1, run="a", dollars=0.6, ceiling=1.0) is Claim.GRANTED
    assert await store.claim(key(asked), "me", 60, run="a", dollars=0.6, ceiling=1.0) is Claim.TOO_DEAR
    assert await store.claim(key(asked), "me", 60, run="a", dollars=0.4, ceiling=1.0) is Claim.GRANTED
    assert store.spent("a") == 1.0


async def test_released_money_is_free_again_and_abandoned_money_is_not(store: Store) -> None:
    for number, owner in enumerate(("unsent", "unsent", "unsent", "cut", "cut", "other")):
        assert await store.claim(key(request(str(number))), owner, 60, run="a", dollars=0.1, ceiling=1.0) is Claim.GRANTED
    await store.release("unsent", key(request("0")))
    await store.release("other", key(request("1")))  # not its claim
    assert store.costs("a").reserved == pytest.approx(0.5)
    await store.release("unsent")
    assert store.costs("a").reserved == pytest.approx(0.3)
    await store.abandon("cut")
    costs = store.costs("a")
    assert (costs.lost, costs.requests, costs.answered, costs.seconds, costs.failures) == (2, 0, 0, 0.0, {})
    assert (costs.charged, costs.reserved) == pytest.approx((0.2, 0.1))
    assert await store.claim(key(request("3")), "me", 60) is Claim.GRANTED
    assert await store.claim(key(request("5")), "me", 60) is Claim.HELD
    for nothing in (store.release("nobody"), store.abandon("nobody"), store.renew("nobody", 60)):
        await nothing


async def test_a_lost_request_that_was_free_has_a_known_price(store: Store) -> None:
    assert await store.claim(key(request()), "me", 60, run="a", dollars=0.0) is Claim.GRANTED
    assert await store.holds("me") == (1, pytest.approx(60, abs=30))
    await store.abandon("me")
    assert await store.holds("me") == (0, 0.0)
    costs = store.costs("a")
    assert (costs.lost, costs.dollars, costs.dollars_unknown) == (1, 0.0, 0)


async def test_a_claim_that_is_cancelled_is_given_up_by_the_release_that_follows(store: Store) -> None:
    wish = asyncio.ensure_future(store.claim(key(request()), "me", 60, run="a", dollars=0.1))
    await asyncio.sleep(0)
    wish.cancel()
    await store.release("me")
    assert store.spent("a") == 0.0
    assert await store.claim(key(request()), "you", 60) is Claim.GRANTED


async def test_thinking_and_cached_tokens_are_kept(store: Store) -> None:
    usage = Usage(100, 50, 0.25, thinking_tokens=30, cached_tokens=80)
    await store.record(request(), RATER, 0, Reply("x", usage=usage), run="a")
    found = await find(store, request())
    assert isinstance(found, Reply)
    assert found.usage == usage
    costs = store.costs("a")
    assert (costs.thinking_tokens, costs.cached_tokens) == (30, 80)


async def test_runs_are_listed_with_what_they_cost(store: Store) -> None:
    began = time.time()
    store.begin_run("a", "runs/first")
    store.begin_run("a")
    store.begin_run("b", "")
    await store.record(request(), RATER, 0, Reply("x", usage=Usage(1, 1, 0.5)), run="a")
    store.begin_run("b", "runs/second")
    one, two = store.runs()
    assert [(info.id, info.name) for info in (one, two)] == [("a", "runs/first"), ("b", "runs/second")]
    assert one.costs == store.costs("a")
    assert (one.costs.requests, two.costs.requests) == (1, 0)
    assert began - 60 < one.first < one.last < time.time() + 60
    assert one.first < two.first


async def test_the_ledger_balances_whatever_happens(store: Store) -> None:
    chance = random.Random(20)
    ceiling, owners, runs = 0.3, ("one", "two", "three"), ("a", "b")
    claimed: dict[tuple[str, Key], tuple[Request, float, str]] = {}
    happened = set()

    async def claim(owner: str, run: str) -> None:
        asked, repeat, dollars = request(str(chance.randrange(30))), chance.randrange(2), chance.choice((0.0, 0.01, 0.0123456789, 0.07))
        lease = chance.choice((60, 60, -1))
        taken = await store.claim(key(asked, repeat), owner, lease, run=run, dollars=dollars, ceiling=ceiling, retry_failed=True)
        happened.add(taken if isinstance(taken, Claim) else type(taken))
        if taken is Claim.GRANTED:
            claimed[owner, key(asked, repeat)] = (asked, dollars, run)

    async def record(owner: str, run: str) -> None:
        mine = [entry for entry in claimed if entry[0] == owner]
        if not mine:
            return
        entry = chance.choice(mine)
        asked, dollars, run_of_claim = claimed.pop(entry)
        price = chance.choice((None, 0.0, dollars / 3, dollars))
        kinds = (Reply("x", usage=Usage(1, 1, price)), Failure("timeout", final=False), Failure("overload", final=False))
        await store.record(asked, RATER, entry[1].repeat, chance.choice(kinds), run=run_of_claim, owner=owner)

    async def give_up(owner: str, run: str) -> None:
        sent = chance.random() < 0.5
        given_up = 0.5 if sent else 1.0
        await (store.abandon(owner) if sent else store.release(owner))
        for entry in [entry for entry in claimed if entry[0] == owner and chance.random() < given_up]:
            del claimed[entry]  # some replies come late, after their claims were abandoned

    async def renew(owner: str, run: str) -> None:
        await store.renew(owner, 60)

    steps = [claim] * 6 + [record] * 4 + [give_up, renew]
    for _ in range(40):
        await asyncio.gather(*(chance.choice(steps)(chance.choice(owners), chance.choice(runs)) for _ in range(4)))
        for run in runs:
            ((charged, reserved),) = rows(store, f"SELECT max(charged), max(reserved) FROM run WHERE run = '{run}'")
            if charged is None:
                continue
            assert 0 <= charged + reserved <= ceiling * 1e9
            assert charged == rows(store, f"SELECT coalesce(sum(charged), 0) FROM attempt WHERE run = '{run}'")[0][0]
            assert reserved == rows(store, f"SELECT coalesce(sum(reserved), 0) FROM claim WHERE run = '{run}'")[0][0]
    assert happened >= {Claim.GRANTED, Claim.HELD, Claim.TOO_DEAR, Reply}
    assert all(store.costs(run).lost > 0 for run in runs)


# --- batches ---


async def test_a_batch_is_known_from_the_intent_to_its_end(store: Store) -> None:
    items = {"0": (request("a"), 0), "1": (request("a"), 1), "2": (request("b"), 0)}
    began = time.time()
    store.intend_batch("mine", RATER, "a", {})
    store.intend_batch("mine", RATER, "a", items)  # now it is known what is in it
    store.intend_batch("theirs", Rater("other", "m"), "b", {"0": items["0"]}, created=began - 100)
    theirs, mine = store.open_batches()
    assert (theirs.id, mine.id) == ("theirs", "mine")
    assert (mine.state, mine.vendor_id, mine.size, mine.run, mine.rater) == ("intended", None, 3, "a", RATER.key)
    assert began - 1 < mine.created < time.time() + 1
    assert mine.items == {"0": key(request("a")), "1": key(request("a"), 1), "2": key(request("b"))}
    store.batch_submitted("mine", "vendor-1")
    store.batch_submitted("mine", "vendor-2")  # the first name stays
    store.intend_batch("mine", RATER, "a", {})  # too late
    (row,) = store.open_batches(run="a")
    assert (row.state, row.vendor_id, row.size) == ("submitted", "vendor-1", 3)
    asked, repeat = store.batch_requests("mine")["1"]
    assert (Request.from_record(asked, {}), repeat) == (request("a"), 1)
    assert [row.id for row in store.open_batches(rater=RATER.key)] == ["mine"]
    store.batch_ended("mine", "ended")
    assert store.open_batches(run="a") == []
    assert [row.id for row in store.open_batches()] == ["theirs"]
    with pytest.raises(ValueError, match="has not ended"):
        store.batch_ended("theirs", "submitted")
    assert rows(store, "SELECT count(*) FROM request") == [(2,)]


async def test_the_money_of_a_batch_is_reserved_until_each_request_has_ended(store: Store) -> None:
    asked = {str(n): request(str(n)) for n in range(3)}
    for one in asked.values():
        assert await store.claim(key(one), "batch/b", 86400, run="a", dollars=0.1, ceiling=0.3) is Claim.GRANTED
    await store.record(asked["0"], RATER, 0, Reply("x", usage=Usage(1, 1, 0.05)), run="a", owner="batch/b")
    await store.release("batch/b", key(asked["1"]))
    assert (store.costs("a").charged, store.costs("a").reserved) == pytest.approx((0.05, 0.1))
    await store.abandon("batch/b")
    assert store.spent("a") == pytest.approx(0.15)


# --- several processes, and the end of one ---


def _answer_forever(place: Path | str, ready: multiprocessing.synchronize.Event) -> None:
    async def run() -> None:
        with Store.open(place) as store:
            for number in range(1_000_000):
                await store.record(request(str(number)), RATER, 0, Reply(f"answer {number}"), run="killed")
                if number == 20:
                    ready.set()

    asyncio.run(run())


def test_a_kill_loses_nothing_that_was_recorded(place: Path | str) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_answer_forever, args=(place, ready))
    process.start()
    assert ready.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Store.open(place) as store:
        for number in range(21):
            found = asyncio.run(find(store, request(str(number))))
            assert isinstance(found, Reply)
            assert found.text == f"answer {number}"


async def test_two_stores_in_one_place_see_each_other(place: Path | str) -> None:
    with Store.open(place) as one, Store.open(place) as two:
        await asyncio.gather(*(s.record(request(f"{n} {s is one}"), RATER, 0, Reply("x"), run="a") for n in range(30) for s in (one, two)))
        assert one.costs("a").requests == two.costs("a").requests == 60
        assert await one.claim(key(request()), "one", 60) is Claim.GRANTED
        assert await two.claim(key(request()), "two", 60) is Claim.HELD


CEILING, PRICE = 0.5, 0.01


def _spend_until_it_is_too_dear(place: Path | str, owner: str, start: multiprocessing.synchronize.Barrier) -> None:
    """Sends requests of its own, eight at once, until there is no money left. Some replies come without a price; some are lost."""

    async def spend(store: Store, lane: int) -> None:
        for number in range(1000):
            asked = request(f"{owner} {lane} {number}")
            mine = f"{owner} {lane}"
            taken = await store.claim(key(asked), mine, 60, run="shared", dollars=PRICE, ceiling=CEILING)
            if taken is Claim.TOO_DEAR:
                return
            assert taken is Claim.GRANTED
            await asyncio.sleep(0.001 * (number % 3))
            if number % 4 == 3:
                await store.abandon(mine)
            else:
                outcome = Failure("timeout", final=False) if number % 4 == 2 else Reply("x", usage=Usage(1, 1, PRICE))
                await store.record(asked, RATER, 0, outcome, run="shared", owner=mine)

    async def run() -> None:
        with Store.open(place) as store:
            start.wait(60)
            await asyncio.gather(*(spend(store, lane) for lane in range(8)))

    asyncio.run(run())


def test_processes_share_a_ceiling_and_never_break_it(place: Path | str) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    with Store.open(place) as store:
        store.begin_run("shared")
        processes = [context.Process(target=_spend_until_it_is_too_dear, args=(place, owner, start)) for owner in ("one", "two")]
        for process in processes:
            process.start()
        start.wait(60)
        watched = [store.spent("shared")]
        while any(process.is_alive() for process in processes):
            watched.append(store.spent("shared"))
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert max(watched) <= CEILING
        costs = store.costs("shared")
        # Each attempt counts for exactly what it had reserved, so exactly this many fit.
        assert costs.requests + costs.lost == round(CEILING / PRICE)
        assert (costs.charged, costs.reserved) == (CEILING, 0.0)
        assert costs.lost > 0
        owners = {owner for (owner,) in rows(store, "SELECT record FROM request")}
        assert {b"one" in owner for owner in owners} == {True, False}


async def test_a_claim_waits_until_another_store_has_decided_its_own(place: Path | str) -> None:
    decided, go_on = threading.Event(), threading.Event()
    wish = _ledger.TakeClaim(key(request("1")), "one", 60, "a", False, reserved=600_000_000, ceiling=1_000_000_000)

    def slowly(connection: sa.Connection, now: float) -> list[Any]:
        results = _ledger.carry_out(connection, one.backend.statements, [wish], now)
        decided.set()
        go_on.wait(30)
        return results

    with Store.open(place) as one, Store.open(place) as two:
        first = asyncio.get_running_loop().run_in_executor(None, lambda: one.backend.write(slowly))
        await asyncio.to_thread(decided.wait, 30)
        second = asyncio.ensure_future(two.claim(key(request("2")), "two", 60, run="a", dollars=0.6, ceiling=1.0))
        await asyncio.sleep(0.1)
        assert not second.done()
        go_on.set()
        assert await first == [Claim.GRANTED]
        assert await second is Claim.TOO_DEAR


# --- trouble ---


def test_a_damaged_file_is_named_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"this is no database, however long it may be. " * 100)
    with pytest.raises(StoreError, match=r"s\.sqlite: is damaged.*Move it away"):
        Store.open(path)


def test_a_truncated_file_is_named_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store.open(path).close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(path)


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match="not a reply store"):
        Store.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]
    connection.close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer guerdon.*pip install --upgrade"):
        Store.open(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be opened for writing.*GUERDON_STORE"):
        Store.open(tmp_path / "file" / "sub" / "s.sqlite")
    with pytest.raises(StoreError, match="cannot be opened for writing"):
        Store.open(tmp_path)  # a folder, not a file


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be opened for writing"):
        Store.open(tmp_path / "s.sqlite")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "filesystem", lambda _path, _mounts: "nfs4")
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*local disk"):
        Store.open(tmp_path / "s.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me/s.sqlite", "nfs4"), ("/home", "nfs4"), ("/homely/s", "ext4"), ("/a b/c", "cifs"), ("/over/x", "tmpfs"), ("/etc", "ext4")],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    mounts = "dev / ext4 rw 0 0\nhost:/x /home nfs4 rw 0 0\nh /a\\040b cifs rw\nh /over nfs rw\ntmpfs /over tmpfs rw\nbroken\n"
    assert filesystem(Path(path), mounts) == kind


async def test_a_full_disk_stops_with_nothing_half_written(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        await store.record(request("before"), RATER, 0, Reply("kept"), run="a")
        _limit_pages(store)
        with pytest.raises(WriteFailed, match=r"disk is full.*Free some space"):
            await store.record(request("big"), RATER, 0, Reply("x" * 1_000_000), run="a")
        assert await find(store, request("big")) is None
        assert store.costs("a").requests == 1
    with Store.open(tmp_path / "s.sqlite") as store:
        assert await find(store, request("before")) == Reply("kept")


async def test_one_write_that_fails_does_not_take_others_with_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        await store.record(request("before"), RATER, 0, Reply("kept"), run="a")
        _limit_pages(store, spare=40)
        sizes = (10, 1_000_000, 20)
        outcomes = await asyncio.gather(
            *(store.record(request(str(size)), RATER, 0, Reply("x" * size), run="a") for size in sizes), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Reply, WriteFailed, Reply]


def _limit_pages(store: Store, *, spare: int = 2) -> None:
    """Imitates a full disk: no connection of the store may let the file grow by more than `spare` pages."""

    @sa.event.listens_for(store.backend.engine, "begin")
    def limit(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + spare}")


async def test_a_closed_store_says_so(place: Path | str) -> None:
    store = Store.open(place)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.record(request(), RATER, 0, Reply("x"), run="a")
    with pytest.raises(StoreError, match="closed"):
        await find(store, request())
    with pytest.raises(StoreError, match="closed"):
        store.costs("a")
    with pytest.raises(StoreError, match="closed"):
        store.begin_run("a")


async def test_closing_first_writes_what_is_queued(place: Path | str) -> None:
    store = Store.open(place)
    writes = [asyncio.ensure_future(store.record(request(str(n)), RATER, 0, Reply("x"), run="a")) for n in range(50)]
    await asyncio.sleep(0)
    store.close()
    await asyncio.gather(*writes)
    with Store.open(place) as again:
        assert again.costs("a").requests == 50


# --- schema ---


def test_the_tables_in_code_are_the_tables_that_were_made(store: Store) -> None:
    engine = store.backend.engine
    found = sa.inspect(engine)
    schema = "guerdon" if store.backend.remote else None
    of_the_engine = {"format", "writer"} if store.backend.remote else set()
    assert set(found.get_table_names(schema)) == set(_tables.metadata.tables) | of_the_engine
    for name, table in _tables.metadata.tables.items():
        columns = {column["name"]: (_type(str(column["type"])), column["nullable"]) for column in found.get_columns(name, schema)}
        expected = {c.name: (_type(c.type.compile(engine.dialect)), bool(c.nullable)) for c in table.columns}
        assert columns == expected, name
        assert found.get_pk_constraint(name, schema)["constrained_columns"] == [c.name for c in table.primary_key]


def _type(name: str) -> str:
    return "FLOAT" if name == "DOUBLE PRECISION" else name


def test_durability_is_switched_on(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store, store.backend.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_opening_twice_migrates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(tmp_path / "s.sqlite").close()
    later = (*_tables.MIGRATIONS, "ALTER TABLE attempt ADD COLUMN note TEXT")
    monkeypatch.setattr(_tables, "MIGRATIONS", later)
    for _ in range(2):
        with Store.open(tmp_path / "s.sqlite") as store:
            assert "note" in {column["name"] for column in sa.inspect(store.backend.engine).get_columns("attempt")}


FORMAT_1 = """
INSERT INTO request VALUES ('q', CAST('{}' AS BLOB), 5.0);
INSERT INTO attempt (question, rater, repeat, run, started, seconds, outcome, cause, input_tokens, output_tokens, dollars)
    VALUES ('q', 'r', 0, 'old', 10.0, 1.5, 'reply', NULL, 100, 10, 0.07),
           ('p', 'r', 0, 'old', 20.0, 0.5, 'transient', 'timeout', NULL, NULL, NULL),
           ('s', 'r', 0, 'old', 30.0, 2.5, 'final', 'blocked', 1, 1, 1e-9),
           ('q', 'r', 1, 'free', 8.0, 0.0, 'reply', NULL, 0, 0, 0.0);
INSERT INTO answer VALUES ('q', 'r', 0, CAST('old answer' AS BLOB), 'model-1', 1.5, 100, 10, 0.07);
INSERT INTO claim VALUES ('x', 'r', 0, 'alive', 'token', 4102444800.0, NULL), ('y', 'r', 0, 'dead', 'token', 1.0, 0.5);
"""


async def test_a_store_of_the_first_format_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_tables.MIGRATIONS[0] + FORMAT_1 + "PRAGMA application_id = 0x67756572; PRAGMA user_version = 1;")
    with Store.open(path) as store:
        assert await store.find("q", "r", 0) == Reply("old answer", "model-1", Usage(100, 10, 0.07), 1.5)
        assert await store.find("s", "r", 0) == Failure("blocked", final=True, usage=Usage(1, 1, 1e-9), seconds=2.5)
        old, free = store.costs("old"), store.costs("free")
        assert (old.requests, old.charged, old.reserved, old.dollars_unknown) == (3, pytest.approx(0.070000001, abs=1e-12), 0.0, 1)
        assert (free.requests, free.charged) == (1, 0.0)
        assert [(info.id, info.name, info.first, info.last) for info in store.runs()] == [("free", "", 8.0, 8.0), ("old", "", 10.0, 32.5)]
        assert await store.claim(Key("x", "r", 0), "me", 60, run="new", dollars=0.1, ceiling=1.0) is Claim.HELD
        assert await store.claim(Key("y", "r", 0), "me", 60, run="new", dollars=0.1, ceiling=1.0) is Claim.GRANTED
        assert store.spent("new") == 0.1
        assert rows(store, "SELECT charged FROM attempt ORDER BY id")[:4] == [(70_000_000,), (0,), (1,), (0,)]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(_tables.MIGRATIONS),)


async def test_a_reply_that_an_older_process_still_waits_for_can_be_written_after_migration(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(_tables.MIGRATIONS[0] + "PRAGMA application_id = 0x67756572; PRAGMA user_version = 1;")
        old.execute("INSERT INTO claim VALUES ('q', 'r', 0, 'old', 'token', 4102444800.0, NULL)")
        old.commit()
        with Store.open(path) as store:
            names = "question, rater, repeat, run, started, seconds, outcome, cause, code, status, input_tokens, output_tokens, dollars"
            old.execute(f"INSERT INTO attempt ({names}) VALUES ('q', 'r', 0, 'old', 1.0, 1.0, 'reply', NULL, NULL, NULL, 1, 1, 0.5)")
            columns = "question, rater, repeat, body, model, seconds, input_tokens, output_tokens, dollars"
            old.execute(f"INSERT INTO answer ({columns}) VALUES ('q', 'r', 0, CAST('theirs' AS BLOB), '', 1.0, 1, 1, 0.5)")
            old.execute("DELETE FROM claim WHERE question = 'q' AND rater = 'r' AND repeat = 0")
            old.commit()
            found = await store.find("q", "r", 0)
    assert isinstance(found, Reply)
    assert found.text == "theirs"


def test_the_default_path_obeys_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUERDON_STORE", str(tmp_path / "mine.sqlite"))
    assert default_path() == tmp_path / "mine.sqlite"
    monkeypatch.setenv("GUERDON_STORE", "postgresql://me@host/store")
    assert default_path() == "postgresql://me@host/store"
    monkeypatch.delenv("GUERDON_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = default_path()
    assert isinstance(found, Path)
    assert found.name == "replies.sqlite"
