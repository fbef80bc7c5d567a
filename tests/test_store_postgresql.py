"""The reply store in PostgreSQL: what can go wrong with a server, and that no password is shown. tests/test_store.py runs over it too."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from guerdon.asking import _postgresql, _tables
from guerdon.asking.store import Claim, Store
from guerdon.errors import GuerdonError, MissingExtra, StoreError, WriteFailed
from guerdon.records import Failure, Reply, Usage
from tests.postgresql import PASSWORD, Server
from tests.test_store import RATER, find, key, request

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-never-shown"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(postgresql_url: str) -> Iterator[Store]:
    with Store.open(postgresql_url) as opened:
        yield opened


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a server to come back."""
    monkeypatch.setattr(_postgresql, "RECONNECTING", (0.01, 0.01))


def cut(server: Server) -> None:
    """Ends every connection to the store's database."""
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'store' AND pid <> pg_backend_pid()")


# --- passwords ---


async def test_a_password_opens_the_store_and_is_shown_nowhere(
    postgresql_server: Server, postgresql_url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    postgresql_server.execute("GRANT CREATE ON DATABASE store TO scram", "store")
    with Store.open(postgresql_server.url_with_password(PASSWORD)) as store:
        await store.record(request(), RATER, 0, Reply("x"), run="a")
        assert await find(store, request()) == Reply("x")
        engine = store.backend.engine
        shown = [store.name, repr(store), str(store), repr(engine), str(engine.url), repr(vars(store)), repr(vars(store.backend))]
        assert store.name == f"postgresql://scram@127.0.0.1:{postgresql_server.port}/store"
        assert store.path is None
        with pytest.raises(sa.exc.DBAPIError) as caught, engine.connect() as connection:
            connection.exec_driver_sql("SELECT nothing")
        shown += traceback.format_exception(caught.value)
    shown += [caplog.text, *capfd.readouterr()]
    assert not any(PASSWORD in text for text in shown)


def _all_words(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://scram:{SECRET}@127.0.0.1:PORT/store",
        f"postgres://scram:{SECRET}@127.0.0.1:PORT/store",
        f"postgresql+psycopg://scram@127.0.0.1:PORT/store?password={SECRET}",
        f"postgresql://scram:{SECRET}@127.0.0.1:1/store",
        f"postgresql://scram:{SECRET}@no-such-host.invalid/store?connect_timeout=2",
        f"postgresql://scram:{SECRET}@127.0.0.1:PORT/store?sslmode=nonsense",
        f"postgresql://scram:{SECRET}@127.0.0.1:PORT/store?no_such_option=1",
        f"postgresql://scram:x@y:{SECRET}@127.0.0.1:PORT/store",
        f"postgresql://scram:{SECRET}@127.0.0.1:port/store",
        f"postgresql://scram:{SECRET}/x@127.0.0.1/store",
        f"mysql://scram:{SECRET}@127.0.0.1/store",
        f"postgresql+asyncpg://scram:{SECRET}@127.0.0.1/store",
        f"scram:{SECRET}@127.0.0.1://store",
    ],
)
def test_no_error_shows_a_password(
    url: str, postgresql_server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    url = url.replace("PORT", str(postgresql_server.port))
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert caught.value.cure
    monkeypatch.setenv("GUERDON_STORE", url)
    with pytest.raises(StoreError):
        Store.open()
    assert SECRET not in _all_words(caught.value) + caplog.text


def test_a_url_that_was_taken_for_a_path_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"taken for a path.*as text") as caught:
        Store.open(Path(f"postgresql://me:{SECRET}@host/store"))
    assert SECRET not in _all_words(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- opening ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, r"refuses user and password.*PGPASSWORD"),
        ({"scram:": "nobody:"}, r"does not let this user in.*pg_hba\.conf"),
        ({":PORT": ":1"}, r"127\.0\.0\.1:1/store: the database server cannot be reached.*is running"),
        ({"?": "?no_such_option=1"}, r"an option that is not known.*sslmode"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named_with_a_cure(postgresql_server: Server, change: dict[str, str], words: str) -> None:
    url = "postgresql://scram:wrong@127.0.0.1:PORT/store?"
    for old, new in change.items():
        url = url.replace(old, new)
    with pytest.raises(StoreError, match=words):
        Store.open(url.replace("PORT", str(postgresql_server.port)))


def test_a_database_or_user_that_is_missing_is_named_with_a_cure(postgresql_server: Server) -> None:
    with pytest.raises(StoreError, match=r"/nowhere: there is no such database.*createdb"):
        Store.open(postgresql_server.url("nowhere"))
    with pytest.raises(StoreError, match=r"there is no such user.*createuser"):
        Store.open(postgresql_server.url(user="stranger"))


async def test_a_read_only_database_says_so(postgresql_url: str) -> None:
    Store.open(postgresql_url).close()
    with pytest.raises(StoreError, match=r"read-only.*primary server"):
        Store.open(f"{postgresql_url}&options=-c%20default_transaction_read_only%3Don")
    with Store.open(postgresql_url) as store:

        @sa.event.listens_for(store.backend.engine, "begin")
        def become_a_standby(connection: sa.Connection) -> None:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

        with pytest.raises(StoreError, match=r"read-only.*primary server"):
            await store.record(request(), RATER, 0, Reply("x"), run="a")


async def test_a_user_without_rights_is_told_so(postgresql_server: Server, postgresql_url: str) -> None:
    postgresql_server.execute("REVOKE CREATE ON DATABASE store FROM scram", "store")
    with pytest.raises(StoreError, match=r"may not use the tables.*GRANT"):
        Store.open(postgresql_server.url(user="scram"))
    Store.open(postgresql_url).close()
    with pytest.raises(StoreError, match=r"may not use the tables.*GRANT"):
        Store.open(postgresql_server.url(user="scram"))
    for what in ("USAGE ON SCHEMA guerdon", "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA guerdon"):
        postgresql_server.execute(f"GRANT {what} TO scram", "store")
    with Store.open(postgresql_server.url(user="scram")) as store:  # who may write the tables needs no right to make them
        await store.record(request(), RATER, 0, Reply("x"), run="a")


def test_somebody_elses_tables_are_left_alone(postgresql_server: Server, postgresql_url: str) -> None:
    postgresql_server.execute("CREATE TABLE IF NOT EXISTS public.request (photo TEXT)", "store")
    Store.open(postgresql_url).close()  # tables of the same name elsewhere do not matter
    postgresql_server.execute("DROP SCHEMA guerdon CASCADE", "store")
    postgresql_server.execute("CREATE SCHEMA guerdon", "store")
    postgresql_server.execute("CREATE TABLE guerdon.photos (id INTEGER)", "store")
    with pytest.raises(StoreError, match="a schema 'guerdon' that is not a reply store"):
        Store.open(postgresql_url)
    found = postgresql_server.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'guerdon'", "store")
    assert found == [("photos",)]


def test_a_newer_store_is_refused(postgresql_server: Server, postgresql_url: str) -> None:
    Store.open(postgresql_url).close()
    postgresql_server.execute("UPDATE guerdon.format SET version = 99", "store")
    with pytest.raises(StoreError, match=r"newer guerdon.*pip install --upgrade"):
        Store.open(postgresql_url)


def test_an_encoding_that_cannot_hold_every_text_is_refused(postgresql_server: Server) -> None:
    postgresql_server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match=r"encoding is LATIN1.*UTF8"):
        Store.open(postgresql_server.url("latin"))


def test_processes_that_open_at_once_migrate_once(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_close(_number: int) -> None:
        Store.open(postgresql_url).close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_and_close, range(6)))
    monkeypatch.setattr(_tables, "POSTGRESQL_MIGRATIONS", (*_tables.POSTGRESQL_MIGRATIONS, "ALTER TABLE attempt ADD COLUMN note TEXT"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_and_close, range(6)))
    with Store.open(postgresql_url) as store:
        columns = sa.inspect(store.backend.engine).get_columns("attempt", "guerdon")
    assert "note" in {column["name"] for column in columns}


def test_a_missing_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else there(name, *rest))
    with pytest.raises(MissingExtra, match=r"pip install 'guerdon\[postgresql\]'"):
        Store.open("postgresql://me@host/store")


def test_a_store_leaves_no_writer_behind(postgresql_server: Server, store: Store) -> None:
    store.begin_run("a")
    assert postgresql_server.execute("SELECT count(*) FROM guerdon.writer", "store") == [(1,)]
    store.close()
    assert postgresql_server.execute("SELECT count(*) FROM guerdon.writer", "store") == [(0,)]


def test_replies_are_on_disk_even_where_the_server_would_not_wait(postgresql_server: Server, postgresql_url: str) -> None:
    with Store.open(f"{postgresql_url}&options=-c%20synchronous_commit%3Doff") as store, store.backend.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"


# --- while it runs ---


async def test_a_connection_that_is_cut_is_made_again(postgresql_server: Server, store: Store) -> None:
    await store.record(request("1"), RATER, 0, Reply("first"), run="a")
    cut(postgresql_server)
    assert await find(store, request("1")) == Reply("first")
    cut(postgresql_server)
    await store.record(request("2"), RATER, 0, Reply("second"), run="a")
    cut(postgresql_server)
    assert store.costs("a").requests == 2


class Breaking:
    """Cuts the connection just after, or just before, the server has committed: its client cannot tell the two apart."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
        dialect = store.backend.engine.dialect
        commit, self.left = dialect.do_commit, 1

        def break_off(connection: Any) -> None:
            if self.left:
                self.left -= 1
                if after:
                    commit(connection)
                connection.dbapi_connection.close()
            commit(connection)

        monkeypatch.setattr(dialect, "do_commit", break_off)


@pytest.mark.parametrize("after", [True, False])
async def test_what_may_have_been_committed_is_written_once(store: Store, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    assert await store.claim(key(request()), "me", 60, run="a", dollars=0.5, ceiling=1.0) is Claim.GRANTED
    breaking = Breaking(store, monkeypatch, after=after)
    reply = Reply("paid for", usage=Usage(1, 1, 0.25))
    assert await store.record(request(), RATER, 0, reply, run="a") == reply
    breaking.left = 1
    assert await store.claim(key(request("2")), "me", 60, run="a", dollars=0.5, ceiling=1.0) is Claim.GRANTED
    costs = store.costs("a")
    assert breaking.left == 0
    assert (costs.requests, costs.charged, costs.reserved) == (1, 0.25, 0.5)


async def test_a_server_that_restarts_is_waited_for(postgresql_server: Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.record(request("1"), RATER, 0, Reply("first"), run="a")
    postgresql_server.halt()
    write = asyncio.ensure_future(store.record(request("2"), RATER, 0, Reply("second"), run="a"))
    await asyncio.sleep(0.3)
    assert not write.done()
    await asyncio.to_thread(postgresql_server.start)
    await write
    assert store.costs("a").requests == 2


async def test_a_server_that_stays_away_stops_the_run(postgresql_server: Server, store: Store, at_once: None) -> None:
    await store.record(request("1"), RATER, 0, Reply("first"), run="a")
    postgresql_server.halt()
    try:
        writes = [store.record(request(str(n)), RATER, 0, Reply("second"), run="a") for n in range(20)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert "cannot be reached" in str(outcomes[0])
        with pytest.raises(StoreError, match="cannot be reached"):
            await find(store, request("1"))
    finally:
        postgresql_server.start()
    await store.record(request("3"), RATER, 0, Reply("third"), run="a")  # and it goes on once the server is back
    assert store.costs("a").requests == 2


async def test_a_writer_that_hangs_does_not_stop_the_others_for_ever(
    postgresql_server: Server, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgresql, "_SESSION", _postgresql._SESSION.replace("'90s'", "'200ms'").replace("'30s'", "'400ms'"))
    hanging, released = threading.Event(), threading.Event()

    def hang(connection: sa.Connection, _now: float) -> None:
        connection.exec_driver_sql("DELETE FROM answer")
        hanging.set()
        released.wait(30)

    with Store.open(postgresql_url) as store, Store.open(postgresql_url) as other:
        await store.record(request("1"), RATER, 0, Reply("kept"), run="a")
        backend = other.backend
        assert isinstance(backend, _postgresql.PostgresqlBackend)
        backend._patient = False
        thread = asyncio.get_running_loop().run_in_executor(None, lambda: backend.write(hang))
        await asyncio.to_thread(hanging.wait, 30)
        began = time.monotonic()
        refusals: list[StoreError] = []
        while time.monotonic() - began < 20:  # the lock cannot be had, until the server ends the transaction that holds it
            try:
                await store.record(request("2"), RATER, 0, Reply("second"), run="a")
                break
            except StoreError as error:
                refusals.append(error)
        assert await find(store, request("2")) == Reply("second")
        assert all("locked by another process" in str(error) for error in refusals)
        released.set()
        with pytest.raises(GuerdonError):
            await thread
        assert await find(store, request("1")) == Reply("kept")


async def test_one_write_that_fails_does_not_take_others_with_it(store: Store) -> None:
    huge = Failure("timeout", final=False, status=2**40)  # more than the column holds
    outcomes: list[Reply | Failure] = [Reply("a"), huge, Reply("b")]
    written = await asyncio.gather(
        *(store.record(request(str(n)), RATER, 0, outcome, run="a") for n, outcome in enumerate(outcomes)), return_exceptions=True
    )
    assert [type(outcome) for outcome in written] == [Reply, StoreError, Reply]
    assert "SQLSTATE" in str(written[1]) or "PostgreSQL cannot use it" in str(written[1])
    assert store.costs("a").requests == 2


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ("53100", WriteFailed, r"disk of the database server is full.*Free some space"),
        ("25006", StoreError, "read-only"),
        ("42501", StoreError, "may not use the tables"),
        ("55P03", StoreError, "locked by another process"),
        ("57P01", StoreError, "connection to the database was lost"),
        ("08006", StoreError, "connection to the database was lost"),
        ("XX001", StoreError, r"PostgreSQL cannot use it \(SQLSTATE XX001\)"),
    ],
)
async def test_codes_of_the_server_become_words(store: Store, state: str, kind: type[GuerdonError], words: str, at_once: None) -> None:
    def fail(connection: sa.Connection, _now: float) -> None:
        connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'a text with {SECRET}' USING ERRCODE = '{state}'; END $$")

    with pytest.raises(kind, match=words) as caught:
        store.backend.write(fail)
    assert SECRET not in _all_words(caught.value)


async def test_a_table_that_is_gone_is_named(postgresql_server: Server, store: Store) -> None:
    postgresql_server.execute("DROP TABLE guerdon.attempt", "store")
    with pytest.raises(StoreError, match=r"tables of the store are missing.*backup"):
        await store.record(request(), RATER, 0, Reply("x"), run="a")
    with pytest.raises(StoreError, match="tables of the store are missing"):
        store.costs("a")


async def test_time_is_that_of_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await store.claim(key(request()), "me", 60) is Claim.GRANTED
    monkeypatch.setattr(time, "time", lambda: 1e12)  # the clock of this machine is far ahead: the claim has not lapsed for all that
    assert await store.claim(key(request()), "you", 60) is Claim.HELD
