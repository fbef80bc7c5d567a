"""What the reply store does inside one transaction: claims are granted or denied, attempts charged, answers kept.

Many operations share a transaction. What they need to know is read at once; they are then decided one after the other, in the order in
which they came, in Python; what they change is written at once. This is exact because a transaction that writes is the only one at its
time (`guerdon.asking._backends`), and the cost of a statement is shared by a wave of operations.

Money is counted in whole nano-dollars, rounded up, so that sums are exact. What counts against a run's ceiling is kept in the run's row:
`charged`, the sum over its attempts, and `reserved`, the sum over its claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from enum import Enum
from typing import Any

import sqlalchemy as sa

from guerdon.asking import _tables as tables
from guerdon.asking._owners import is_gone, is_there
from guerdon.records import Cause, Failure, Reply, Usage, digest

ACCOUNT_CAUSES: frozenset[Cause] = frozenset({"authentication", "quota"})
"""Causes that lie with the account, not with the question: never remembered as the final fate of a question."""

BATCH = "batch/"
"""Beginning of the names of owners that are no processes: requests that lie with a vendor."""
UNBILLED: frozenset[Cause] = frozenset(
    {"rate_limit", "quota", "overload", "authentication", "bad_request", "unsupported"}
)  # no vendor charges for these; whether a timeout was charged is unknown

LATE = 60.0
"""Seconds by which a process of this machine that is certainly still there may be late to renew its claims: its event loop was blocked."""

_LARGEST_AMOUNT = 1e9  # dollars; sums of nano-dollars stay far below 2^63


class Claim(Enum):
    """What became of the wish to send a request."""

    GRANTED = "granted"
    HELD = "held"
    """Somebody else is sending it."""
    IN_BATCH = "in batch"
    """It lies in a vendor's batch, or is being put into one: its answer may take a day, and comes only if somebody collects it."""
    TOO_DEAR = "too dear"
    """It would break the ceiling now; it may not once reservations have been given back."""


@dataclass(frozen=True)
class Key:
    """What an answer is stored under."""

    question: str
    rater: str
    repeat: int

    def columns(self) -> dict[str, Any]:
        """The key as column name -> value."""
        return {"question": self.question, "rater": self.rater, "repeat": self.repeat}


def nano_dollars(dollars: float) -> int:
    """`dollars` in whole nano-dollars, rounded up. Raises ValueError unless 0 <= dollars <= 1e9."""
    return _nano_dollars(dollars, ROUND_CEILING)


def nano_ceiling(dollars: float) -> int:
    """A ceiling of `dollars` in whole nano-dollars, rounded down. Raises ValueError unless 0 <= dollars <= 1e9."""
    return _nano_dollars(dollars, ROUND_FLOOR)


def _nano_dollars(dollars: float, rounding: str) -> int:
    if not is_amount(dollars):
        raise ValueError(f"an amount of money is finite, not negative and at most {_LARGEST_AMOUNT:g} dollars, got {dollars}")
    # The shortest text of a float is the number its writer meant: 0.07 is 70,000,000 nano-dollars, not one more.
    return int((Decimal(repr(float(dollars))) * 1_000_000_000).to_integral_value(rounding=rounding))


def is_amount(dollars: float | None) -> bool:
    """Whether `dollars` is a sum of money that can be counted."""
    return dollars is not None and 0 <= dollars <= _LARGEST_AMOUNT


# --- rows ---------------------------------------------------------------------------------------------------------------------------


def to_text(text: str) -> str:
    """`text` as every engine can keep it: half a surrogate pair and NUL are no text for a database."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


def to_bytes(text: str) -> bytes:
    """Bytes of `text`, whatever it holds. `from_bytes` is the inverse."""
    return text.encode("utf-8", "surrogatepass")


def from_bytes(body: bytes) -> str:
    """The text that `to_bytes` was given."""
    return bytes(body).decode("utf-8", "surrogatepass")


def _usage_columns(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "dollars": usage.dollars if usage.dollars is None or math.isfinite(usage.dollars) else None,
        "thinking_tokens": usage.thinking_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def attempt_columns(outcome: Reply | Failure) -> dict[str, Any]:
    """The columns of an attempt that tell how it ended."""
    columns = {"seconds": outcome.seconds, **_usage_columns(outcome.usage)}
    if isinstance(outcome, Reply):
        return {**columns, "outcome": "reply", "cause": None, "code": None, "status": None}
    remembered = outcome.final and outcome.cause not in ACCOUNT_CAUSES
    failure = {"cause": outcome.cause, "code": to_text(outcome.code), "status": outcome.status}
    return {**columns, **failure, "outcome": "final" if remembered else "transient"}


def answer_columns(reply: Reply) -> dict[str, Any]:
    """The columns of an answer, without its key."""
    body = to_bytes(reply.text)
    columns = {"body": body, "model": to_text(reply.model), "seconds": reply.seconds, "digest": body_digest(body)}
    return {**columns, **_usage_columns(reply.usage)}


def body_digest(body: bytes) -> str:
    """What tells whether a reply is still the one that came."""
    return digest("guerdon answer 1", bytes(body))


def _outcome(row: Any) -> Reply | Failure:
    usage = Usage(row.input_tokens, row.output_tokens, row.dollars, row.thinking_tokens, row.cached_tokens)
    if row.cause is not None:
        return Failure(row.cause, final=True, code=row.code or "", status=row.status, usage=usage, seconds=row.seconds)
    return Reply(from_bytes(row.body), model=row.model, usage=usage, seconds=row.seconds)


# --- statements ---------------------------------------------------------------------------------------------------------------------

_USAGE = ("seconds", "input_tokens", "output_tokens", "dollars", "thinking_tokens", "cached_tokens")
_OUTCOME = ("body", "model", "cause", "code", "status", *_USAGE)


def _outcome_columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [table.c[name] if name in table.c else sa.null().label(name) for name in _OUTCOME]


def _key_columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [table.c[name] for name in tables.KEY_COLUMNS]


def _of_key(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == sa.bindparam(f"of_{column.name}") for column in _key_columns(table)))


def _parameters(key: Key) -> dict[str, Any]:
    return {f"of_{name}": value for name, value in key.columns().items()}


# Statements are built once: building one costs several times what running it does.
_IS_FINAL = tables.attempt.c.outcome == sa.literal_column("'final'")
_FIND_ANSWER = sa.select(*_outcome_columns(tables.answer)).where(_of_key(tables.answer))
_FIND_FAILURE = sa.select(*_outcome_columns(tables.attempt)).where(_of_key(tables.attempt) & _IS_FINAL)
_CLAIMS_OF = sa.select(tables.claim).where(tables.claim.c.owner == sa.bindparam("whose"))
_CLAIM_OF = sa.select(tables.claim).where(_of_key(tables.claim) & (tables.claim.c.owner == sa.bindparam("whose")))
_CLAIMS_OF_RUN = sa.select(tables.claim).where(tables.claim.c.run == sa.bindparam("of_run"))
_SUMS = sa.select(tables.run.c.charged, tables.run.c.reserved).where(tables.run.c.run == sa.bindparam("of_run"))
_INSERT_ATTEMPT = sa.insert(tables.attempt)
_END_CLAIM = sa.delete(tables.claim).where(_of_key(tables.claim))
_LOST = sa.select(sa.func.max(tables.attempt.c.charged)).where(
    _of_key(tables.attempt) & (tables.attempt.c.outcome == sa.literal_column("'lost'")) & (tables.attempt.c.code == sa.bindparam("whose"))
)
_RENEW = sa.update(tables.claim).where(tables.claim.c.owner == sa.bindparam("whose")).values(expiry=sa.bindparam("until"))


class Statements:
    """What SQLite and PostgreSQL both do, each in its own words.

    Args:
        insert: `insert` of the dialect, which knows ON CONFLICT.
        among: condition that a column's value is in the list that a parameter holds; (column, parameter's name) -> condition.
    """

    def __init__(self, insert: Callable[[sa.Table], Any], among: Callable[[sa.ColumnElement[Any], str], sa.ColumnElement[bool]]) -> None:
        def of_keys(table: sa.Table) -> sa.ColumnElement[bool]:
            # Also finds keys that mix the parts of several; who reads sorts these out. Asking for whole keys costs far more.
            return sa.and_(*(among(column, f"among_{column.name}") for column in _key_columns(table)))

        answer, attempt = tables.answer, tables.attempt
        self.outcomes = sa.union_all(
            sa.select(*_key_columns(answer), *_outcome_columns(answer)).where(of_keys(answer)),
            sa.select(*_key_columns(attempt), *_outcome_columns(attempt)).where(of_keys(attempt) & _IS_FINAL),
        )
        self.claims = sa.select(tables.claim).where(of_keys(tables.claim))
        self.insert_request = insert(tables.request).on_conflict_do_nothing()
        self.insert_rater = insert(tables.rater).on_conflict_do_nothing()
        self.insert_answer = insert(tables.answer).on_conflict_do_nothing()
        batch = insert(tables.batch)
        self.set_batch = batch.on_conflict_do_update(
            index_elements=["batch"], set_={"size": batch.excluded.size}, where=tables.batch.c.state == sa.literal_column("'intended'")
        )
        self.insert_batch_item = insert(tables.batch_item).on_conflict_do_nothing()
        claim = insert(tables.claim)
        kept = {name: claim.excluded[name] for name in ("owner", "run", "claimed", "expiry", "reserved")}
        self.set_claim = claim.on_conflict_do_update(index_elements=tables.KEY_COLUMNS, set_=kept)
        run, new = tables.run, insert(tables.run)
        self.add_to_run = new.on_conflict_do_update(
            index_elements=["run"],
            set_={
                "charged": run.c.charged + new.excluded.charged,
                "reserved": run.c.reserved + new.excluded.reserved,
                "last_seen": new.excluded.last_seen,
                "name": sa.case((new.excluded.name == "", run.c.name), else_=new.excluded.name),
            },
        )


def find(connection: sa.Connection, key: Key, retry_failed: bool) -> Reply | Failure | None:
    """The answer under `key`, else (unless `retry_failed`) the failure that asking again would only repeat."""
    row = connection.execute(_FIND_ANSWER, _parameters(key)).first()
    if row is None and not retry_failed:
        row = connection.execute(_FIND_FAILURE, _parameters(key)).first()
    return None if row is None else _outcome(row)


def find_together(connection: sa.Connection, statements: Statements, questions: Sequence[tuple[Key, bool]]) -> list[Reply | Failure | None]:
    """`find` for many keys at once, each with its `retry_failed`."""
    answers, failures = _outcomes(connection, statements, {key for key, _ in questions})
    return [answers.get(key) or (None if retry_failed else failures.get(key)) for key, retry_failed in questions]


def _outcomes(connection: sa.Connection, statements: Statements, keys: Set[Key]) -> tuple[dict[Key, Reply], dict[Key, Failure]]:
    """Answers and final failures under any of `keys`."""
    answers: dict[Key, Reply] = {}
    failures: dict[Key, Failure] = {}
    for key, row in _rows_of(connection, statements.outcomes, keys):
        outcome = _outcome(row)
        if isinstance(outcome, Reply):
            answers[key] = outcome
        else:
            failures[key] = outcome
    return answers, failures


def _rows_of(connection: sa.Connection, statement: sa.Executable, keys: Set[Key]) -> Iterator[tuple[Key, Any]]:
    wanted = {f"among_{name}": sorted({getattr(key, name) for key in keys}) for name in tables.KEY_COLUMNS}
    for row in connection.execute(statement, wanted):
        key = Key(row.question, row.rater, row.repeat)
        if key in keys:
            yield key, row


# --- operations ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TakeClaim:
    """The wish to send a request. Result: an outcome that is there already, or a `Claim`."""

    key: Key
    owner: str
    lease: float
    run: str
    retry_failed: bool
    reserved: int | None
    """Nano-dollars; None if nobody knows what the request may cost."""
    ceiling: int | None
    """Nano-dollars that the run may spend; None for no limit."""


@dataclass(frozen=True)
class Record:
    """An attempt that has ended. Result: the outcome that counts."""

    key: Key
    outcome: Reply | Failure
    run: str
    started: float
    request: bytes
    identity: bytes | None
    """Who was asked; None if that is known to be written down."""
    owner: str | None
    """Whose claim it ends; None for anybody's."""
    only_held: bool = False
    """Write nothing if `owner` holds no such claim any more, unless it is the first answer."""


@dataclass(frozen=True)
class Renew:
    """Extends all claims of an owner."""

    owner: str
    lease: float


@dataclass(frozen=True)
class EndClaims:
    """Ends claims of an owner: all, or the one of `key`."""

    owner: str
    key: Key | None
    sent: bool
    """True if the requests may have been sent: what was reserved for them stays spent."""


@dataclass(frozen=True)
class Execute:
    """Statements with their rows, carried out as they are."""

    statements: Sequence[tuple[sa.Executable, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class BeginRun:
    """Writes down a run and its readable name."""

    run: str
    name: str


@dataclass(frozen=True)
class Hold:
    """Counts the claims of an owner. Result: how many there are, and seconds until the first of them lapses (0 if there is none)."""

    owner: str


@dataclass(frozen=True)
class EndDeadClaims:
    """Ends the claims of a run that have lapsed, or whose holder is known to be gone: nobody knows what became of their requests. Batches
    outlive their processes and are left alone."""

    run: str


Operation = TakeClaim | Record | Renew | EndClaims | EndDeadClaims | Execute | BeginRun | Hold


def carry_out(
    connection: sa.Connection, statements: Statements, operations: Sequence[Operation], now: float, *, overdue: float = 0.0
) -> list[Any]:
    """Carries out operations, as if one after the other, and returns their results in order.

    Args:
        connection: in a transaction that no other writes beside.
        statements: of the connection's dialect.
        operations: what to do.
        now: seconds since 1970 by the one clock that all users of the store share.
        overdue: seconds for which nobody can be blamed for not having renewed a claim.
    """
    results: list[Any] = []
    wave: list[TakeClaim | Record] = []

    def decide() -> None:
        if wave:
            results.extend(_Wave(connection, statements, wave, now, overdue).decide())
            wave.clear()

    for operation in operations:
        if isinstance(operation, TakeClaim | Record):
            wave.append(operation)
            continue
        decide()  # what comes before is seen by what follows
        if isinstance(operation, Hold):
            until = [row.expiry for row in connection.execute(_CLAIMS_OF, {"whose": operation.owner})]
            results.append((len(until), min(until) - now if until else 0.0))
            continue
        _carry_out_alone(connection, statements, operation, now, overdue)
        results.append(None)
    decide()
    return results


def _carry_out_alone(
    connection: sa.Connection,
    statements: Statements,
    operation: Renew | EndClaims | EndDeadClaims | Execute | BeginRun,
    now: float,
    overdue: float,
) -> None:
    if isinstance(operation, Renew):
        connection.execute(_RENEW, {"whose": operation.owner, "until": now + operation.lease})
    elif isinstance(operation, EndClaims):
        _end_claims(connection, statements, _claims_of(connection, operation), now, sent=operation.sent)
    elif isinstance(operation, EndDeadClaims):
        of_run = [_Held.of(row) for row in connection.execute(_CLAIMS_OF_RUN, {"of_run": operation.run})]
        dead = [held for held in of_run if not held.owner.startswith(BATCH) and held.is_over(now, overdue)]
        _end_claims(connection, statements, dead, now, sent=True)
    elif isinstance(operation, Execute):
        for statement, rows in operation.statements:
            if rows:
                connection.execute(statement, rows)
    else:
        changes = _Changes()
        changes.names[operation.run] = operation.name
        changes.write(connection, statements, now)


@dataclass(frozen=True)
class _Held:
    """A claim that is in the store."""

    key: Key
    owner: str
    run: str
    claimed: float
    expiry: float
    reserved: int | None

    @classmethod
    def of(cls, row: Any) -> _Held:
        return cls(Key(row.question, row.rater, row.repeat), row.owner, row.run, row.claimed, row.expiry, row.reserved)

    def is_over(self, now: float, overdue: float) -> bool:
        """Whether nobody is to be expected to come back to it: its holder is gone, or has been silent for too long."""
        if self.expiry >= now - overdue:
            return is_gone(self.owner)
        return self.expiry < now - overdue - LATE or not is_there(self.owner)

    def columns(self) -> dict[str, Any]:
        kept = {"owner": self.owner, "run": self.run, "claimed": self.claimed, "expiry": self.expiry, "reserved": self.reserved}
        return {**self.key.columns(), **kept}


@dataclass
class _Sums:
    """What counts against a run's ceiling, or a change of it, in nano-dollars."""

    charged: int = 0
    reserved: int = 0


@dataclass
class _Changes:
    """Attempts and sums of runs that are still to be written."""

    attempts: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, _Sums] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Readable names of runs, new or changed."""

    def of(self, run: str) -> _Sums:
        return self.sums.setdefault(run, _Sums())

    def attempt(self, key: Key, run: str, started: float, charged: int, columns: Mapping[str, Any]) -> None:
        self.attempts.append({**key.columns(), "run": run, "started": started, "charged": charged, **columns})
        self.of(run).charged += charged

    def lose(self, held: _Held) -> None:
        """A claim whose request may have been sent, and nobody knows what became of it: what was reserved stays spent."""
        free = held.reserved == 0
        nothing = dict.fromkeys(("cause", "status", "input_tokens", "output_tokens", "thinking_tokens", "cached_tokens"))
        columns = {**nothing, "outcome": "lost", "code": held.owner, "seconds": 0.0, "dollars": 0.0 if free else None}
        self.attempt(held.key, held.run, held.claimed, held.reserved or 0, columns)
        self.of(held.run).reserved -= held.reserved or 0

    def write(self, connection: sa.Connection, statements: Statements, now: float) -> None:
        if self.attempts:
            connection.execute(_INSERT_ATTEMPT, self.attempts)
        rows = []
        for run in sorted(self.sums.keys() | self.names.keys()):
            sums = self.sums.get(run, _Sums())
            money = {"charged": sums.charged, "reserved": sums.reserved}
            if not run and not any(money.values()):
                continue  # claims of nobody's run that reserve nothing
            rows.append({"run": run, "name": self.names.get(run, ""), "first_seen": now, "last_seen": now, **money})
        if rows:
            connection.execute(statements.add_to_run, rows)


def _claims_of(connection: sa.Connection, operation: EndClaims) -> list[_Held]:
    whose = {"whose": operation.owner}
    if operation.key is None:
        rows = connection.execute(_CLAIMS_OF, whose)
    else:
        rows = connection.execute(_CLAIM_OF, {**whose, **_parameters(operation.key)})
    return [_Held.of(row) for row in rows]


def _end_claims(connection: sa.Connection, statements: Statements, ended: Sequence[_Held], now: float, *, sent: bool) -> None:
    changes = _Changes()
    for held in ended:
        if sent:
            changes.lose(held)
        else:
            changes.of(held.run).reserved -= held.reserved or 0
    if ended:
        connection.execute(_END_CLAIM, [_parameters(held.key) for held in ended])
        changes.write(connection, statements, now)


class _Wave:
    """Claims and attempts that are decided together: what the store knows of their keys, and what they change."""

    def __init__(
        self, connection: sa.Connection, statements: Statements, wave: Sequence[TakeClaim | Record], now: float, overdue: float
    ) -> None:
        self._connection, self._statements, self._wave, self._now, self._overdue = connection, statements, wave, now, overdue
        keys = {operation.key for operation in wave}
        ceilings = {operation.run for operation in wave if isinstance(operation, TakeClaim) and operation.ceiling is not None}
        self._answers, self._failures = _outcomes(connection, statements, keys)
        self._before = {key: _Held.of(row) for key, row in _rows_of(connection, statements.claims, keys)}
        self._claims = dict(self._before)
        self._sums = {run: _spent(connection, run) for run in ceilings}
        self._changes = _Changes()
        self._new_answers: list[dict[str, Any]] = []

    def decide(self) -> list[Any]:
        results = [self._claim(wish) if isinstance(wish, TakeClaim) else self._record(wish) for wish in self._wave]
        self._write()
        return results

    def _claim(self, wish: TakeClaim) -> Reply | Failure | Claim:
        found = self._answers.get(wish.key) or (None if wish.retry_failed else self._failures.get(wish.key))
        if found is not None:
            return found
        held = self._claims.get(wish.key)
        if held is not None and not held.is_over(self._now, self._overdue):
            return Claim.IN_BATCH if held.owner.startswith(BATCH) else Claim.HELD
        if wish.ceiling is not None and self._spent(wish.run) + (wish.reserved or 0) > wish.ceiling:
            return Claim.TOO_DEAR
        if held is not None:
            self._changes.lose(held)
        self._claims[wish.key] = _Held(wish.key, wish.owner, wish.run, self._now, self._now + wish.lease, wish.reserved)
        self._changes.of(wish.run).reserved += wish.reserved or 0
        return Claim.GRANTED

    def _spent(self, run: str) -> int:
        changed = self._changes.of(run)
        return self._sums[run] + changed.charged + changed.reserved

    def _record(self, record: Record) -> Reply | Failure:
        key, outcome = record.key, record.outcome
        held = self._claims.get(key)
        ended = held if held is not None and record.owner in (None, held.owner) else None
        if ended is None and record.only_held and (isinstance(outcome, Failure) or key in self._answers):
            return self._answers.get(key, outcome)
        if ended is not None:
            del self._claims[key]
            self._changes.of(ended.run).reserved -= ended.reserved or 0
            charged = _charge(outcome, ended.reserved)
        else:  # what was charged when its claim was lost is not charged once more
            charged = max(0, _charge(outcome, None) - self._charged_as_lost(record))
        self._changes.attempt(key, record.run, record.started, charged, attempt_columns(outcome))
        if isinstance(outcome, Failure):
            if outcome.final and outcome.cause not in ACCOUNT_CAUSES:
                self._failures[key] = replace(outcome, retry_after=None)
            return outcome
        if key in self._answers:
            return self._answers[key]
        self._answers[key] = outcome
        self._new_answers.append({**key.columns(), **answer_columns(outcome)})
        return outcome

    def _charged_as_lost(self, record: Record) -> int:
        """Nano-dollars that were charged when the owner's claim on the key was lost; 0 if it was not."""
        if record.owner is None:
            return 0
        lost = {**record.key.columns(), "outcome": "lost", "code": record.owner}
        now = [int(attempt["charged"]) for attempt in self._changes.attempts if lost.items() <= attempt.items()]
        before = self._connection.execute(_LOST, {**_parameters(record.key), "whose": record.owner}).scalar_one()
        return max([int(before or 0), *now])

    def _write(self) -> None:
        execute, statements = self._connection.execute, self._statements
        records = [record for record in self._wave if isinstance(record, Record)]
        if requests := [{"question": r.key.question, "record": r.request, "first_asked": r.started} for r in records]:
            execute(statements.insert_request, requests)
        if raters := {r.key.rater: r.identity for r in records if r.identity is not None}:
            execute(statements.insert_rater, [{"rater": rater, "identity": identity} for rater, identity in raters.items()])
        if self._new_answers:
            execute(statements.insert_answer, self._new_answers)
        if ended := [_parameters(key) for key in self._before if key not in self._claims]:
            execute(_END_CLAIM, ended)
        if taken := [held.columns() for key, held in self._claims.items() if self._before.get(key) != held]:
            execute(statements.set_claim, taken)
        self._changes.write(self._connection, statements, self._now)


def _charge(outcome: Reply | Failure, reserved: int | None) -> int:
    """Nano-dollars an attempt counts for: its price; nothing if no vendor bills such a failure; else the most it can have cost."""
    dollars = outcome.usage.dollars
    if dollars is not None and is_amount(dollars):
        return nano_dollars(dollars)
    if isinstance(outcome, Failure) and outcome.cause in UNBILLED:
        return 0
    return reserved or 0


def _spent(connection: sa.Connection, run: str) -> int:
    row = connection.execute(_SUMS, {"of_run": run}).first()
    return 0 if row is None else int(row.charged + row.reserved)
