"""A reply store in a PostgreSQL database, for several machines. The tables lie in a schema of their own, beside whatever else is there.

Transactions that write are serialised by one advisory lock, as SQLite's lock does for a file: what was read is still true when it is
written, and no two of them can wait for each other. A transaction holds the lock for a few round trips and carries a whole wave of writes.

When the connection is lost, nobody knows whether the transaction in flight was committed. Each therefore writes its number into the row of
its writer (table `writer`); whoever comes back first waits for the lock, then looks which number is there, and repeats the transaction only
if it is not its own.
"""

from __future__ import annotations

import importlib.util
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from guerdon.asking import _tables as tables
from guerdon.asking._backends import Backend, Unavailable, take_steps
from guerdon.asking._ledger import Statements
from guerdon.errors import MissingExtra, StoreError, WriteFailed

SCHEMA = "guerdon"
"""Where the tables lie."""

RECONNECTING = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses in seconds between attempts to connect again when a connection is lost in mid-run. Replies that were paid for wait to be written,
so a restart of the server is waited out."""

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_OLDEST = 12
_LOCK = 0x67756572  # "guer"
_CONNECT_SECONDS = "10"
_SESSION = f"""
    SET search_path TO {SCHEMA};
    SET lock_timeout TO '90s';
    SET idle_in_transaction_session_timeout TO '30s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""
"""A writer that vanishes in mid-transaction must not keep all others waiting; a reply that counts as stored must be on disk."""

_TAKE_LOCK = sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})")
_BEGIN = sa.text(
    f"""
    WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({_LOCK}))
    INSERT INTO writer (writer, wave, seen) SELECT :writer, :wave, now() FROM locked
    ON CONFLICT (writer) DO UPDATE SET wave = excluded.wave, seen = excluded.seen
    RETURNING CAST(extract(epoch FROM clock_timestamp()) AS FLOAT)
    """
)
"""Takes the lock and tells the time: that of the server, because the clocks of several machines differ."""
_LAST_WAVE = sa.text("SELECT wave FROM writer WHERE writer = :writer")
_FORGET_WRITER = sa.text("DELETE FROM writer WHERE writer = :writer OR seen < now() - interval '30 days'")

Result = TypeVar("Result")


def _in_array(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    return column == sa.any_(sa.bindparam(name, type_=postgresql.ARRAY(column.type)))


class PostgresqlBackend(Backend):
    """A database that is reached through psycopg."""

    remote = True
    statements = Statements(postgresql.insert, _in_array)

    def __init__(self, url: str) -> None:
        """Connects to "postgresql://user:password@host/database", making or migrating the tables if need be.

        Raises:
            StoreError: if the URL is none, the database cannot be reached, or may not be written.
            MissingExtra: if psycopg is not installed.
        """
        self.engine, self.name = _engine(url)
        self._reads = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer, self._wave = uuid.uuid4().hex, 0
        self._writing = threading.Lock()
        self._patient = False  # somebody who has just named a server wants to know at once that it is not there
        self._closed = False
        try:
            with self.explained():
                self._prepare()
        except BaseException:
            self.engine.dispose()
            raise
        self._patient = True

    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        if self._closed:
            raise StoreError("the store is closed", where=self.name)

        def attempt() -> Result:
            with self.explained(), self._reads.connect() as connection:
                return work(connection)

        return self._patiently(attempt)

    def write(self, work: Callable[[sa.Connection, float], Result]) -> Result:
        done: list[Result] = []  # what the last attempt came to, if it was lost while it was being committed

        def attempt() -> Result:
            with self.explained(), self.engine.begin() as connection:
                if done and self._was_committed(connection):
                    return done[0]
                done.clear()
                now = float(connection.execute(_BEGIN, {"writer": self._writer, "wave": self._wave}).scalar_one())
                done.append(work(connection, now))
            return done[0]

        with self._writing:  # the row of this writer tells of one transaction only
            self._wave += 1
            return self._patiently(attempt)

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """Makes the attempt again while the connection is lost, for as long as that may have an end."""
        pauses = iter(RECONNECTING if self._patient else ())
        while True:
            try:
                result = attempt()
            except _ConnectionLost:
                pause = next(pauses, None)
                if pause is None:
                    self._patient = False  # what is done next, perhaps only to give up claims, need not wait as long again
                    raise
                time.sleep(pause)
            else:
                self._patient = True
                return result

    def _was_committed(self, connection: sa.Connection) -> bool:
        connection.execute(_TAKE_LOCK)  # the transaction that was lost may still be under way
        return connection.execute(_LAST_WAVE, {"writer": self._writer}).scalar_one_or_none() == self._wave

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(sa.exc.SQLAlchemyError), self.engine.begin() as connection:
            # Everything that matters is committed by now; a row that stays is forgotten after a month.
            connection.execute(_FORGET_WRITER, {"writer": self._writer})
        self.engine.dispose()

    @contextmanager
    def explained(self) -> Iterator[None]:
        # Without the text of what psycopg raises: it may tell what was connected with.
        try:
            yield
            return
        except sa.exc.DBAPIError as error:
            reason: BaseException = _reason(self.name, error.orig, lost=error.connection_invalidated)
        except sa.exc.SQLAlchemyError as error:
            reason = StoreError(f"PostgreSQL cannot use it ({type(error).__name__})", where=self.name, cure=_CHECK)
        raise reason from None

    # --- opening ---

    def _prepare(self) -> None:
        with self.engine.begin() as connection:
            release = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) // 10_000
            if release < _OLDEST:
                what = f"is PostgreSQL {release}; the store needs {_OLDEST} or newer"
                raise StoreError(what, where=self.name, cure="Upgrade the server, or use another.")
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
            if encoding != "UTF8":
                cure = "Make another one with: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
                raise StoreError(f"the database cannot hold every text (its encoding is {encoding})", where=self.name, cure=cure)
            if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
                raise _read_only(self.name)
            connection.execute(_TAKE_LOCK)
            self._migrate(connection)

    def _migrate(self, connection: sa.Connection) -> None:
        # Not CREATE ... IF NOT EXISTS: that needs the right to create even where nothing is to be created.
        if connection.exec_driver_sql(f"SELECT to_regnamespace('{SCHEMA}')").scalar_one() is None:
            connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
        if connection.exec_driver_sql(f"SELECT to_regclass('{SCHEMA}.format')").scalar_one() is None:
            there = f"SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('{SCHEMA}')"
            if connection.exec_driver_sql(there).scalar_one():
                what = f"the database has a schema '{SCHEMA}' that is not a reply store"
                raise StoreError(what, where=self.name, cure="Name another database.")
            connection.exec_driver_sql("CREATE TABLE format (version INTEGER NOT NULL)")
            connection.exec_driver_sql("INSERT INTO format VALUES (0)")
            connection.exec_driver_sql(
                "CREATE TABLE writer (writer TEXT NOT NULL PRIMARY KEY, wave BIGINT NOT NULL, seen TIMESTAMPTZ NOT NULL)"
            )
        version = int(connection.exec_driver_sql("SELECT version FROM format").scalar_one())
        take_steps(connection, version, tables.POSTGRESQL_MIGRATIONS, self.name)
        if version < len(tables.POSTGRESQL_MIGRATIONS):
            connection.exec_driver_sql(f"UPDATE format SET version = {len(tables.POSTGRESQL_MIGRATIONS)}")


def _engine(text: str) -> tuple[sa.Engine, str]:
    """The engine for a URL, and a name of it that may be printed."""
    scheme = text.partition("://")[0]
    if scheme not in _SCHEMES:
        what = "this kind of database cannot hold a reply store" if scheme.isidentifier() else "this is no URL of a database"
        raise StoreError(what, cure="Name a file, or a database as postgresql://user@host/database.")
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtra("psycopg", "postgresql")
    try:
        url = sa.make_url(text)
    except (ValueError, sa.exc.ArgumentError):
        url = None
    if text.partition("?")[0].count("@") > 1:  # what stands between the first and the last may be part of a password
        url = None
    if url is None:  # raised out here, because the error that was caught quotes the URL
        cure = "Write postgresql://user:password@host:port/database; in user and password, write %40 for @, %2F for / and %3A for :."
        raise StoreError("the URL of the database cannot be read", cure=cure)
    options: dict[str, str] = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    host = url.host or options.get("host", "")
    name = f"postgresql://{url.username + '@' if url.username else ''}{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    if url.password is not None:
        options["password"] = str(url.password)
    options = {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8", "application_name": "guerdon", **options}
    # A connection whose other end has vanished is noticed after half a minute, not after two hours.
    options = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "4", "tcp_user_timeout": "30000", **options}
    bare = sa.URL.create("postgresql+psycopg", url.username, None, url.host, url.port, url.database)
    try:
        engine = sa.create_engine(bare, connect_args=options, hide_parameters=True)
    except ImportError:  # psycopg is there, but not the library of PostgreSQL that it needs
        raise MissingExtra("psycopg", "postgresql") from None

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.execute(_SESSION)
        connection.commit()

    return engine, name


# --- errors -------------------------------------------------------------------------------------------------------------------------

_CHECK = "Check the database, then run the same command again: everything stored so far is kept."
_DISK_FULL = {"53100"}
_REFUSED = {"28000", "28P01"}
_LOCKED = {"55P03", "25P03"}
_ELSEWHERE = {"25006"}
_FORBIDDEN = {"42501"}
_MISSING = {"42P01", "3F000"}
_CUT = ("08", "57P")


class _ConnectionLost(Unavailable):
    """There was a connection, or there should be one: another attempt may succeed."""


def _read_only(name: str) -> StoreError:
    cure = "Connect to the primary server, as a user who may write."
    return StoreError("the database is read-only", where=name, cure=cure)


def _reason(name: str, error: BaseException | None, *, lost: bool) -> StoreError | WriteFailed:
    state = str(getattr(error, "sqlstate", None) or "")
    lost = lost or state.startswith(_CUT)
    if not state and not lost:
        return _not_connected(name, error)
    if state in _DISK_FULL:
        cure = "Free some space on the server, then run the same command again: everything stored so far is kept."
        return WriteFailed("the disk of the database server is full", where=name, cure=cure)
    if state in _ELSEWHERE:
        return _read_only(name)
    if state in _FORBIDDEN:
        cure = f"Let its owner run: GRANT CREATE ON DATABASE, or make the user the owner of the schema '{SCHEMA}'."
        return StoreError("this user may not use the tables of the store", where=name, cure=cure)
    if state in _MISSING:
        return StoreError("tables of the store are missing", where=name, cure="Restore them from a backup, or name another database.")
    if state in _LOCKED and not lost:
        cure = "Wait until the other process has finished, then run the same command again."
        return Unavailable("is locked by another process", where=name, cure=cure)
    if lost:
        return _ConnectionLost("the connection to the database was lost", where=name, cure=_CHECK)
    return StoreError(f"PostgreSQL cannot use it (SQLSTATE {state})", where=name, cure=_CHECK)


def _not_connected(name: str, error: BaseException | None) -> StoreError:
    """Why no connection came about. psycopg gives no code for this, and only some of the texts are known."""
    text = str(error)
    kind = type(error).__name__
    if kind == "ProgrammingError":
        cure = "Its options are those of libpq, such as sslmode=require."
        return StoreError("the URL of the database has an option that is not known", where=name, cure=cure)
    if kind not in ("OperationalError", "ConnectionTimeout"):
        return StoreError(f"PostgreSQL cannot use it ({kind})", where=name, cure=_CHECK)
    if "password authentication failed" in text or "no password supplied" in text or "fe_sendauth" in text:
        cure = "Check user and password: in the URL (write %40 for @ there), in $PGPASSWORD or in ~/.pgpass."
        return StoreError("the server refuses user and password", where=name, cure=cure)
    if "does not exist" in text and "database" in text:
        return StoreError("there is no such database on the server", where=name, cure="Make it with: createdb NAME")
    if "does not exist" in text and "role" in text:
        return StoreError("there is no such user on the server", where=name, cure="Make it with: createuser NAME")
    if "pg_hba.conf" in text:
        cure = "Let its administrator add a line to pg_hba.conf, or try ?sslmode=require at the end of the URL."
        return StoreError("the server does not let this user in from this machine", where=name, cure=cure)
    if "too many clients" in text or "remaining connection slots" in text:
        cure = "Run fewer processes at once, or raise max_connections on the server."
        return _ConnectionLost("the server has no connection left", where=name, cure=cure)
    cure = "Check that the server is running, and its address, port and certificate."
    return _ConnectionLost("the database server cannot be reached", where=name, cure=cure)
