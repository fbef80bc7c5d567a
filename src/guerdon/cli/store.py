"""Look into the reply store, check it, hand on what a run used.

    guerdon store list             runs, raters, and what they cost
    guerdon store costs [RUN]      costs by rater and purpose (first turn,
                                   second turn, repair)
    guerdon store verify           is everything what its key says? One line a
                                   fault; exit status 1 if there is any
    guerdon store export RUN FILE  all that a run asked or found, in one file;
                                   `--vlm replay:FILE` serves it
    guerdon store import FILE      adds such a file to the store; never changes
                                   what is there

RUN is a run folder, or a name or id that `list` shows. Every action takes
--store FILE or --store postgresql://user@host/database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from guerdon.asking.archive import Counts, Share
from guerdon.asking.store import Costs, RunInfo
from guerdon.cli import _show
from guerdon.cli._parse import Actions, carry_out
from guerdon.recipes import store


def main(arguments: Sequence[str]) -> int:
    """`guerdon store list|costs|verify|export|import ...`."""
    return carry_out("store", "action on the store", __doc__ or "", "", _ACTIONS, arguments)


_NUMBERS = ("asked", "answered", "failed", "lost", "tokens in", "tokens out")
_MONEY = ("dollars", "counted", "unknown", "reserved")


def _list(config: store.Config) -> int:
    found = store.list_.of(config)
    _show.table(
        ("run", *_NUMBERS),
        [(_called(run), *_asked(run.costs)) for run in found.runs] + [("all", *_asked(_total([run.costs for run in found.runs])))],
        title="what was asked",
    )
    _show.table(
        ("run", *_MONEY, "first", "last"),
        [(_called(run), *_money(run.costs), _day(run.first), _day(run.last)) for run in found.runs]
        + [("all", *_money(_total([run.costs for run in found.runs])), "", "")],
        title="dollars (counted: what counts for a ceiling; unknown: requests without a price)",
    )
    failed = [(_called(run), cause, number) for run in found.runs for cause, number in run.costs.failures.items()]
    if failed:
        _show.table(("run", "failed attempts by cause", "number"), failed)
    _show.table(("rater", "attempts", "answers"), [(rater.name, rater.attempts, rater.answers) for rater in found.raters])
    print(f"store: {found.name}")
    print(f"{found.requests:,} requests, {found.attempts:,} attempts, {found.answers:,} answers, {found.size / 1e6:,.1f} MB")
    return 0


def _costs(config: store.CostsConfig) -> int:
    found = store.costs.of(config)
    for rater in dict.fromkeys(share.rater for share in found):
        _by_purpose(rater, [share for share in found if share.rater == rater])
    total = _total([share.costs for share in found])
    dollars = f"${total.dollars:.4f} known, ${total.charged:.4f} counted, price of {total.dollars_unknown:,} unknown"
    print(f"all: {total.requests:,} requests, {dollars}")
    return 0


def _by_purpose(rater: str, shares: Sequence[Share]) -> None:
    rows = [(share.purpose, share.costs) for share in shares] + [("all", _total([share.costs for share in shares]))]
    _show.table(("purpose", *_NUMBERS), [(purpose, *_asked(costs)) for purpose, costs in rows], title=rater)
    money = [(purpose, *_known(costs), *_kinds(costs)) for purpose, costs in rows]
    _show.table(("purpose", "dollars", "counted", "unknown", "thinking", "cached"), money)


def _verify(config: store.Config) -> int:
    faults = store.verify.of(config)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}" if faults else "the store is sound")
    return 1 if faults else 0


def _export(config: store.ExportConfig) -> int:
    print(f"{_counted(store.export.of(config))}")
    print(f"written: {config.file}")
    print(f"Whoever has it gets the same replies with `--vlm replay:{config.file}`, or after `guerdon store import {config.file}`.")
    return 0


def _import(config: store.ImportConfig) -> int:
    imported = store.import_.of(config)
    print(f"in the bundle: {_counted(imported.found)}")
    print(f"new here:      {_counted(imported.new)}")
    if imported.differing:
        print(f"{imported.differing} answers were there already in other words; the store's own were kept")
    return 0


def _counted(counts: Counts) -> str:
    return f"{counts.requests:,} requests, {counts.raters:,} raters, {counts.attempts:,} attempts, {counts.answers:,} answers"


def _called(run: RunInfo) -> str:
    return run.name or run.id or "(none)"


def _asked(costs: Costs) -> tuple[object, ...]:
    tokens = (f"{costs.input_tokens:,}", f"{costs.output_tokens:,}")
    return costs.requests, costs.answered, sum(costs.failures.values()), costs.lost, *tokens


def _known(costs: Costs) -> tuple[object, ...]:
    return f"{costs.dollars:.4f}", f"{costs.charged:.4f}", costs.dollars_unknown


def _money(costs: Costs) -> tuple[object, ...]:
    return *_known(costs), f"{costs.reserved:.4f}"


def _kinds(costs: Costs) -> tuple[object, ...]:
    return f"{costs.thinking_tokens:,}", f"{costs.cached_tokens:,}"


def _total(costs: Iterable[Costs]) -> Costs:
    """The sum of several costs."""
    total = Costs(0, 0, 0, 0, 0.0, 0, 0.0)
    for each in costs:
        causes = {*total.failures, *each.failures}
        total = Costs(
            requests=total.requests + each.requests,
            answered=total.answered + each.answered,
            input_tokens=total.input_tokens + each.input_tokens,
            output_tokens=total.output_tokens + each.output_tokens,
            dollars=total.dollars + each.dollars,
            dollars_unknown=total.dollars_unknown + each.dollars_unknown,
            seconds=total.seconds + each.seconds,
            failures={cause: total.failures.get(cause, 0) + each.failures.get(cause, 0) for cause in causes},
            thinking_tokens=total.thinking_tokens + each.thinking_tokens,
            cached_tokens=total.cached_tokens + each.cached_tokens,
            lost=total.lost + each.lost,
            charged=total.charged + each.charged,
            reserved=total.reserved + each.reserved,
        )
    return total


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


_ACTIONS: Actions = {
    "list": (store.Config, _list, "Runs and raters that the store knows, and what they cost."),
    "costs": (store.CostsConfig, _costs, "What was spent, by rater and purpose."),
    "verify": (store.Config, _verify, "Checks that everything in the store is what its key says."),
    "export": (store.ExportConfig, _export, "Writes all that a run asked or found in the store to one file."),
    "import": (store.ImportConfig, _import, "Adds what `guerdon store export` has written."),
}
