"""Look at a rater before it is paid for a whole dataset.

guerdon raters consistency DATASET --run RUN --vlm RATER
    asks about an expert's pictures again and again, with 2, 3, 4 and 5
    classes: does it say the same, and does it agree with success?
"""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._asking import settings
from guerdon.errors import UnknownName
from guerdon.recipes import consistency

_ACTIONS = ("consistency",)
_LEGEND = """agrees: share of the answers outside the middle class ("decided") that agree
with success and failure, with its standard deviation over the repeats.
balanced: the same, pictures of success and of failure weighing alike.
same: probability of the same class again. alpha: Krippendorff's reliability, 0
is chance. order: rank correlation with time."""


def main(arguments: Sequence[str]) -> int:
    """`guerdon raters consistency DATASET --run RUN --vlm RATER`. The exit status is 1 if a ceiling stopped it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: guerdon raters ACTION ...\n\n{__doc__}")
        return 0
    if arguments[0] not in _ACTIONS:
        raise UnknownName("action on raters", arguments[0], _ACTIONS)
    description = (__doc__ or "").partition("\n")[0]
    config = settings("raters consistency", description, consistency.Config, arguments[1:])
    measured = consistency.raters_consistency.of(config)
    _show.table(
        ("classes", "answered", "agrees", "balanced", "same", "alpha", "decided", "order"),
        [
            (
                str(row.levels), _short(row.answered), _plus_minus(row.agreement, row.agreement_deviation), _short(row.balanced_agreement),
                _short(row.same_again), _short(row.reliability), _short(row.decided), _short(row.order),
            )
            for row in measured.rows
        ],
        title=f"{' then '.join(config.vlm)}: {measured.rows[0].repeats} answers about each of {measured.rows[0].pictures} pictures",
    )  # fmt: skip
    print(_LEGEND)
    if measured.stopped:
        print(measured.stopped)
    print(f"written: {measured.table}\nwritten: {measured.picture}")
    return 1 if measured.stopped else 0


def _short(value: float) -> str:
    """Two decimals, so that the table fits into 80 columns; a dash for what is unknown."""
    return "-" if value != value else f"{value:.2f}"


def _plus_minus(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" if deviation != deviation else f"{mean:.2f} ± {deviation:.2f}"
