"""The reply store: every question that was ever sent, every attempt, every answer, kept so that a kill at any moment loses none of it.

Money is spent on replies, so a reply is on disk before the next request of its conversation is sent, and an answer that is there is never
asked for again. What is kept:

    request      what was asked: the rendered texts, picture ids and kind of answer (pictures themselves are not kept)
    rater        who was asked: provider, model, base URL, effective settings; never a key
    run          what its attempts were charged with and its claims reserve
    attempt      append-only: when, how long, tokens, dollars, outcome or cause; never an error's text
    answer       the reply's bytes under (question, rater, repeat); the first writer wins
    claim        which process is asking what just now, what it reserves, and until when it may be believed to be alive
    batch        what was handed to a vendor's queue, or was about to be; its requests are in batch_item

The store is one SQLite file of this machine (WAL, synchronous=FULL), or a PostgreSQL database that several machines share. Several
processes may write it: a request is claimed before it is sent, and a claim that is no longer renewed lapses. A claim may reserve money
under a ceiling; both are checked in one transaction, so that a ceiling holds over threads, processes and machines. All writes of a process
go through one thread that commits everything queued since its last commit at once, so that the cost of a full sync is shared by a wave of
replies; reads use connections of their own and are never blocked by a write. Times are seconds since 1970, durations seconds, prices US
dollars.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from guerdon.asking import _ledger as ledger
from guerdon.asking import _tables as tables
from guerdon.asking._backends import Backend, SqliteBackend
from guerdon.asking._ledger import ACCOUNT_CAUSES, Claim, Key
from guerdon.asking._owners import Silence
from guerdon.asking._postgresql import PostgresqlBackend
from guerdon.asking._waves import Waves
from guerdon.errors import StoreError
from guerdon.records import CAUSES, Cause, Failure, Rater, Reply, Request, canonical_json
from guerdon.runs import user_data_folder

__all__ = ["ACCOUNT_CAUSES", "STORE_VARIABLE", "BatchRow", "Claim", "Costs", "Key", "RunInfo", "Store", "default_path"]

STORE_VARIABLE = "GUERDON_STORE"
"""Environment variable that names another store than the user's own."""

_GATHERING = 0.002  # seconds for which a write waits for others to share its commit
_NANO = 1e-9
_OPEN_STATES = ("intended", "submitted")

_NO_PRICE = tables.attempt.c.dollars.is_(None) & (tables.attempt.c.cause.is_(None) | tables.attempt.c.cause.not_in(ledger.UNBILLED))
_SUMMED = ("input_tokens", "output_tokens", "thinking_tokens", "cached_tokens", "dollars", "seconds")
_COSTS_OF_ALL = sa.select(
    tables.attempt.c.run,
    tables.attempt.c.outcome,
    tables.attempt.c.cause,
    sa.func.count().label("attempts"),
    sa.func.sum(sa.case((_NO_PRICE, 1), else_=0)).label("dollars_unknown"),
    *(sa.func.coalesce(sa.func.sum(tables.attempt.c[name]), 0).label(name) for name in _SUMMED),
).group_by(tables.attempt.c.run, tables.attempt.c.outcome, tables.attempt.c.cause)
_COSTS = _COSTS_OF_ALL.where(tables.attempt.c.run == sa.bindparam("of_run"))
_RUNS = sa.select(tables.run).order_by(tables.run.c.first_seen, tables.run.c.run)
_RUN = sa.select(tables.run).where(tables.run.c.run == sa.bindparam("of_run"))
_SUBMITTED = (
    sa.update(tables.batch)
    .where((tables.batch.c.batch == sa.bindparam("of_batch")) & (tables.batch.c.state == sa.literal_column("'intended'")))
    .values(state=sa.literal_column("'submitted'"), vendor_id=sa.bindparam("vendor"))
)
_ENDED = sa.update(tables.batch).where(tables.batch.c.batch == sa.bindparam("of_batch")).values(state=sa.bindparam("to_state"))
_STATE = sa.select(tables.batch.c.state).where(tables.batch.c.batch == sa.bindparam("of_batch"))
_OPEN_BATCHES = sa.select(tables.batch).where(tables.batch.c.state.in_(_OPEN_STATES)).order_by(tables.batch.c.created, tables.batch.c.batch)
_ITEMS = sa.select(tables.batch_item).where(tables.batch_item.c.batch == sa.bindparam("of_batch")).order_by(tables.batch_item.c.item)

_ASKED = (
    sa.select(tables.batch_item.c.item, tables.batch_item.c.repeat, tables.request.c.record)
    .join(tables.request, tables.request.c.question == tables.batch_item.c.question)
    .where(tables.batch_item.c.batch == sa.bindparam("of_batch"))
)


def default_path() -> Path | str:
    """The user's own store: `replies.sqlite` in the data directory of the user, or `$GUERDON_STORE`; the URL of a database stays text."""
    named = os.environ.get(STORE_VARIABLE)
    if named and "://" in named:
        return named
    return Path(named) if named else user_data_folder() / "replies.sqlite"


@dataclass(frozen=True)
class Costs:
    """What the attempts of one run consumed."""

    requests: int
    """Attempts sent, failed ones included; without `lost`."""
    answered: int
    input_tokens: int
    output_tokens: int
    """Includes thinking tokens."""
    dollars: float
    """Sum of all known prices."""
    dollars_unknown: int
    """Attempts (`lost` ones included) that may have cost something, but whose price is not known."""
    seconds: float
    """Sum of the attempts' durations; they overlap."""
    failures: Mapping[Cause, int] = field(default_factory=dict)
    """Failed attempts by cause."""
    thinking_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input tokens that vendors read from their caches."""
    lost: int = 0
    """Requests that may have been sent by a process that ended before it could say."""
    charged: float = 0.0
    """Dollars that attempts count for under a ceiling: known prices, and where the price is unknown the most that it can have been."""
    reserved: float = 0.0
    """Dollars held by claims on requests that are being sent, or whose process has ended without a word."""


@dataclass(frozen=True)
class RunInfo:
    """A run that the store knows."""

    id: str
    name: str
    """Readable name, such as the path of the run folder; empty if nobody gave one."""
    first: float
    """When the store first heard of it, seconds since 1970."""
    last: float
    """When it last wrote something."""
    costs: Costs


@dataclass(frozen=True)
class BatchRow:
    """A batch that is not known to have ended."""

    id: str
    rater: str
    """`Rater.key`."""
    run: str
    state: str
    """`intended`: whether it arrived at the vendor is not known; `submitted`: it did."""
    vendor_id: str | None
    """The vendor's name of it; None while it is only intended."""
    created: float
    """When it was intended, seconds since 1970."""
    size: int
    items: Mapping[str, Key]
    """Its requests by the ids under which they were handed over."""


class Store:
    """An open reply store. Build with `Store.open`; close it, or use it as a context manager."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writer = Waves(self._write_wave, self.name, gathering=_GATHERING)
        self._finder = Waves(self._find_wave, self.name) if backend.remote else None
        self._known_raters: set[str] = set()
        self._silence = Silence()

    @classmethod
    def open(cls, path: Path | str | None = None) -> Store:
        """Opens the store at `path` (`default_path()` if None), making or migrating it if need be.

        Args:
            path: a file, or the URL of a PostgreSQL database as text: "postgresql://user:password@host/database". The tables lie in a
                schema called "guerdon" there. A password may also come from $PGPASSWORD or ~/.pgpass.

        Raises:
            StoreError: if the folder cannot be written, lies on a network file system, or the file is damaged, newer, or something else;
                if the database cannot be reached, or may not be written.
            MissingExtra: if the database's driver is not installed.
        """
        place = default_path() if path is None else path
        if isinstance(place, str) and "://" in place:
            return cls(PostgresqlBackend(place))
        if str(place).startswith(("postgresql:/", "postgres:/", "postgresql+psycopg:/")):
            # A path drops a slash, and a folder of this name would show the password.
            raise StoreError("the URL of a database was taken for a path", cure="Pass it as text: postgresql://user@host/database.")
        return cls(SqliteBackend(Path(place)))

    @property
    def name(self) -> str:
        """Where the store is; may be printed, because a password is left out."""
        return self._backend.name

    @property
    def path(self) -> Path | None:
        """The store's file; None if it is no file."""
        return self._backend.path if isinstance(self._backend, SqliteBackend) else None

    def __repr__(self) -> str:
        return f"Store({self.name!r})"

    def close(self) -> None:
        """Writes what is queued and closes the store. Closing twice does nothing, and so does closing it in a fork."""
        if self._writer.forked:
            return
        self._writer.close()
        if self._finder is not None:
            self._finder.close()
        self._backend.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- questions ---

    async def find(self, question: str, rater: str, repeat: int, *, retry_failed: bool = False) -> Reply | Failure | None:
        """The answer stored under a key, or the failure that asking again would only repeat; None if it is still to be asked.

        Args:
            question: `Request.question`.
            rater: `Rater.key`.
            repeat: which of several independent answers.
            retry_failed: True to get None, not a Failure, for a question that failed for good.

        Raises:
            StoreError: if the store cannot be read.
        """
        key = Key(question, rater, repeat)
        if self._finder is None:
            return self.backend.read(lambda connection: ledger.find(connection, key, retry_failed))
        found: Reply | Failure | None = await self._finder.submit((key, retry_failed))
        return found

    async def claim(
        self,
        key: Key,
        owner: str,
        lease: float,
        *,
        run: str = "",
        retry_failed: bool = False,
        dollars: float | None = None,
        ceiling: float | None = None,
    ) -> Reply | Failure | Claim:
        """Claims the right to send a request for `lease` seconds, reserving `dollars`.

        A claim that has lapsed is taken over; a while later if its process is certainly still there, at once if it is gone. What became of
        its request is unknown: an attempt with the outcome "lost" is written under the run of the lapsed claim, charged with what it had
        reserved.

        Args:
            key: what the answer will be stored under.
            owner: who sends the request; claims are renewed and given up by owner.
            lease: seconds until the claim lapses unless it is renewed.
            run: whose money is reserved.
            retry_failed: True to ask again what failed for good.
            dollars: the most that the request can cost; None if nobody knows.
            ceiling: dollars that the run may spend; None for no limit. Granted only if what the run was charged, what it has reserved and
                `dollars` stay within it.

        Returns:
            What became of the claim; or what somebody else has stored meanwhile.

        Raises:
            ValueError: for a ceiling without `dollars`, or amounts that are negative or not finite.
            StoreError, WriteFailed: if it cannot be written down; nothing is claimed then.
        """
        if ceiling is not None and dollars is None:
            raise ValueError("a ceiling can be kept only if it is known what the request may cost: give dollars too")
        reserved = None if dollars is None else ledger.nano_dollars(dollars)
        limit = None if ceiling is None else ledger.nano_ceiling(ceiling)
        taken: Reply | Failure | Claim = await self._writer.submit(ledger.TakeClaim(key, owner, lease, run, retry_failed, reserved, limit))
        return taken

    async def renew(self, owner: str, lease: float) -> None:
        """Extends every claim of `owner` to `lease` seconds from now."""
        await self._writer.submit(ledger.Renew(owner, lease))

    async def holds(self, owner: str) -> tuple[int, float]:
        """How many claims `owner` has, and in how many seconds the first of them lapses (negative: so long ago; 0 if there is none)."""
        held: tuple[int, float] = await self._writer.submit(ledger.Hold(owner))
        return held

    async def release(self, owner: str, key: Key | None = None) -> None:
        """Gives up claims of `owner` (all, or the one on `key`) whose requests were certainly not sent: frees what they reserved."""
        await self._writer.submit(ledger.EndClaims(owner, key, sent=False))

    async def abandon(self, owner: str, key: Key | None = None) -> None:
        """Gives up claims of `owner` (all, or the one on `key`) whose requests may have been sent: each becomes an attempt with the outcome
        "lost", charged with what it had reserved."""
        await self._writer.submit(ledger.EndClaims(owner, key, sent=True))

    async def end_dead_claims(self, run: str) -> None:
        """Does what `abandon` does for all claims of a run that have lapsed, or were held by a process of this machine that is gone."""
        await self._writer.submit(ledger.EndDeadClaims(run))

    async def record(
        self,
        request: Request,
        rater: Rater,
        repeat: int,
        outcome: Reply | Failure,
        *,
        run: str,
        started: float | None = None,
        owner: str | None = None,
        only_held: bool = False,
    ) -> Reply | Failure:
        """Writes down an attempt and, if there is one, its answer; ends the claim. Returns when all of it is on disk.

        The attempt is charged with its price. If that is unknown: with nothing for a failure that no vendor bills, else with what the claim
        had reserved. What was charged when the claim of `owner` was lost is taken off.

        Args:
            request: what was asked.
            rater: who was asked.
            repeat: which of several independent answers.
            outcome: what came back.
            run: name under which `costs` sums up.
            started: when the request was sent, seconds since 1970; by default, `outcome.seconds` ago.
            owner: whose claim it ends, so that a claim that has lapsed and was taken over stays with its new owner; None for anybody's.
            only_held: write nothing if `owner` holds no such claim any more, unless it is the first answer: for outcomes that may be
                fetched twice.

        Returns:
            The outcome that counts: the answer of another process if that was stored first.

        Raises:
            WriteFailed: if the disk is full; nothing of this attempt is stored then.
            StoreError: if it cannot be written for another reason.
        """
        key = Key(request.question, rater.key, repeat)
        began = time.time() - outcome.seconds if started is None else started
        identity = None if key.rater in self._known_raters else _identity(rater)
        record = ledger.Record(key, outcome, run, began, _record_of(request), identity, owner, only_held)
        counted: Reply | Failure = await self._writer.submit(record)
        self._known_raters.add(key.rater)
        return counted

    # --- runs and money ---

    def begin_run(self, run: str, name: str = "") -> None:
        """Writes down that a run exists, and its readable name if one is given. Doing so twice changes nothing but the name.

        Raises:
            StoreError, WriteFailed: if it cannot be written.
        """
        self._writer.wait_for(ledger.BeginRun(run, ledger.to_text(name)))

    def costs(self, run: str) -> Costs:
        """What the attempts recorded under `run` consumed.

        Raises:
            StoreError: if the store cannot be read.
        """
        of_run = {"of_run": run}

        def read(connection: sa.Connection) -> Costs:
            return _costs(connection.execute(_COSTS, of_run).all(), connection.execute(_RUN, of_run).first())

        return self.backend.read(read)

    def spent(self, run: str) -> float:
        """Dollars that count against a ceiling of `run`: what its attempts were charged with and what its claims reserve.

        Raises:
            StoreError: if the store cannot be read.
        """
        row = self.backend.read(lambda connection: connection.execute(_RUN, {"of_run": run}).first())
        return 0.0 if row is None else (row.charged + row.reserved) * _NANO

    async def balance(self, run: str) -> tuple[float, float]:
        """Dollars that the attempts of `run` were charged with, and dollars that its claims reserve.

        Raises:
            StoreError: if the store cannot be read.
        """

        def read() -> tuple[float, float]:
            row = self.backend.read(lambda connection: connection.execute(_RUN, {"of_run": run}).first())
            return (0.0, 0.0) if row is None else (row.charged * _NANO, row.reserved * _NANO)

        return await asyncio.to_thread(read) if self._backend.remote else read()

    def runs(self) -> list[RunInfo]:
        """Every run that the store knows, in the order in which they began.

        Raises:
            StoreError: if the store cannot be read.
        """

        def read(connection: sa.Connection) -> list[RunInfo]:
            attempts: dict[str, list[Any]] = {}
            for row in connection.execute(_COSTS_OF_ALL):
                attempts.setdefault(row.run, []).append(row)
            rows = connection.execute(_RUNS).all()
            return [RunInfo(row.run, row.name, row.first_seen, row.last_seen, _costs(attempts.get(row.run, ()), row)) for row in rows]

        return self.backend.read(read)

    # --- batches ---

    def intend_batch(
        self, batch: str, rater: Rater, run: str, items: Mapping[str, tuple[Request, int]], *, created: float | None = None
    ) -> None:
        """Writes down, before a batch is handed to a vendor, that this is about to happen. May be done again, with more requests, until the
        batch is submitted.

        Args:
            batch: its name, ours and unique.
            rater: who is asked.
            run: for whom.
            items: its requests, id -> (request, repeat).
            created: when, seconds since 1970; now by default.

        Raises:
            StoreError, WriteFailed: if it cannot be written.
        """
        when = time.time() if created is None else created
        rows = [{"batch": batch, "item": item, "question": asked.question, "repeat": repeat} for item, (asked, repeat) in items.items()]
        asked_of = [
            {"question": question, "record": record, "first_asked": when}
            for question, record in {asked.question: _record_of(asked) for asked, _repeat in items.values()}.items()
        ]
        row = {"batch": batch, "rater": rater.key, "run": run, "created": when, "size": len(rows), "state": "intended", "vendor_id": None}
        to = self._backend.statements
        identity = {"rater": rater.key, "identity": _identity(rater)}
        written = ((to.insert_request, asked_of), (to.insert_rater, [identity]), (to.set_batch, [row]), (to.insert_batch_item, rows))
        self._writer.wait_for(ledger.Execute(written))

    def batch_submitted(self, batch: str, vendor_id: str) -> None:
        """Writes down under which name the vendor took a batch. A batch that is not merely intended stays as it is."""
        self._writer.wait_for(ledger.Execute([(_SUBMITTED, [{"of_batch": batch, "vendor": vendor_id}])]))

    def batch_ended(self, batch: str, state: str) -> None:
        """Writes down that nothing more is to be expected of a batch; `state` says how it ended, in a word.

        Raises:
            ValueError: for the states "intended" and "submitted".
        """
        if state in _OPEN_STATES:
            raise ValueError(f"a batch that is {state} has not ended")
        self._writer.wait_for(ledger.Execute([(_ENDED, [{"of_batch": batch, "to_state": state}])]))

    def batch_state(self, batch: str) -> str | None:
        """How a batch stands: "intended", "submitted", or how it ended; None if there is none of that name.

        Raises:
            StoreError: if the store cannot be read.
        """
        state: str | None = self.backend.read(lambda connection: connection.execute(_STATE, {"of_batch": batch}).scalar_one_or_none())
        return state

    def open_batches(self, *, run: str | None = None, rater: str | None = None) -> list[BatchRow]:
        """Batches that are not known to have ended, oldest first: all, those of a run, or those of a rater (`Rater.key`).

        Raises:
            StoreError: if the store cannot be read.
        """

        def read(connection: sa.Connection) -> list[BatchRow]:
            rows = connection.execute(_OPEN_BATCHES).all()
            wanted = [row for row in rows if run in (None, row.run) and rater in (None, row.rater)]
            return [_batch_row(row, connection.execute(_ITEMS, {"of_batch": row.batch}).all()) for row in wanted]

        return self.backend.read(read)

    def batch_requests(self, batch: str) -> dict[str, tuple[dict[str, Any], int]]:
        """What was asked in a batch: id -> (`Request.to_record`, repeat).

        Raises:
            StoreError: if the store cannot be read.
        """
        rows = self.backend.read(lambda connection: connection.execute(_ASKED, {"of_batch": batch}).all())
        return {row.item: (json.loads(ledger.from_bytes(row.record)), row.repeat) for row in rows}

    # --- access ---

    @property
    def backend(self) -> Backend:
        """The database itself, for what looks at the whole store (`guerdon.asking.archive`). Raises StoreError in a fork."""
        self._writer.refuse_if_forked()
        return self._backend

    def _write_wave(self, operations: Sequence[ledger.Operation]) -> list[Any]:
        began = time.monotonic()

        def work(connection: sa.Connection, now: float) -> list[Any]:
            overdue = self._silence.excused(waited=time.monotonic() - began)
            return ledger.carry_out(connection, self._backend.statements, operations, now, overdue=overdue)

        return self._backend.write(work)

    def _find_wave(self, questions: Sequence[tuple[Key, bool]]) -> list[Any]:
        return self.backend.read(lambda connection: ledger.find_together(connection, self._backend.statements, questions))


def _record_of(request: Request) -> bytes:
    return ledger.to_bytes(canonical_json(request.to_record()))


def _identity(rater: Rater) -> bytes:
    identity = {"provider": rater.provider, "model": rater.model, "base_url": rater.base_url, "settings": dict(rater.settings)}
    return ledger.to_bytes(canonical_json({**identity, "name": rater.name}))


def _costs(attempts: Sequence[Any], run: Any | None) -> Costs:
    sent = [row for row in attempts if row.outcome != "lost"]
    failures: dict[str, int] = {}
    for row in sent:
        if row.cause is not None:
            failures[row.cause] = failures.get(row.cause, 0) + row.attempts
    sums = {name: sum(getattr(row, name) for row in sent) for name in _SUMMED}
    return Costs(
        requests=sum(row.attempts for row in sent),
        answered=sum(row.attempts for row in sent if row.outcome == "reply"),
        input_tokens=int(sums["input_tokens"]),
        output_tokens=int(sums["output_tokens"]),
        dollars=float(sums["dollars"]),
        dollars_unknown=sum(int(row.dollars_unknown) for row in attempts),
        seconds=float(sums["seconds"]),
        failures={cause: failures[cause] for cause in CAUSES if cause in failures},
        thinking_tokens=int(sums["thinking_tokens"]),
        cached_tokens=int(sums["cached_tokens"]),
        lost=sum(row.attempts for row in attempts if row.outcome == "lost"),
        charged=0.0 if run is None else run.charged * _NANO,
        reserved=0.0 if run is None else run.reserved * _NANO,
    )


def _batch_row(row: Any, items: Sequence[Any]) -> BatchRow:
    keys = {item.item: Key(item.question, row.rater, item.repeat) for item in items}
    return BatchRow(row.batch, row.rater, row.run, row.state, row.vendor_id, row.created, row.size, keys)
