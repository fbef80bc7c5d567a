"""Where a reply store lies: how it is opened, migrated, read and written, and what its errors mean. Here: in an SQLite file."""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from guerdon.asking import _tables as tables
from guerdon.asking._ledger import Statements
from guerdon.errors import StoreError, WriteFailed

_APPLICATION_ID = 0x67756572  # "guer": marks the file as ours
_BUSY_MILLISECONDS = 30_000
_NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs"),
}
_ELSEWHERE = "Keep the store on a local disk: set GUERDON_STORE, or use --store."

Result = TypeVar("Result")


class Unavailable(StoreError):
    """The store cannot be used now, whatever is to be done: doing one thing after the other would not help."""


class Backend(ABC):
    """One kind of database."""

    name: str
    """Where the store is, for messages; never a password."""
    engine: sa.Engine
    statements: Statements
    remote: bool
    """Whether a read may take so long that an event loop should not wait for it."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Turns what the database raises into a StoreError that says what to do."""

    @abstractmethod
    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Does `work`, which only reads. Several threads may read at once. Raises StoreError."""

    @abstractmethod
    def write(self, work: Callable[[sa.Connection, float], Result]) -> Result:
        """Does `work(connection, now)` in a transaction that no other writes beside, from whatever process; returns when it is on disk.

        `now` is in seconds since 1970, by the one clock that all users of the store share.

        Raises:
            StoreError, WriteFailed: nothing is written then.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives connections back. Closing twice does nothing; reading afterwards raises StoreError."""


# --- SQLite -------------------------------------------------------------------------------------------------------------------------


def _in_json(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    listed = sa.func.json_each(sa.bindparam(name, type_=sa.JSON)).table_valued("value")
    return column.in_(sa.select(listed.c.value))


class SqliteBackend(Backend):
    """A file on this machine: write-ahead log, full sync."""

    remote = False
    statements = Statements(sqlite.insert, _in_json)

    def __init__(self, path: Path) -> None:
        """Opens the file, making or migrating it if need be. Raises StoreError."""
        self.path, self.name = path, str(path)
        self._reading = threading.Lock()
        with self.explained():
            _prepare_folder(path)
            self.engine = _sqlite_engine(path)
            try:
                with self.engine.begin() as connection:
                    _migrate_sqlite(connection, path)
                self._reader = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            except BaseException:
                self.engine.dispose()
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise _sqlite_error(self.path, error.orig) from error
        except (sqlite3.Error, OSError) as error:
            raise _sqlite_error(self.path, error) from error

    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        with self._reading, self.explained():
            if self._reader.closed:
                raise StoreError("the store is closed", where=self.name)
            return work(self._reader)

    def write(self, work: Callable[[sa.Connection, float], Result]) -> Result:
        with self.explained(), self.engine.begin() as connection:
            return work(connection, time.time())

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        self.engine.dispose()


def _sqlite_engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_MILLISECONDS / 1000})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            what = f"this file system does not allow SQLite's write-ahead log (it gives '{mode}')"
            raise StoreError(what, where=str(path), cure=_ELSEWHERE)
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
        what = f"lies on a network file system ({kind}), where SQLite's write-ahead log is not safe"
        raise StoreError(what, where=str(path), cure=_ELSEWHERE)


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


def _migrate_sqlite(connection: sa.Connection, path: Path) -> None:
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    application = int(connection.exec_driver_sql("PRAGMA application_id").scalar_one())
    found = int(connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())
    if application != _APPLICATION_ID and (found or application):
        raise StoreError("is an SQLite database, but not a reply store", where=str(path), cure="Name another file.")
    take_steps(connection, version, tables.MIGRATIONS, str(path))
    if version < len(tables.MIGRATIONS):
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {len(tables.MIGRATIONS)}")


def take_steps(connection: sa.Connection, version: int, steps: tuple[str, ...], where: str) -> None:
    """Takes a store of format `version` to the newest. Raises StoreError if it is newer still; `where` names it then."""
    if version > len(steps):
        what = f"was written by a newer guerdon (format {version}; this one reads up to {len(steps)})"
        raise StoreError(what, where=where, cure="Upgrade guerdon: pip install --upgrade guerdon")
    for step in steps[version:]:
        for statement in filter(str.strip, step.split(";")):
            connection.exec_driver_sql(statement)


_DISK_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


def _sqlite_error(path: Path, error: BaseException | None) -> StoreError | WriteFailed:
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
        return Unavailable("is locked by another process", where=str(path), cure=cure)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreError(f"SQLite cannot use it ({name})", where=str(path), cure="Check the disk, then run the same command again.")
