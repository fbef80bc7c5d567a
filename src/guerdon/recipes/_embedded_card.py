"""What is written beside the embedded rater's weights: what it is, what it is not, how it was made, and what was measured.

The card is JSON; its page, for people, is made from the JSON and from nothing else. Tables are Markdown and go by names, so that pages of
the documentation can be filled with them (`guerdon.recipes._study`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guerdon.evaluation.raters import NOT_TABLE_ONE
from guerdon.evaluation.statistics import Estimate
from guerdon.recipes import _study
from guerdon.recipes._embedded_evaluation import ALL_ACTIONS

Card = Mapping[str, Any]

WHAT = (
    "A small vision-language rater for full pictures of guerdon's BabyAI worlds. It reads frames, an instruction and the names of actions "
    "(never the simulator) and says for every action whether it hindered, did not matter or served, and how far the instruction is "
    "fulfilled."
)
_TRAINED_ON_ITS_WORLD = (
    "It was trained on this simulator's own labels, in worlds of the same families as those it is asked about. It stands in for a "
    "vision-language model where none is at hand, and is no evidence about what general vision-language models can do."
)
_NOT_COMPARED = "Its numbers must not be compared with those of published raters, which were trained on other things and for other worlds."
WHAT_NOT = (_TRAINED_ON_ITS_WORLD, _NOT_COMPARED, NOT_TABLE_ONE)

_PICTURES = (
    "Full pictures of BabyAI worlds with tiles of 8 pixels, of the four families that it was trained on. Everything else it refuses to "
    "judge."
)
_WORDS = "Instructions of one to six sub-tasks in the words of guerdon's BabyAI worlds. Other words it refuses."
_SHORTEST_WAYS = (
    "Whether an action served is measured by the shortest way that leaves all other things where they are. Where no way is known, nothing "
    "is measured."
)
_CHAINS = (
    "With a whole chain as instruction it has to find out from the window how much is done already; what a window does not show, it cannot "
    "know. The rows with full information say what the same reasoning makes of perfect looks; better reasoning may do better."
)
_BEHAVIOUR = (
    "The reasoning over windows and the calibration have seen behaviour as `guerdon collect babyai` records it, and some that strays more. "
    "What recordings of another kind of behaviour would do to it was not measured."
)
LIMITS = (_PICTURES, _WORDS, _SHORTEST_WAYS, _CHAINS, _BEHAVIOUR)

_MEASURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auroc": "AUROC"}
_EMBEDDED = ("embedded, sub-task's words", "embedded, whole chain")
_BLIND = ("per-action majority", "previous, this and next action", ALL_ACTIONS)
_TABLE = _BLIND[1]
_FULL = ("full information, sub-task's words", "full information, whole chain")
_SIDES = {"alone": "from the picture alone", "within": "within its window"}


def tables(card: Card) -> dict[str, str]:
    """Markdown tables by name: "summary", "controls", "reading", "kinds", "actions", "wordings", "progress", "preferences", "calibration",
    "engine", "speed", and "agreement NAME" for each distribution."""
    records = card["evaluation"]
    found = {f"agreement {record['name']}": _agreement(record) for record in records}
    controlled = [record for record in records if "controls" in record]
    return {
        "summary": _summary(records),
        **found,
        "kinds": _groups(records, "kind", "due"),
        "actions": _groups(records, "action", "done"),
        "wordings": _wordings(records),
        "controls": _controls(controlled),
        "reading": _reading(controlled),
        "progress": _progress(records),
        "preferences": _preferences(records),
        "calibration": _calibration(records),
        "engine": engine_table(card["engine"]["rows"]),
        "speed": _speed(card["speed"]),
    }


def value_of(key: str, card: Card) -> str:
    """What a page's mark is filled with: "table NAME", "minutes", "row RATER/MEASURE/DISTRIBUTION" (an
    estimate), or anything in the card by its path, such as "network/parameters". Raises KeyError."""
    kind, _, rest = key.partition(" ")
    if kind == "table":
        return tables(card)[rest]
    if key == "minutes":
        return f"{card['seconds']['total'] / 60:.0f}"
    if kind == "row":
        rater, measure, name = rest.split("/")
        return shown(_row(_record(card, name), rater)[measure])
    found: Any = card
    for part in key.split("/"):
        if not isinstance(found, Mapping):
            raise KeyError(key)
        found = found[part]
    return f"{found:,}" if isinstance(found, int) else f"{found:.3g}" if isinstance(found, float) else str(found)


def _record(card: Card, name: str) -> Mapping[str, Any]:
    by_name: dict[str, Mapping[str, Any]] = {record["name"]: record for record in card["evaluation"]}
    return by_name[name]


def _row(record: Mapping[str, Any], rater: str) -> Mapping[str, Any]:
    by_rater: dict[str, Mapping[str, Any]] = {row["rater"]: row for row in record["rows"]}
    return by_rater[rater]


def shown(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """An estimate of a card for a table; a dash for what is undefined. What is nearly 1 is told with more digits: it is not 1."""
    if estimate is None:
        return "–"
    if not signed and _NEARLY_ONE < estimate["value"] <= 1 and estimate["low"] is not None:
        return f"{_floored(estimate['value'])} [{_floored(estimate['low'])}, {_floored(estimate['high'])}]"
    return _study.shown(Estimate(**estimate), signed=signed)


_NEARLY_ONE = 0.99


def _floored(share: float) -> str:
    """Four decimals, never rounded up to 1."""
    return f"{math.floor(share * 10_000) / 10_000:.4f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


# --- tables ---------------------------------------------------------------------------------------------------------------------------


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    header = ["AUROC on", "serve", "transitions", *_EMBEDDED, *_BLIND, _FULL[1]]
    rows = [
        [
            record["words"], _percent(record["serving"]), str(record["transitions"]),
            *(shown(_row(record, rater)["auroc"]) for rater in (*_EMBEDDED, *_BLIND, _FULL[1])),
        ]
        for record in records
    ]  # fmt: skip
    return _study.table(header, rows)


def _agreement(record: Mapping[str, Any]) -> str:
    rows = [
        [row["rater"], *(shown(row[measure]) for measure in _MEASURES), shown(row["auroc_above_table"], signed=True)]
        for row in record["rows"]
    ]
    return _study.table(["rater", *_MEASURES.values(), "AUROC above the table of three actions"], rows)


def _groups(records: Iterable[Mapping[str, Any]], title: str, words: str) -> str:
    """AUROC by kind of sub-task or of action."""
    rows = []
    for record in records:
        by_group: dict[str, list[Mapping[str, Any]]] = {}
        for row in record[f"by_{title}"]:
            by_group.setdefault(row[title], []).append(row)
        for group, members in by_group.items():
            facts = [record["name"], group, str(members[0]["transitions"]), _percent(members[0]["serving"])]
            by_rater = {row["rater"]: row for row in members}
            rows.append([*facts, *(shown(by_rater[rater]["auroc"]) for rater in (*_EMBEDDED, _TABLE))])
    return _study.table(["AUROC on", words, "transitions", "serve", *_EMBEDDED, _TABLE], rows)


def _wordings(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        for rater, change in record.get("auroc_change", {}).items():
            if rater in _EMBEDDED:
                rows.append([rater, shown(_row(record, rater)["auroc"]), shown(change, signed=True)])
    return _study.table(["rater", "AUROC in held-out wordings", "difference from the wordings of recorded data"], rows)


def _controls(records: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            record["name"], row["words"], row["control"], shown(row["auroc"]), shown(row["auroc_change"], signed=True),
            shown(row["auroc_above_table"], signed=True), shown(row["score"]), shown(row["score_change"], signed=True),
        ]
        for record in records
        for row in record["controls"]["rows"]
    ]  # fmt: skip
    header = ["on", "words", "control", "AUROC", "change", "AUROC above the table of three actions", "mean score (0 to 10)", "change"]
    return _study.table(header, rows)


def _reading(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        found = record["controls"]["reading"]
        share = found["differ"] / found["transitions"] if found["transitions"] else None
        cells = (found[name] for name in ("auroc", "table_auroc", "follows"))
        changes = (found[name] for name in ("score_change", "score_change_known"))
        rows.append(
            [record["name"], *map(shown, cells), _percent(share), *(shown(change, signed=True) for change in changes)]
        )  # fmt: skip
    header = [
        "on", "AUROC with the truth under the wrong words", "of the table of three actions", "higher under the words that it serves",
        "share of actions that serve only one of the two", "change of the mean score", "for somebody who knows the truth",
    ]  # fmt: skip
    return _study.table(header, rows)


def _progress(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        for side, words in _SIDES.items():
            found = record["progress"][side]
            classes = [f"{shown(each['accuracy'])} ({_percent(each['majority'])})" for each in found["classes"]]
            rows.append([record["name"], words, shown(found["spearman"]), *classes])
    header = ["on", "progress judged", "Spearman with the true quality", *(f"{levels} classes (most frequent)" for levels in (2, 3, 4, 5))]
    return _study.table(header, rows)


def _preferences(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        for side, words in _SIDES.items():
            cells = [f"{shown(each['accuracy'])} ({each['pairs']})" for each in record["progress"][side]["preferences"]]
            rows.append([record["name"], words, *cells])
    ranges = [f"{each['above']:g} to {each['up_to']:g}" for record in records for each in record["progress"]["alone"]["preferences"][:-1]]
    header = ["on", "progress judged", *(f"differ by {each} (pairs)" for each in dict.fromkeys(ranges)), "all that differ (pairs)"]
    return _study.table(header, rows)


def _calibration(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        gaps = [f"{record['calibration'][side]['gap']:.3f}" for side in ("parts", "whole")]
        rows.append([record["name"], *gaps])
    return _study.table(["mean distance of probability and share, on", *_EMBEDDED], rows)


def engine_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the labels of a dataset are worth, by how they were asked for."""
    cells = []
    for row in rows:
        agreement = row.get("agreement") if row["method"] == "rg-vlm" else row
        measured = agreement or {}
        best_blind = [each["auroc"] for each in row.get("baselines", ()) if each["auroc"] is not None]
        cells.append(
            [
                f"{row['method']}, {row['words']}", str(row["labels"]), _percent(row["coverage"]), shown(measured.get("accuracy")),
                shown(measured.get("balanced_accuracy")), shown(measured.get("auroc")),
                shown(best_blind[-1]) if best_blind else "–", shown(measured.get("spearman")),
                _percent(row.get("undecided")), shown(measured.get("agreement")),
            ]
        )  # fmt: skip
    header = [
        "labelled", "labels", "coverage", "accuracy", "balanced", "AUROC", "AUROC of the table of three actions", "Spearman",
        "pairs called equal", "right where one is preferred",
    ]  # fmt: skip
    return _study.table(header, cells)


def _speed(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = [[row["level"], str(row["clauses"]), str(row["transitions"]), f"{row['windows_per_second']:.0f}"] for row in rows]
    return _study.table(["level", "sub-tasks", "transitions in a window", "windows a second, one core"], cells)


# --- the page -------------------------------------------------------------------------------------------------------------------------

_IN_SHORT = (
    "Everything below is measured on episodes of seeds that nothing was trained or calibrated on, with 95 % bootstrap intervals over "
    "episodes. Positive is an action that serves; it is called so from a probability of one half. The blind tables see actions only, and "
    "are made from episodes of yet other seeds."
)
_FULL_INFORMATION = (
    "Full information is the same reasoning over the window, told what each action did and how far there is to go. With a sub-task's own "
    "words it is right by construction, but for what the reasoning adds to it; with the whole chain it says what this reasoning makes of "
    "perfect looks. Better reasoning may do better; so may, by chance, looks that err. The network of the actions alone sees eight actions "
    "before and after, and no picture and no word."
)
_HELD_OUT = "The same episodes, every sub-task in a wording that never occurs in recorded data."
_CONTROLS = (
    "Another window's pictures: those of another episode, with this one's words and actions. Wrong instruction: every sub-task in the "
    "words of another task's that names other things ({visible} of them name things in the picture alone). Backwards: pictures and actions "
    "in the opposite order; the names of the actions then no longer fit. Changes are paired differences, bold where their interval leaves "
    "out zero. Most actions do the same for both instructions, so the last table measures verdicts under the wrong words against the truth "
    "under the wrong words, and how often an action that serves only one of the two scores higher under that one."
)
_PROGRESS = (
    "Of every picture that an action led to, judged by the whole chain. Classes are cut as the rater cuts them (equal widths, the best one "
    "from 0.9), those of the true quality alike. In brackets: the share of the most frequent class."
)
_PREFERENCES = (
    "Preferences: two pictures of one episode, which of them is further? Calling them equal is half right. Columns are by the size of the "
    "true difference."
)
_ENGINE = (
    "A dataset of two-rooms, labelled by `--vlm embedded` through the engine, the store and the parsers, in whole scores from 0 to 10 "
    "(half the scale and more says that an action serves). Labels of a copy without any ground truth: {equal}."
)


def page(card: Card) -> str:
    """The card for people, in Markdown."""
    found, records = tables(card), card["evaluation"]
    agreement = [f"### {record['words']}\n\n{_episodes(record)}\n\n{found['agreement ' + record['name']]}" for record in records]
    shares = [(record["name"], record["controls"]["in_the_picture"]) for record in records if "controls" in record]
    visible = ", ".join(f"{_percent(share)} on {name}" for name, share in shares)
    equal = "the same" if card["engine"]["equal_without_truth"] else "NOT the same"
    sections: list[tuple[str, list[str]]] = [
        ("What it is not", [_listed(card["not"])]),
        ("Facts", [_listed(_facts(card))]),
        ("Limits", [_listed(card["limits"])]),
        ("In short", [_IN_SHORT, found["summary"]]),
        ("Agreement, transition by transition", [_FULL_INFORMATION, *agreement]),
        ("By kind of sub-task, and by action", [found["kinds"], found["actions"]]),
        ("Held-out wordings", [_HELD_OUT, found["wordings"]]),
        ("Controls", [_CONTROLS.format(visible=visible), found["controls"], found["reading"]]),
        ("How far the instruction is fulfilled", [_PROGRESS, found["progress"], _PREFERENCES, found["preferences"]]),
        ("Calibration", [found["calibration"]]),
        ("As users get it", [_ENGINE.format(equal=equal), found["engine"]]),
        ("Speed", [found["speed"]]),
    ]
    text = [f"# {card['name']}", card["what"]]
    for title, parts in sections:
        text += [f"## {title}", *parts]
    return "\n\n".join(text) + "\n"


_STAGES = ("data", "looks", "windows", "calibration", "evaluation", "total")


def _facts(card: Card) -> list[str]:
    network, seconds = card["network"], {name: card["seconds"][name] for name in _STAGES if name in card["seconds"]}
    how = f"`{card['command']}`" if card["command"] else "from Python"
    size = f"{network['parameters']:,} weights, {network['bytes'] / 1e6:.1f} MB, {network['channels']} channels, {network['blocks']} blocks"
    return [
        f"{size}; digest {network['digest']}",
        f"made on {card['date']} with guerdon {card['package']} ({how}), seed {card['seed']}, threads {card['threads']}",
        f"{seconds['total'] / 60:.0f} minutes on {card['machine']}: " + _pairs({name: f"{each:.0f} s" for name, each in seconds.items()}),
        f"libraries: {_pairs(card['libraries'])}",
        f"sizes: {_pairs({name: f'{size:,}' for name, size in card['sizes'].items()})}",
        f"seeds: {_pairs(card['seeds'])}",
        f"last losses: {'; '.join(f'{stage}: {_pairs(_short(found))}' for stage, found in card['training'].items())}",
    ]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _short(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.3f}" for name, value in values.items()}


def _episodes(record: Mapping[str, Any]) -> str:
    unknown = f"; {record['unknown']} more of which that is unknown" if record["unknown"] else ""
    return f"{record['episodes']} episodes, {record['transitions']} transitions, {_percent(record['serving'])} serve{unknown}."


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
