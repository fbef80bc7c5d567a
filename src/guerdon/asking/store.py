"""The reply store: every question that was ever sent, every attempt, every answer, in one SQLite file that survives a kill at any moment.

Money is spent on replies, so a reply is written to disk (WAL, synchronous=FULL) before the next request of its conversation is sent, and
an answer that is there is never asked for again. What is kept:

    request   what was asked: the rendered texts, picture ids and kind of answer (pictures themselves are not kept)
    rater     who was asked: provider, model, base URL, effective settings; never a key
    attempt   append-only: when, how long, tokens, dollars, outcome or cause; never an error's text
    answer    the reply's bytes under (question, rater, repeat); the first writer wins
    claim     which process is asking what just now, and until when it may be believed to be alive

Several processes may share a store: a request is claimed before it is sent, and a claim that is no longer renewed lapses. All writes go
through one thread that commits everything queued since its last commit at once, so that the cost of a full sync is shared by a wave of
replies; reads use connections of their own and are never blocked by a write. Times are seconds since 1970, durations seconds, prices US
dollars.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from guerdon.errors import StoreError, WriteFailed
from guerdon.records import CAUSES, Cause, Failure, Rater, Reply, Request, Usage, canonical_json
from guerdon.runs import user_data_folder

STORE_VARIABLE = "GUERDON_STORE"
"""Environment variable that names another store file than the user's own."""

ACCOUNT_CAUSES: frozenset[Cause] = frozenset({"authentication", "quota"})
"""Causes that lie with the account, not with the question: never remembered as the final fate of a question."""

_UNBILLED: frozenset[Cause] = frozenset(
    {"rate_limit", "quota", "overload", "authentication", "bad_request", "unsupported"}
)  # no vendor charges for these; whether a timeout was charged is unknown

_APPLICATION_ID = 0x67756572  # "guer": marks the file as ours
_BUSY_MILLISECONDS = 30_000
_LARGEST_WAVE = 512
_GATHERING = 0.002  # seconds for which a write waits for others to share its commit
_NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs"),
}

_metadata = sa.MetaData()
_request = sa.Table(
    "request",
    _metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("first_asked", sa.Float, nullable=False),
)
_rater = sa.Table("rater", _metadata, sa.Column("rater", sa.Text, primary_key=True), sa.Column("identity", sa.LargeBinary, nullable=False))
_attempt = sa.Table(
    "attempt",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("status", sa.Integer),
    sa.Column("input_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    sa.Column("dollars", sa.Float),
)
_answer = sa.Table(
    "answer",
    _metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, primary_key=True),
    sa.Column("repeat", sa.Integer, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("input_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    sa.Column("dollars", sa.Float),
)
_claim = sa.Table(
    "claim",
    _metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, primary_key=True),
    sa.Column("repeat", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("expiry", sa.Float, nullable=False),
    sa.Column("reserved_dollars", sa.Float),
)

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE request (
        question TEXT NOT NULL PRIMARY KEY,
        record BLOB NOT NULL,
        first_asked FLOAT NOT NULL
    );
    CREATE TABLE rater (
        rater TEXT NOT NULL PRIMARY KEY,
        identity BLOB NOT NULL
    );
    CREATE TABLE attempt (
        id INTEGER NOT NULL PRIMARY KEY,
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        run TEXT NOT NULL, started FLOAT NOT NULL, seconds FLOAT NOT NULL,
        outcome TEXT NOT NULL, cause TEXT, code TEXT, status INTEGER,
        input_tokens INTEGER, output_tokens INTEGER, dollars FLOAT
    );
    CREATE INDEX attempt_final ON attempt (question, rater, repeat) WHERE outcome = 'final';
    CREATE INDEX attempt_run ON attempt (run);
    CREATE TABLE answer (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        body BLOB NOT NULL, model TEXT NOT NULL, seconds FLOAT NOT NULL,
        input_tokens INTEGER, output_tokens INTEGER, dollars FLOAT,
        PRIMARY KEY (question, rater, repeat)
    );
    CREATE TABLE claim (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        owner TEXT NOT NULL, token TEXT NOT NULL, expiry FLOAT NOT NULL, reserved_dollars FLOAT,
        PRIMARY KEY (question, rater, repeat)
    );
    """,
)
"""Step k takes a store from version k to version k+1. A published step never changes; there is no way back."""

_KEY_COLUMNS = ("question", "rater", "repeat")


def _of_key(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == sa.bindparam(name) for name in _KEY_COLUMNS))


_USAGE = ("seconds", "input_tokens", "output_tokens", "dollars")

_OUTCOME = ("body", "model", "cause", "code", "status", *_USAGE)


def _outcome_columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [table.c[name] if name in table.c else sa.null().label(name) for name in _OUTCOME]


# Statements are built once: building one costs several times what running it does.
_IS_FINAL = _of_key(_attempt) & (_attempt.c.outcome == sa.literal_column("'final'"))
_FIND_ANSWER = sa.select(*_outcome_columns(_answer)).where(_of_key(_answer))
_FIND = sa.union_all(_FIND_ANSWER, sa.select(*_outcome_columns(_attempt)).where(_IS_FINAL))
_INSERT_REQUEST = insert(_request).on_conflict_do_nothing()
_INSERT_RATER = insert(_rater).on_conflict_do_nothing()
_INSERT_ATTEMPT = sa.insert(_attempt)
_INSERT_ANSWER = insert(_answer).on_conflict_do_nothing()
_CLAIM_COLUMNS = (*_KEY_COLUMNS, "owner", "token", "expiry", "reserved_dollars")
_CLAIM_INTO = insert(_claim).from_select(
    _CLAIM_COLUMNS,
    sa.select(*(sa.bindparam(name, type_=_claim.c[name].type) for name in _CLAIM_COLUMNS)).where(
        ~sa.exists().where(_of_key(_answer)),
        sa.bindparam("retry_failed", type_=sa.Boolean) | ~sa.exists().where(_IS_FINAL),
    ),
)
_CLAIM = _CLAIM_INTO.on_conflict_do_update(
    index_elements=_KEY_COLUMNS,
    set_={name: _CLAIM_INTO.excluded[name] for name in ("owner", "token", "expiry", "reserved_dollars")},
    where=_claim.c.expiry < sa.bindparam("now"),
)
_WHOSE_CLAIM = sa.select(_claim.c.token).where(_of_key(_claim))
_RENEW = sa.update(_claim).where(_claim.c.owner == sa.bindparam("whose")).values(expiry=sa.bindparam("until"))
_RELEASE = sa.delete(_claim).where(_claim.c.owner == sa.bindparam("whose"))
_END_CLAIM = sa.delete(_claim).where(_of_key(_claim))
_PRICE_UNKNOWN = _attempt.c.dollars.is_(None) & (_attempt.c.cause.is_(None) | _attempt.c.cause.not_in(_UNBILLED))
_COSTS = (
    sa.select(
        _attempt.c.cause,
        sa.func.count(),
        sa.func.total(_attempt.c.input_tokens),
        sa.func.total(_attempt.c.output_tokens),
        sa.func.total(_attempt.c.dollars),
        sa.func.total(_PRICE_UNKNOWN),
        sa.func.total(_attempt.c.seconds),
    )
    .where(_attempt.c.run == sa.bindparam("run"))
    .group_by(_attempt.c.cause)
)

Result = TypeVar("Result")


def default_path() -> Path:
    """The user's own store: `$GUERDON_STORE`, or `replies.sqlite` in the data directory of the user."""
    named = os.environ.get(STORE_VARIABLE)
    return Path(named) if named else user_data_folder() / "replies.sqlite"


@dataclass(frozen=True)
class Key:
    """What an answer is stored under."""

    question: str
    rater: str
    repeat: int

    def columns(self) -> dict[str, Any]:
        """The key as column name -> value."""
        return {"question": self.question, "rater": self.rater, "repeat": self.repeat}


@dataclass(frozen=True)
class Costs:
    """What the attempts of one run consumed."""

    requests: int
    """Attempts sent, failed ones included."""
    answered: int
    input_tokens: int
    output_tokens: int
    dollars: float
    """Sum of all known prices."""
    dollars_unknown: int
    """Attempts that may have cost something, but whose price is not known."""
    seconds: float
    """Sum of the attempts' durations; they overlap."""
    failures: Mapping[Cause, int] = field(default_factory=dict)
    """Failed attempts by cause."""


class Store:
    """An open reply store. Build with `Store.open`; close it, or use it as a context manager."""

    def __init__(self, path: Path, engine: sa.Engine) -> None:
        self.path = path
        self._engine = engine
        self._reader = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._reading = threading.Lock()
        self._writer = _Writer(engine, path)
        self._known_raters: set[str] = set()

    @classmethod
    def open(cls, path: Path | str | None = None) -> Store:
        """Opens the store at `path` (`default_path()` if None), making or migrating it if need be.

        Raises:
            StoreError: if the folder cannot be written, lies on a network file system, or the file is damaged, newer, or something else.
        """
        path = Path(path) if path is not None else default_path()
        with _explained(path):
            _prepare_folder(path)
            engine = _engine(path)
            try:
                with engine.begin() as connection:
                    _migrate(connection, path)
            except BaseException:
                engine.dispose()
                raise
        return cls(path, engine)

    def close(self) -> None:
        """Writes what is queued and closes the file. Closing twice does nothing."""
        self._writer.close()
        with self._reading:
            self._reader.close()
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def find(self, question: str, rater: str, repeat: int, *, retry_failed: bool = False) -> Reply | Failure | None:
        """The answer stored under a key, or the failure that asking again would only repeat; None if it is still to be asked.

        Args:
            question: `Request.question`.
            rater: `Rater.key`.
            repeat: which of several independent answers.
            retry_failed: True to get None, not a Failure, for a question that failed for good.

        Raises:
            StoreError: if the file cannot be read.
        """
        with self._connected() as connection:
            return _find(connection, Key(question, rater, repeat), retry_failed)

    async def claim(
        self,
        key: Key,
        owner: str,
        lease: float,
        *,
        retry_failed: bool = False,
        dollars: float | None = None,
    ) -> Reply | Failure | bool:
        """Claims the right to send a request for `lease` seconds, reserving `dollars`.

        Returns:
            True if the request may be sent; False if somebody else is sending it; or what somebody else has stored meanwhile.
        """

        now, token = time.time(), uuid.uuid4().hex
        columns = {"owner": owner, "token": token, "expiry": now + lease, "reserved_dollars": dollars}
        row = {**key.columns(), **columns, "now": now, "retry_failed": retry_failed}

        def denied_or_not(connection: sa.Connection) -> Reply | Failure | bool:
            found = _find(connection, key, retry_failed)
            return found or connection.execute(_WHOSE_CLAIM, key.columns()).scalar_one_or_none() == token

        write = _Write([(_CLAIM, row)], decisive=_CLAIM, result=True, otherwise=denied_or_not)
        granted: Reply | Failure | bool = await self._writer.submit(write)
        return granted

    async def renew(self, owner: str, lease: float) -> None:
        """Extends every claim of `owner` to `lease` seconds from now."""
        await self._writer.submit(_Write([(_RENEW, {"whose": owner, "until": time.time() + lease})]))

    async def release(self, owner: str) -> None:
        """Gives up every claim of `owner`."""
        await self._writer.submit(_Write([(_RELEASE, {"whose": owner})]))

    async def record(
        self, request: Request, rater: Rater, repeat: int, outcome: Reply | Failure, *, run: str, started: float | None = None
    ) -> Reply | Failure:
        """Writes down an attempt and, if there is one, its answer; ends the claim. Returns when all of it is on disk.

        Args:
            request: what was asked.
            rater: who was asked.
            repeat: which of several independent answers.
            outcome: what came back.
            run: name under which `costs` sums up.
            started: when the request was sent, seconds since 1970; by default, `outcome.seconds` ago.

        Returns:
            The outcome that counts: the answer of another process if that was stored first.

        Raises:
            WriteFailed: if the disk is full; nothing of this attempt is stored then.
            StoreError: if the file cannot be written for another reason.
        """
        key = Key(request.question, rater.key, repeat)
        began = time.time() - outcome.seconds if started is None else started
        columns = key.columns()
        rows: list[_Row] = [
            (_INSERT_REQUEST, {"question": key.question, "record": _to_bytes(canonical_json(request.to_record())), "first_asked": began}),
            (_INSERT_ATTEMPT, {**columns, "run": run, "started": began, **_attempt_columns(outcome)}),
            (_END_CLAIM, columns),
        ]
        if key.rater not in self._known_raters:
            rows.append((_INSERT_RATER, {"rater": key.rater, "identity": _identity(rater)}))
        if isinstance(outcome, Failure):
            write = _Write(rows, result=outcome)
        else:
            rows.append((_INSERT_ANSWER, {**columns, **_answer_columns(outcome)}))
            write = _Write(rows, decisive=_INSERT_ANSWER, result=outcome, otherwise=lambda connection: _find(connection, key, True))
        counted: Reply | Failure = await self._writer.submit(write)
        self._known_raters.add(key.rater)
        return counted

    def costs(self, run: str) -> Costs:
        """What the attempts recorded under `run` consumed.

        Raises:
            StoreError: if the file cannot be read.
        """
        with self._connected() as connection:
            by_cause = [tuple(row) for row in connection.execute(_COSTS, {"run": run})]
        counts = {cause: count for cause, count, *_ in by_cause}
        input_tokens, output_tokens, dollars, unknown, seconds = (sum(row[column] for row in by_cause) for column in range(2, 7))
        return Costs(
            requests=sum(counts.values()),
            answered=counts.get(None, 0),
            input_tokens=int(input_tokens),
            output_tokens=int(output_tokens),
            dollars=float(dollars),
            dollars_unknown=int(unknown),
            seconds=float(seconds),
            failures={cause: counts[cause] for cause in CAUSES if cause in counts},
        )

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        with self._reading, _explained(self.path):
            if self._reader.closed:
                raise StoreError("the store is closed", where=str(self.path))
            yield self._reader


# --- the writer thread --------------------------------------------------------------------------------------------------------------


_Row = tuple[sa.Executable, dict[str, Any]]


@dataclass(frozen=True)
class _Write:
    """Rows to be written in one transaction, and what to tell the caller."""

    rows: Sequence[_Row]
    """Statements with their parameters. The same statement of several writes is carried out at once."""
    decisive: sa.Executable | None = None
    """The statement that may find its row taken."""
    result: Any = None
    """What to tell if it did not, or if none is decisive."""
    otherwise: Callable[[sa.Connection], Any] | None = None
    """Finds out what to tell if some row of that statement was taken, perhaps this one."""


@dataclass
class _Job:
    """A write that waits; then its result, or the error that it met."""

    write: _Write
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Tells the caller. One that was cancelled no longer waits; its write counts all the same."""
        if self.done.done():
            return
        if self.error is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(self.error)


class _Writer:
    """One thread that carries out writes in the order they come, all that wait in one transaction."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._engine, self._path = engine, path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="guerdon store", daemon=True)
        self._thread.start()

    def submit(self, write: _Write) -> asyncio.Future[Any]:
        """Queues a write. The future ends when its transaction is on disk, or with a StoreError."""
        loop = asyncio.get_running_loop()
        job = _Job(write, loop, loop.create_future())
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed", where=str(self._path))
            self._jobs.put(job)
        return job.done

    def close(self) -> None:
        """Carries out what is queued, then ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while wave := self._next_wave():
            if not self._carry_out(wave) and len(wave) > 1:
                # One write cannot be carried out and took the others down with it: let each stand alone.
                for job in wave:
                    self._carry_out([job])
            _settle(wave)

    def _next_wave(self) -> list[_Job]:
        """The jobs that wait, at least one; none when the store was closed and nothing is left."""
        wave: list[_Job] = []
        job = self._jobs.get()
        if job is not None:
            time.sleep(_GATHERING)
        while job is not None:
            wave.append(job)
            if len(wave) == _LARGEST_WAVE or self._jobs.empty():
                return wave
            job = self._jobs.get()
        if wave:
            self._jobs.put(None)  # seen too early: these come first
        return wave

    def _carry_out(self, wave: list[_Job]) -> bool:
        """Carries out all jobs in one transaction; on an error, none of them, and each learns of it."""
        error: BaseException | None = None
        try:
            with _explained(self._path), self._engine.begin() as connection:
                _execute(connection, wave)
        except BaseException as caught:
            error = caught
        for job in wave:
            job.error = error
        return error is None


def _execute(connection: sa.Connection, wave: list[_Job]) -> None:
    """Runs each statement once for the rows of all jobs: what SQLAlchemy adds to a statement costs more than the statement."""
    rows_of: dict[sa.Executable, list[dict[str, Any]]] = {}
    for job in wave:
        for statement, row in job.write.rows:
            rows_of.setdefault(statement, []).append(row)
    complete = {statement: connection.execute(statement, rows).rowcount == len(rows) for statement, rows in rows_of.items()}
    for job in wave:
        write = job.write
        taken = write.decisive is not None and not complete[write.decisive]
        job.result = write.otherwise(connection) if taken and write.otherwise else write.result


def _settle(wave: list[_Job]) -> None:
    """Wakes the callers, each event loop once for all of its jobs."""
    for loop in {job.loop for job in wave}:
        try:
            loop.call_soon_threadsafe(_settle_in_loop, [job for job in wave if job.loop is loop])
        except RuntimeError:
            continue  # that loop has ended, and its callers with it


def _settle_in_loop(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()


# --- rows ---------------------------------------------------------------------------------------------------------------------------


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a reply may hold half a surrogate pair, which is not text for SQLite


def _identity(rater: Rater) -> bytes:
    identity = {"provider": rater.provider, "model": rater.model, "base_url": rater.base_url, "settings": dict(rater.settings)}
    return _to_bytes(canonical_json({**identity, "name": rater.name}))


def _usage_columns(usage: Usage) -> dict[str, Any]:
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "dollars": usage.dollars}


def _attempt_columns(outcome: Reply | Failure) -> dict[str, Any]:
    columns = {"seconds": outcome.seconds, **_usage_columns(outcome.usage)}
    if isinstance(outcome, Reply):
        return {**columns, "outcome": "reply", "cause": None, "code": None, "status": None}
    remembered = outcome.final and outcome.cause not in ACCOUNT_CAUSES
    failure = {"cause": outcome.cause, "code": outcome.code, "status": outcome.status}
    return {**columns, **failure, "outcome": "final" if remembered else "transient"}


def _answer_columns(reply: Reply) -> dict[str, Any]:
    model = reply.model.encode("utf-8", "replace").decode("utf-8")
    return {"body": _to_bytes(reply.text), "model": model, "seconds": reply.seconds, **_usage_columns(reply.usage)}


def _find(connection: sa.Connection, key: Key, retry_failed: bool) -> Reply | Failure | None:
    row = connection.execute(_FIND_ANSWER if retry_failed else _FIND, key.columns()).first()
    if row is None:
        return None
    usage = Usage(row.input_tokens, row.output_tokens, row.dollars)
    if row.cause is not None:
        return Failure(row.cause, final=True, code=row.code, status=row.status, usage=usage, seconds=row.seconds)
    return Reply(row.body.decode("utf-8", "surrogatepass"), model=row.model, usage=usage, seconds=row.seconds)


# --- opening ------------------------------------------------------------------------------------------------------------------------


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_MILLISECONDS / 1000})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            cure = "Keep the store on a local disk: set GUERDON_STORE, or use --store."
            raise StoreError(f"this file system does not allow SQLite's write-ahead log (it gives '{mode}')", where=str(path), cure=cure)
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later fails behind another writer, whatever the time-out: lock at once.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _prepare_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mounts = Path("/proc/mounts")
    kind = filesystem(path, mounts.read_text(encoding="utf-8", errors="replace")) if mounts.exists() else ""
    if kind in _NETWORK_FILESYSTEMS:
        cure = "Keep the store on a local disk: set GUERDON_STORE, or use --store."
        raise StoreError(f"lies on a network file system ({kind}), where SQLite's write-ahead log is not safe", where=str(path), cure=cure)


def filesystem(path: Path, mounts: str) -> str:
    """Type of the file system that holds `path`, according to the text of /proc/mounts; "" if no line fits."""
    resolved = path.resolve()
    found = (Path("/"), "")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        # A later mount on the same point hides the earlier one.
        if resolved.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
            found = (point, fields[2])
    return found[1]


def _migrate(connection: sa.Connection, path: Path) -> None:
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    application = int(connection.exec_driver_sql("PRAGMA application_id").scalar_one())
    tables = int(connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())
    if application != _APPLICATION_ID and (tables or application):
        raise StoreError("is an SQLite database, but not a reply store", where=str(path), cure="Name another file.")
    if version > len(MIGRATIONS):
        cure = "Upgrade guerdon: pip install --upgrade guerdon"
        what = f"was written by a newer guerdon (format {version}; this one reads up to {len(MIGRATIONS)})"
        raise StoreError(what, where=str(path), cure=cure)
    for step in MIGRATIONS[version:]:
        for statement in filter(str.strip, step.split(";")):
            connection.exec_driver_sql(statement)
    if version < len(MIGRATIONS):
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")


# --- errors -------------------------------------------------------------------------------------------------------------------------

_DISK_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what SQLite and the operating system raise into a StoreError that says what to do."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _store_error(path, error.orig) from error
    except (sqlite3.Error, OSError) as error:
        raise _store_error(path, error) from error


def _store_error(path: Path, error: BaseException | None) -> StoreError | WriteFailed:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest a variety of it
    if code in _DISK_FULL:
        cure = "Free some space, then run the same command again: everything stored so far is kept."
        return WriteFailed("the disk is full", where=str(path), cure=cure)
    if code in _DAMAGED:
        cure = "Move it away to begin a new store, or restore it from a backup."
        return StoreError("is damaged, or no SQLite database at all", where=str(path), cure=cure)
    if code in _NOT_WRITABLE or isinstance(error, OSError):
        cure = "Choose a folder you can write to: set GUERDON_STORE, or use --store."
        return StoreError("cannot be opened for writing", where=str(path), cure=cure)
    if code == sqlite3.SQLITE_BUSY:
        cure = "Wait until the other process has finished, then run the same command again."
        return StoreError("is locked by another process", where=str(path), cure=cure)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreError(f"SQLite cannot use it ({name})", where=str(path), cure="Check the disk, then run the same command again.")
