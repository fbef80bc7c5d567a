"""Looking at a whole reply store: what it holds and cost, whether it is sound, and taking out what one run used.

A bundle is one SQLite file that is a reply store itself, with the requests, raters, attempts and answers of some keys and nothing else, so
that `replay:FILE` serves it as it is. It holds no claims and, unless wanted, no names of runs. Equal content gives an equal file. A table
`bundle` holds a digest over all rows, so that a bundle that was cut off or changed is refused.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

from guerdon.asking import _ledger as ledger
from guerdon.asking import _tables as tables
from guerdon.asking.store import Costs, Key, RunInfo, Store
from guerdon.errors import StoreError
from guerdon.records import CAUSES, Cause, Picture, Rater, Request, canonical_json, digest
from guerdon.runs import writing

ENDING = ".guerdon"
"""Ending of the names of bundles."""

_A_QUERY = 500  # values in one IN (...), rows in one INSERT
_STREAM = 1000
_NANO = 1e-9
_USAGE = ("input_tokens", "output_tokens", "dollars", "thinking_tokens", "cached_tokens")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "request": ("question", "record", "first_asked"),
    "rater": ("rater", "identity"),
    "run": ("run", "name", "first_seen", "last_seen", "charged", "reserved"),
    "attempt": ("question", "rater", "repeat", "run", "started", "seconds", "outcome", "cause", "code", "status", *_USAGE, "charged"),
    "answer": ("question", "rater", "repeat", "body", "model", "seconds", *_USAGE),
}  # what a bundle's digest is taken over, whatever columns a later format adds
_SAME_ATTEMPT = tuple(name for name in _COLUMNS["attempt"] if name not in ("question", "rater", "repeat", "run", "charged"))
_KINDS = ("table", "index")


Result = TypeVar("Result")


# --- looking ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RaterInfo:
    """A rater that the store knows."""

    key: str
    """`Rater.key`."""
    name: str
    """`Rater.name`."""
    attempts: int
    answers: int


@dataclass(frozen=True)
class Overview:
    """What a store holds."""

    runs: Sequence[RunInfo]
    raters: Sequence[RaterInfo]
    requests: int
    attempts: int
    answers: int
    size: int
    """Bytes on disk."""
    name: str = ""
    """Where the store is; never a password."""


@dataclass(frozen=True)
class Share:
    """What the requests of one purpose cost with one rater."""

    rater: str
    """`Rater.name`."""
    purpose: str
    """Which step of the method asked: "analyse" and "score" are the first and second turn of RG-VLM, "repair" asks for a readable reply."""
    costs: Costs


@dataclass(frozen=True)
class Fault:
    """Something in a store that contradicts itself."""

    where: str
    """Table and key."""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def overview(store: Store) -> Overview:
    """What `store` holds. Raises StoreError."""
    return replace(_look(store, lambda connection: _overview(store, connection)), runs=store.runs())


def _overview(store: Store, connection: sa.Connection) -> Overview:
    attempts, answers = _by_rater(connection, tables.attempt), _by_rater(connection, tables.answer)
    names = _rater_names(connection)
    raters = [RaterInfo(key, names.get(key, key), attempts.get(key, 0), answers.get(key, 0)) for key in {*names, *attempts, *answers}]
    return Overview(
        runs=(),
        raters=sorted(raters, key=lambda each: (each.name, each.key)),
        requests=_count(connection, tables.request),
        attempts=sum(attempts.values()),
        answers=sum(answers.values()),
        size=_size(store, connection),
        name=store.name,
    )


def shares(store: Store, runs: Collection[str] | None = None) -> list[Share]:
    """What was spent, by rater and purpose, in the order of the names; of the runs with these ids, or of all. What claims reserve is left
    out. Raises StoreError."""
    attempt = tables.attempt
    statement = sa.select(attempt, tables.request.c.record).select_from(
        attempt.outerjoin(tables.request, attempt.c.question == tables.request.c.question)
    )
    chosen = statement if runs is None else statement.where(attempt.c.run.in_(sorted(runs)))

    def add_up(connection: sa.Connection) -> list[Share]:
        names = _rater_names(connection)
        sums: dict[tuple[str, str], _Sums] = {}
        for row in _rows(connection, chosen):
            sums.setdefault((names.get(row.rater, row.rater), _purpose(row.record)), _Sums()).add(row)
        return [Share(rater, purpose, counted.costs()) for (rater, purpose), counted in sorted(sums.items())]

    return _look(store, add_up)


@dataclass
class _Sums:
    numbers: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    charged: int = 0

    def add(self, attempt: Any) -> None:
        lost = attempt.outcome == "lost"
        self._count("lost" if lost else "requests")
        self.charged += int(attempt.charged)
        if attempt.dollars is None and (attempt.cause is None or attempt.cause not in ledger.UNBILLED):
            self._count("dollars_unknown")
        if lost:
            return
        if attempt.outcome == "reply":
            self._count("answered")
        if attempt.cause is not None:
            self.failures[attempt.cause] = self.failures.get(attempt.cause, 0) + 1
        for name in (*_USAGE, "seconds"):
            self._count(name, getattr(attempt, name) or 0)

    def _count(self, name: str, number: float = 1) -> None:
        self.numbers[name] = self.numbers.get(name, 0) + number

    def costs(self) -> Costs:
        whole = ("requests", "answered", "input_tokens", "output_tokens", "dollars_unknown", "thinking_tokens", "cached_tokens", "lost")
        failures: dict[Cause, int] = {cause: self.failures[cause] for cause in CAUSES if cause in self.failures}
        counts: dict[str, Any] = {name: int(self.numbers.get(name, 0)) for name in whole}
        sums: dict[str, Any] = {name: float(self.numbers.get(name, 0.0)) for name in ("dollars", "seconds")}
        return Costs(**counts, **sums, failures=failures, charged=self.charged * _NANO)


# --- verifying ----------------------------------------------------------------------------------------------------------------------


def verify(store: Store) -> list[Fault]:
    """Everything in `store` that contradicts itself: a request or a rater that is not what its key says, an answer that is not the one that
    came, or without its request, rater or attempt, sums of runs that are not the sums over their attempts, and damage that SQLite finds in
    its file.

    Raises:
        StoreError: if the store cannot be read at all.
    """
    faults: list[Fault] = []

    def work(connection: sa.Connection) -> None:
        faults.clear()
        faults.extend(_damage(connection))
        faults.extend(_faults(connection))

    try:
        _look(store, work)
    except StoreError as error:
        if not faults:
            raise
        faults.append(Fault("file", f"the rest cannot be read: it {error.what}"))
    return faults


def _damage(connection: sa.Connection) -> list[Fault]:
    """What SQLite finds wrong with its file."""
    if connection.dialect.name != "sqlite":
        return []
    found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    return [Fault("file", " ".join(str(line).split())) for line in found if line != "ok"]


def _faults(connection: sa.Connection) -> Iterator[Fault]:
    for row in _rows(connection, sa.select(tables.request)):
        yield from _fault("request", row.question, _question_of(row.record), "it is another question than its key says")
    for row in _rows(connection, sa.select(tables.rater)):
        yield from _fault("rater", row.rater, _rater_of(row.identity), "it is another rater than its key says")
    yield from _loose_ends(connection)
    yield from _wrong_sums(connection)


def _fault(table: str, key: str, found: str | None, what: str) -> Iterator[Fault]:
    if found != key:
        yield Fault(f"{table} {key}", "its record cannot be read" if found is None else f"{what} ({found})")


class _ById(dict[str, Picture]):
    """Any picture, known by nothing but its id."""

    def __missing__(self, name: str) -> Picture:
        return Picture(name, np.empty((0, 0, 3), np.uint8))


def _question_of(record: bytes) -> str | None:
    """`Request.question` of a stored record; None if it is none."""
    try:
        return Request.from_record(json.loads(ledger.from_bytes(record)), _ById()).question
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _rater_of(identity: bytes) -> str | None:
    """`Rater.key` of a stored identity; None if it is none."""
    try:
        stored = json.loads(ledger.from_bytes(identity))
        return Rater(stored["provider"], stored["model"], stored["base_url"], stored["settings"]).key
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _loose_ends(connection: sa.Connection) -> Iterator[Fault]:
    answer, attempt = tables.answer, tables.attempt
    for table, name in ((answer, "answer"), (attempt, "attempt")):
        for other, column in ((tables.request, "question"), (tables.rater, "rater")):
            alone = _keys(table).where(
                ~sa.exists().where(other.c[column] == table.c[column]),
                *([attempt.c.outcome != "lost"] if table is attempt else []),
            )
            for row in _rows(connection, alone):
                yield Fault(f"{name} {_shown(row)}", f"its {other.name} is not there")
    replied = _keys(attempt).where(attempt.c.outcome == "reply")
    for row in connection.execute(sa.except_(_keys(answer), replied)):  # there is no index to look attempts up by key
        yield Fault(f"answer {_shown(row)}", "no attempt got it")
    for row in _rows(connection, _keys(answer).add_columns(answer.c.body, answer.c.digest)):
        try:
            ledger.from_bytes(row.body)
        except UnicodeDecodeError:
            yield Fault(f"answer {_shown(row)}", "its body is no text")
            continue
        if row.digest not in (None, ledger.body_digest(row.body)):  # stores of the first format keep none
            yield Fault(f"answer {_shown(row)}", "its body is not the one that came")


def _wrong_sums(connection: sa.Connection) -> Iterator[Fault]:
    kept = {row.run: (int(row.charged), int(row.reserved)) for row in connection.execute(sa.select(tables.run))}
    charged, reserved = (
        {row.run: int(row.total or 0) for row in connection.execute(sa.select(table.c.run, _sum(column)).group_by(table.c.run))}
        for table, column in ((tables.attempt, tables.attempt.c.charged), (tables.claim, tables.claim.c.reserved))
    )
    for run in sorted({*kept, *charged, *reserved}):
        told, counted = kept.get(run, (0, 0)), (charged.get(run, 0), reserved.get(run, 0))
        if told != counted:
            what = "charged {} and reserved {} nano-dollars by its own row"
            yield Fault(f"run {run or '(none)'}", f"{what.format(*told)}, {counted[0]} and {counted[1]} by its attempts and claims")


# --- what a run used ----------------------------------------------------------------------------------------------------------------


def used(store: Store, runs: Collection[str], questions: Collection[str] = (), raters: Collection[str] = ()) -> set[Key]:
    """The keys of everything that some runs used.

    What a run asked itself is known from its attempts. What it found in the store is not written down, so it is taken from the
    conversations: one is known by its system prompt and first turn (words and pictures). Used is every key that was asked of the same
    raters in a conversation that opens like one of the runs' attempts or like one of `questions`, whatever run asked it.

    Args:
        runs: ids.
        questions: keys of requests from whose replies labels were read (`Label.question`).
        raters: keys of the raters of those labels.

    Raises:
        StoreError: if the store cannot be read.
    """
    return _look(store, lambda connection: _used(connection, runs, questions, raters))


def _used(connection: sa.Connection, runs: Collection[str], questions: Collection[str], raters: Collection[str]) -> set[Key]:
    request, attempt = tables.request, tables.attempt
    own = {Key(row.question, row.rater, row.repeat) for row in _among(connection, _keys(attempt), attempt.c.run, runs)}
    records = sa.select(request.c.question, request.c.record)
    wanted = _among(connection, records, request.c.question, {key.question for key in own} | set(questions))
    openings = {_opening(row.record) for row in wanted} - {None}
    together = {row.question for row in _rows(connection, records) if _opening(row.record) in openings}
    of_raters = {key.rater for key in own} | set(raters)
    for table in (tables.answer, attempt):
        for row in _rows(connection, _keys(table)):
            if row.question in together and row.rater in of_raters:
                own.add(Key(row.question, row.rater, row.repeat))
    return own


def raters_called(store: Store, name: str, settings: Any) -> set[str]:
    """Keys of the raters with this name (`Rater.name`) and these effective settings. Raises StoreError."""
    rows = _look(store, lambda connection: connection.execute(sa.select(tables.rater)).all())
    stored = {row.rater: _json(row.identity) for row in rows}
    return {key for key, identity in stored.items() if (identity.get("name"), identity.get("settings")) == (name, settings)}


def _opening(record: bytes) -> str | None:
    """What a conversation is known by."""
    stored = _json(record)
    turns = stored.get("messages")
    return digest(canonical_json([stored.get("system"), turns[0]])) if isinstance(turns, list) and turns else None


# --- bundles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How many of each a bundle holds, or an import added."""

    requests: int
    raters: int
    attempts: int
    answers: int


@dataclass(frozen=True)
class Imported:
    """What became of a bundle's content."""

    found: Counts
    new: Counts
    differing: int
    """Answers that the store has already, in other words; its own are kept."""


def export(store: Store, keys: Collection[Key], path: Path, *, names: bool = False) -> Counts:
    """Writes a bundle of everything about `keys`, whole or not at all.

    Args:
        names: keep the readable names of runs and ids that hold a path; otherwise the former are left out and the latter replaced by
            their digest.

    Raises:
        StoreError: if the store cannot be read.
        WriteFailed: if the disk is full.
    """
    rows = _look(store, lambda connection: _content(connection, keys, names))
    with tempfile.TemporaryDirectory(prefix="guerdon-") as folder:  # `path` may lie where a store may not: on a network file system
        made = Path(folder) / "bundle.sqlite"
        _make_bundle(made, rows)
        with writing(path) as temporary:
            shutil.copyfile(made, temporary)
    return _counted(rows)


def import_bundle(store: Store, path: Path) -> Imported:
    """Adds what a bundle holds and `store` does not. Nothing that is there is changed; doing so twice adds nothing.

    Raises:
        StoreError: if the file is no bundle, damaged or changed (nothing is added then), or the store cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="guerdon-") as folder:
        copy = Path(folder) / "bundle.sqlite"
        rows = _read_bundle(path, copy)
    new = Counts(
        requests=_add_missing(store, tables.request, ("question",), rows["request"]),
        raters=_add_missing(store, tables.rater, ("rater",), rows["rater"]),
        attempts=_add_attempts(store, rows["attempt"], {row["run"]: row for row in rows["run"]}),
        answers=_add_missing(
            store, tables.answer, tables.KEY_COLUMNS, [{**row, "digest": ledger.body_digest(row["body"])} for row in rows["answer"]]
        ),
    )
    return Imported(_counted(rows), new, _differing(store, rows["answer"]))


Rows = Mapping[str, list[dict[str, Any]]]
"""Table -> its rows."""


def _content(connection: sa.Connection, keys: Collection[Key], names: bool) -> Rows:
    """What a bundle of `keys` holds, in the order in which it is written: answers as they came, so that the first one is served first."""
    wanted = {(key.question, key.rater, key.repeat) for key in keys}
    questions = {key.question for key in keys}

    def about_keys(table: sa.Table) -> list[dict[str, Any]]:
        found = _rows(connection, sa.select(*(table.c[name] for name in _COLUMNS[table.name])))
        return [_plain(row) for row in found if (row.question, row.rater, row.repeat) in wanted]

    attempts = sorted(about_keys(tables.attempt), key=lambda row: (row["started"], *_key(row), canonical_json(list(row.values()))))
    stored = {row.run: _plain(row) for row in connection.execute(sa.select(tables.run))}
    runs = _runs_of(attempts, stored, names)
    arrived: dict[tuple[Any, ...], int] = {}
    for position, row in enumerate(attempts):
        row["run"] = row["run"] if names else _nameless(row["run"])
        if row["outcome"] == "reply":
            arrived.setdefault(_key(row), position)
    answers = sorted(about_keys(tables.answer), key=lambda row: (arrived.get(_key(row), math.inf), *_key(row)))
    request, rater = tables.request, tables.rater
    raters = {key.rater for key in keys}
    return {
        "request": sorted(
            map(_plain, _among(connection, sa.select(request), request.c.question, questions)), key=lambda row: row["question"]
        ),
        "rater": sorted(map(_plain, _among(connection, sa.select(rater), rater.c.rater, raters)), key=lambda row: row["rater"]),
        "run": runs,
        "attempt": attempts,
        "answer": answers,
    }


def _runs_of(attempts: Sequence[Mapping[str, Any]], stored: Mapping[str, Mapping[str, Any]], names: bool) -> list[dict[str, Any]]:
    runs: dict[str, dict[str, Any]] = {}
    for row in attempts:
        run = runs.setdefault(
            row["run"], {"run": row["run"], "name": "", "first_seen": math.inf, "last_seen": 0.0, "charged": 0, "reserved": 0}
        )
        run["first_seen"] = min(run["first_seen"], row["started"])
        run["last_seen"] = max(run["last_seen"], row["started"] + row["seconds"])
        run["charged"] += row["charged"]
    for run_id, run in runs.items():
        run["name"] = stored.get(run_id, {}).get("name", "") if names else ""
        run["run"] = run_id if names else _nameless(run_id)
    return sorted(runs.values(), key=lambda run: run["run"])


def _nameless(run: str) -> str:
    """Ids of old runs hold a path of the machine that made them."""
    return digest("guerdon run 1", run) if "/" in run or "\\" in run else run


def _make_bundle(path: Path, rows: Rows) -> None:
    with closing(Store.open(path)) as bundle:
        bundle.backend.write(lambda connection, _now: _fill(connection, rows))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA journal_mode = DELETE")  # one file, readable on a read-only disk
        file.execute("CREATE TABLE bundle (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)")
        file.execute("INSERT INTO bundle VALUES ('content', ?)", (_digest_of(rows),))
        file.execute("VACUUM")


def _fill(connection: sa.Connection, rows: Rows) -> None:
    for name, found in rows.items():
        for part in _parts(found):
            connection.execute(sa.insert(getattr(tables, name)), part)


def _read_bundle(path: Path, copy: Path) -> Rows:
    """The content of a bundle, read from a copy, so that the file itself stays as it is. Raises StoreError unless it is whole."""
    damaged = "Fetch or export it again; nothing was imported."
    try:
        shutil.copyfile(path, copy)
        told = _told_digest(copy)
    except sqlite3.Error as error:
        raise StoreError("is damaged, or no bundle at all", where=str(path), cure=damaged) from error
    except OSError as error:
        raise StoreError(
            f"cannot be read ({type(error).__name__})", where=str(path), cure="Name a file that guerdon has exported."
        ) from error
    if told is None:
        cure = "Name a file that was written by: guerdon store export"
        raise StoreError("is no bundle of guerdon", where=str(path), cure=cure)
    try:
        with closing(Store.open(copy)) as bundle:
            faults = verify(bundle)
            rows = _look(bundle, _all_rows)
    except StoreError as error:
        raise StoreError(error.what, where=str(path), cure=error.cure) from error
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise StoreError(f"is damaged: {faults[0]}{more}", where=str(path), cure=damaged)
    if _digest_of(rows) != told:
        raise StoreError("was changed or damaged since it was exported", where=str(path), cure=damaged)
    return rows


def _told_digest(file: Path) -> str | None:
    """The digest that a bundle says it has; None if the file is an SQLite database, but no bundle."""
    with closing(sqlite3.connect(file)) as connection:
        kinds = {kind for (kind,) in connection.execute("SELECT type FROM sqlite_master")}
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not kinds <= set(_KINDS) or not {"bundle", *_COLUMNS} <= there:
            return None
        row = connection.execute("SELECT value FROM bundle WHERE name = 'content'").fetchone()
    return str(row[0]) if row else None


def _all_rows(connection: sa.Connection) -> Rows:
    """Rows of a bundle in the order in which they were written."""
    found = {name: sa.select(getattr(tables, name)).order_by(sa.literal_column(f"{name}.rowid")) for name in _COLUMNS}
    return {name: [_plain(row, _COLUMNS[name]) for row in connection.execute(statement)] for name, statement in found.items()}


def _digest_of(rows: Rows) -> str:
    found = digest("guerdon bundle 1")
    for name, columns in _COLUMNS.items():
        for row in rows[name]:
            values = [row[column] for column in columns]
            bodies = [value for value in values if isinstance(value, bytes)]
            found = digest(found, name, canonical_json([value for value in values if not isinstance(value, bytes)]), *bodies)
    return found


def _add_missing(store: Store, table: sa.Table, key: Sequence[str], rows: Sequence[dict[str, Any]]) -> int:
    """Adds the rows whose key is not there, and returns how many these were."""
    first = table.c[key[0]]

    def add(part: list[dict[str, Any]], connection: sa.Connection, _now: float) -> int:
        columns = sa.select(*(table.c[name] for name in key))
        there = {tuple(row) for row in _among(connection, columns, first, {row[key[0]] for row in part})}
        missing = [row for row in part if tuple(row[name] for name in key) not in there]
        if missing:
            connection.execute(sa.insert(table), missing)
        return len(missing)

    return sum(store.backend.write(partial(add, part)) for part in _parts(rows))


def _add_attempts(store: Store, rows: Sequence[dict[str, Any]], runs: Mapping[str, Mapping[str, Any]]) -> int:
    """Adds the attempts that are not there, whatever run they are counted under, and what they were charged with to their runs."""
    questions = {row["question"] for row in rows}
    there: set[tuple[Any, ...]] = set()
    latest = 0

    def look(connection: sa.Connection) -> None:
        nonlocal latest
        for row in _rows(connection, sa.select(tables.attempt).where(tables.attempt.c.id > latest)):  # attempts only ever come to the end
            latest = max(latest, row.id)
            if row.question in questions:
                there.add(_identity(_plain(row)))

    def add(part: list[dict[str, Any]], connection: sa.Connection, _now: float) -> int:
        look(connection)  # what somebody else has written meanwhile
        missing = [row for row in part if _identity(row) not in there]
        if missing:
            connection.execute(sa.insert(tables.attempt), missing)
            connection.execute(store.backend.statements.add_to_run, _run_changes(connection, missing, runs))
        return len(missing)

    _look(store, look)
    return sum(store.backend.write(partial(add, part)) for part in _parts(rows))


def _run_changes(
    connection: sa.Connection, missing: Sequence[Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    changed = sorted({row["run"] for row in missing})
    found = _among(connection, sa.select(tables.run.c.run, tables.run.c.name, tables.run.c.last_seen), tables.run.c.run, changed)
    there = {row.run: row for row in found}
    changes = []
    for run in changed:
        told, known = runs[run], there.get(run)
        charged = sum(row["charged"] for row in missing if row["run"] == run)
        last = max(told["last_seen"], known.last_seen) if known else told["last_seen"]
        name = "" if known and known.name else told["name"]
        changes.append({"run": run, "name": name, "first_seen": told["first_seen"], "last_seen": last, "charged": charged, "reserved": 0})
    return changes


def _differing(store: Store, rows: Sequence[dict[str, Any]]) -> int:
    """How many answers the store has in other words."""
    told = {_key(row): row["body"] for row in rows}
    answer = tables.answer

    def count(connection: sa.Connection) -> int:
        found = _among(connection, _keys(answer).add_columns(answer.c.body), answer.c.question, {row["question"] for row in rows})
        return sum(told.get((row.question, row.rater, row.repeat), bytes(row.body)) != bytes(row.body) for row in found)

    return _look(store, count)


def _counted(rows: Rows) -> Counts:
    return Counts(len(rows["request"]), len(rows["rater"]), len(rows["attempt"]), len(rows["answer"]))


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an attempt this one: its key, and when and how it went."""
    return (*_key(row), *(row[name] for name in _SAME_ATTEMPT))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["question"], row["rater"], row["repeat"]


# --- reading ------------------------------------------------------------------------------------------------------------------------


def _look(store: Store, work: Callable[[sa.Connection], Result]) -> Result:
    """Does `work`, which sees the store as it is now, whatever is written meanwhile."""

    def in_one_transaction(connection: sa.Connection) -> Result:
        # The connection commits by itself; a transaction of the engine's own kind would lock out those who write.
        sqlite = connection.dialect.name == "sqlite"
        connection.exec_driver_sql("BEGIN" if sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return work(connection)
        finally:
            connection.exec_driver_sql("ROLLBACK")

    return store.backend.read(in_one_transaction)


def _rows(connection: sa.Connection, statement: sa.Select[Any]) -> Iterator[Any]:
    """Rows, a few at a time."""
    yield from connection.execute(statement.execution_options(yield_per=_STREAM))


def _among(connection: sa.Connection, statement: sa.Select[Any], column: sa.ColumnElement[Any], values: Iterable[str]) -> Iterator[Any]:
    """Rows of `statement` with one of `values` in `column`."""
    wanted = sorted(values)
    for first in range(0, len(wanted), _A_QUERY):
        yield from connection.execute(statement.where(column.in_(wanted[first : first + _A_QUERY])))


def _parts(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for first in range(0, len(rows), _A_QUERY):
        yield list(rows[first : first + _A_QUERY])


def _plain(row: Any, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """A row as columns of Python's own types."""
    mapping = row._mapping
    names = columns or [name for name in mapping if name != "id"]
    return {name: bytes(mapping[name]) if isinstance(mapping[name], memoryview) else mapping[name] for name in names}


def _json(record: bytes | None) -> dict[str, Any]:
    """A stored JSON object; empty if it is none."""
    try:
        stored = json.loads(ledger.from_bytes(record or b""))
    except (ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _purpose(record: bytes | None) -> str:
    return str(_json(record).get("purpose", "unknown"))


def _rater_names(connection: sa.Connection) -> dict[str, str]:
    return {row.rater: str(_json(row.identity).get("name", row.rater)) for row in connection.execute(sa.select(tables.rater))}


def _by_rater(connection: sa.Connection, table: sa.Table) -> dict[str, int]:
    rows = connection.execute(sa.select(table.c.rater, sa.func.count().label("number")).group_by(table.c.rater))
    return {row.rater: int(row.number) for row in rows}


def _keys(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table.c.question, table.c.rater, table.c.repeat)


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _sum(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.func.sum(column).label("total")


def _size(store: Store, connection: sa.Connection) -> int:
    if store.path is not None:
        files = (store.path, store.path.with_name(f"{store.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    names = sorted(table.name for table in tables.metadata.tables.values())
    sizes = (connection.execute(sa.select(sa.func.pg_total_relation_size(sa.func.to_regclass(name)))).scalar_one() for name in names)
    return sum(int(size) for size in sizes)


def _shown(row: Any) -> str:
    return f"({row.question}, {row.rater}, {row.repeat})"
