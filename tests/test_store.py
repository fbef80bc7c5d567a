"""The reply store: nothing that was paid for is lost, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.answers import Scores
from guerdon.asking import store as store_module
from guerdon.asking.store import Costs, Key, Store, default_path, filesystem
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "replies.sqlite") as opened:
        yield opened


async def find(store: Store, asked: Request, repeat: int = 0, *, retry_failed: bool = False) -> Reply | Failure | None:
    return await store.find(asked.question, RATER.key, repeat, retry_failed=retry_failed)


async def test_a_reply_is_found_again_whole(store: Store) -> None:
    asked, reply = request(), Reply('{"scores": [7]}', "model-1", Usage(10, 5, 0.25), 1.5)
    assert await find(store, asked) is None
    await store.record(asked, RATER, 0, reply, run="a")
    assert await find(store, asked) == reply
    assert await find(store, asked, repeat=1) is None
    assert await store.find(asked.question, Rater("scripted", "noisy").key, 0) is None


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), min_size=0))
def test_no_byte_of_a_reply_is_lost(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    async def round_trip() -> None:
        asked = request("q", earlier=text or "x")
        await store.record(asked, RATER, 0, Reply(text), run="a")
        found = await find(store, asked)
        assert isinstance(found, Reply)
        assert found.text == text

    with Store.open(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        asyncio.run(round_trip())


async def test_a_lone_surrogate_and_a_nul_survive_reopening(tmp_path: Path) -> None:
    text = "half \ud83d of a pair, and \x00"
    with Store.open(tmp_path / "s.sqlite") as store:
        await store.record(request(), RATER, 0, Reply(text), run="a")
    with Store.open(tmp_path / "s.sqlite") as store:
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
    with sqlite3.connect(store.path) as connection:
        ((question, record),) = connection.execute("SELECT question, record FROM request").fetchall()
        ((rater, identity),) = connection.execute("SELECT rater, identity FROM rater").fetchall()
    connection.close()
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
    assert store.costs("mine") == Costs(6, 2, 350, 35, 0.75, 2, 4.0, failures)  # type: ignore[arg-type]
    assert store.costs("nobody") == Costs(0, 0, 0, 0, 0.0, 0, 0.0, {})


# --- claims ---


async def test_a_claim_keeps_others_away_until_the_answer_is_there(store: Store) -> None:
    asked = request()
    assert await store.claim(key(asked), "me", 60) is True
    assert await store.claim(key(asked), "you", 60) is False
    assert await store.claim(key(asked), "me", 60) is False
    await store.record(asked, RATER, 0, Reply("done"), run="a")
    assert await store.claim(key(asked), "you", 60) == Reply("done")


async def test_of_two_claims_in_one_wave_one_is_granted(store: Store) -> None:
    asked = request()
    granted = await asyncio.gather(*(store.claim(key(asked), "me", 60) for _ in range(20)))
    assert sorted(granted, key=str) == [False] * 19 + [True]


async def test_claims_lapse_are_renewed_and_released(store: Store) -> None:
    lapsed, renewed, released = request("a"), request("b"), request("c")
    assert await store.claim(key(lapsed), "dead", 0.0) is True
    assert await store.claim(key(renewed), "alive", 0.0) is True
    await store.renew("alive", 60)
    time.sleep(0.01)
    assert await store.claim(key(lapsed), "me", 60) is True
    assert await store.claim(key(renewed), "me", 60) is False
    assert await store.claim(key(released), "you", 60) is True
    await store.release("you")
    assert await store.claim(key(released), "me", 60) is True


async def test_a_claim_on_what_failed_for_good_tells_so(store: Store) -> None:
    failure = Failure("refusal", final=True)
    await store.record(request(), RATER, 0, failure, run="a")
    assert await store.claim(key(request()), "me", 60) == failure
    assert await store.claim(key(request()), "me", 60, retry_failed=True) is True


async def test_a_failed_attempt_ends_its_claim(store: Store) -> None:
    assert await store.claim(key(request()), "me", 60, dollars=0.01) is True
    await store.record(request(), RATER, 0, Failure("overload", final=False), run="a")
    assert await store.claim(key(request()), "you", 60) is True


# --- several processes, and the end of one ---


def _answer_forever(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    async def run() -> None:
        with Store.open(path) as store:
            for number in range(1_000_000):
                await store.record(request(str(number)), RATER, 0, Reply(f"answer {number}"), run="killed")
                if number == 20:
                    ready.set()

    asyncio.run(run())


def test_a_kill_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_answer_forever, args=(tmp_path / "s.sqlite", ready))
    process.start()
    assert ready.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Store.open(tmp_path / "s.sqlite") as store:
        for number in range(21):
            found = asyncio.run(find(store, request(str(number))))
            assert isinstance(found, Reply)
            assert found.text == f"answer {number}"


async def test_two_stores_on_one_file_see_each_other(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as one, Store.open(tmp_path / "s.sqlite") as two:
        await asyncio.gather(*(s.record(request(f"{n} {s is one}"), RATER, 0, Reply("x"), run="a") for n in range(30) for s in (one, two)))
        assert one.costs("a").requests == two.costs("a").requests == 60
        assert await one.claim(key(request()), "one", 60) is True
        assert await two.claim(key(request()), "two", 60) is False


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
    monkeypatch.setattr(store_module, "filesystem", lambda _path, _mounts: "nfs4")
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

    @sa.event.listens_for(store._engine, "begin")
    def limit(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + spare}")


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s.sqlite")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.record(request(), RATER, 0, Reply("x"), run="a")
    with pytest.raises(StoreError, match="closed"):
        await find(store, request())


async def test_closing_first_writes_what_is_queued(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s.sqlite")
    writes = [asyncio.ensure_future(store.record(request(str(n)), RATER, 0, Reply("x"), run="a")) for n in range(50)]
    await asyncio.sleep(0)
    store.close()
    await asyncio.gather(*writes)
    with Store.open(tmp_path / "s.sqlite") as again:
        assert again.costs("a").requests == 50


# --- schema ---


def test_the_tables_in_code_are_the_tables_on_disk(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        found = sa.inspect(store._engine)
        assert set(found.get_table_names()) == set(store_module._metadata.tables)
        for name, table in store_module._metadata.tables.items():
            columns = {column["name"]: (str(column["type"]), column["nullable"]) for column in found.get_columns(name)}
            expected = {c.name: (c.type.compile(store._engine.dialect), bool(c.nullable)) for c in table.columns}
            assert columns == expected, name
            assert found.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key]


def test_durability_is_switched_on(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store, store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_opening_twice_migrates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(tmp_path / "s.sqlite").close()
    later = (*store_module.MIGRATIONS, "ALTER TABLE attempt ADD COLUMN note TEXT")
    monkeypatch.setattr(store_module, "MIGRATIONS", later)
    for _ in range(2):
        with Store.open(tmp_path / "s.sqlite") as store:
            assert "note" in {column["name"] for column in sa.inspect(store._engine).get_columns("attempt")}


def test_the_default_path_obeys_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUERDON_STORE", str(tmp_path / "mine.sqlite"))
    assert default_path() == tmp_path / "mine.sqlite"
    monkeypatch.delenv("GUERDON_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path().name == "replies.sqlite"
