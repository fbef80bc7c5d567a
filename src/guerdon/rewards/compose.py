"""Composing a reward column from label sets and from the rewards of reward models: `0.1 * rg_vlm + sparse`, `0.1 * erl_vlm + sparse`.

An expression uses + - * / and brackets over numbers and these names and functions, each giving one number per transition:

    NAME            a label set of the run, scaled to [0, 1] by its own scale (`rg_vlm` is score / 10); hyphens are written as underscores
    NAME.raw        the same on the label set's own scale (0..10)
    NAME.spread     how far repeated answers lie apart: their population standard deviation, scaled as NAME is (`rg_vlm.spread` is that of
                    the scores / 10), so that `rg_vlm - 0.5 * rg_vlm.spread` is a cautious reward; unknown for a single answer and where a
                    label was set by hand
    sparse          1 at the last transition of an episode that ended by success (terminated), else 0; RG-VLM's baseline reward
    original        the rewards stored in the dataset itself
    oracle          1 where the dataset's ground truth says that the action served the sub-task at hand, else 0 (privileged, for
                    comparisons only)
    potential(x)    gamma * phi(t+1) - phi(t) with phi(t) = (x(0) + ... + x(t-1)) / T: potential-based shaping, policy invariant
                    (Ng, Harada and Russell 1999)
    shuffled(x)     the known values of x in random order within each episode: same distribution, no content (a control)
    constant(NAME)  the highest value that NAME can have wherever it has a value: what a rater who praises everything would give (a
                    control); of NAME.spread it is 0, because such a rater never wavers

NAME may also be a reward column that a reward model gave (`guerdon relabel`): it is scaled to [0, 1] by the model's own scale (`erl_vlm` is
(reward + 1) / 2), and NAME.raw is the reward as it is. It has no spread; with `--pessimism` that command holds the disagreement of the
model's members against a reward. Composed columns have no scale and cannot be named: their expression is written in their place.

The discount that a policy should learn with belongs to the reward, and is kept with it (`usual_discount`).

Unknown stays unknown: a transition without a label has no reward, whatever else the expression adds. Rows are never dropped.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from guerdon.errors import RewardError
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet, transition_values
from guerdon.records import EpisodeInfo
from guerdon.rewards.column import RewardColumn, Values
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]
Column = Literal["value", "spread"]
"""Which number of a label."""

_OPERATORS: dict[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_FUNCTIONS = ("potential", "shuffled", "constant")
_BUILT_IN = ("sparse", "original", "oracle")
_ATTRIBUTES = ("raw", "spread")
RESERVED = frozenset({*_BUILT_IN, *_FUNCTIONS})
"""Names that mean something in expressions, so that no label set and no reward of a model can have them."""


def potential_shaping(potential: npt.ArrayLike, gamma: float) -> Array:
    """F(t) = gamma * phi(t+1) - phi(t), whose discounted sum telescopes to gamma^T phi(T) - phi(0).

    Args:
        potential: (T+1,) phi of each observation.

    Returns:
        (T,)
    """
    phi = np.asarray(potential, np.float64)
    return gamma * phi[1:] - phi[:-1]


NEXT_ACTIONS = 0.8
"""Discount factor that suits rewards which say what single actions are worth."""
WHOLE_TASK = 0.97
"""Discount factor that suits rewards of states and of the end."""


def usual_discount(expression: str, sources: Mapping[str, LabelSet | RewardColumn]) -> float:
    """The discount factor that suits a reward: 0.8 if it pays scores of single actions, and the end no more than the best score, else 0.97.

    A score says already what its action is worth for the task, so looking far ahead adds nothing but the time that the task still takes.
    What pays mainly at the end, and what rates states, has to be looked ahead for. Measured on 100 BabyAI tasks: docs/results/rg-vlm.md.

    Args:
        expression: of a reward column.
        sources: label sets and rewards of reward models by name; those that the expression uses, at least.

    Raises:
        RewardError: if it cannot be read.
    """
    tree = _parse(expression)
    scales = {name: source.scale or (0.0, 1.0) for name, source in sources.items() if source.of_single_actions} | {"oracle": (0.0, 1.0)}
    try:
        nothing, best, end = (_paid(tree, scales, score, end) for score, end in ((0, 0), (1, 0), (0, 1)))
    except (KeyError, ZeroDivisionError):
        return WHOLE_TASK
    return NEXT_ACTIONS if best > nothing and end - nothing <= best - nothing else WHOLE_TASK


def _paid(node: ast.expr, scales: Mapping[str, tuple[float, float]], score: float, end: float) -> float:
    """What an expression pays for an action of a score, from 0 to 1, and the end. Raises KeyError if it names anything else than scores of
    single actions (`scales`) and the end, ZeroDivisionError if it divides by zero."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id="sparse"):
            return end
        case ast.Name(id=name) if name in scales:
            return score
        case ast.Attribute(value=ast.Name(id=name), attr=column):
            low, high = scales[name]
            return low + score * (high - low) if column == "raw" else 0.0
        case ast.BinOp(left=left, op=op, right=right):
            sides = [np.array(_paid(side, scales, score, end)) for side in (left, right)]
            if isinstance(op, ast.Div) and not sides[1]:
                raise ZeroDivisionError
            with np.errstate(over="ignore", invalid="ignore"):
                return float(_OPERATORS[type(op)](*sides))
        case ast.UnaryOp(operand=operand):
            return -_paid(operand, scales, score, end)
        case ast.Call(func=ast.Name(id="shuffled" | "constant"), args=[argument]):
            return _paid(argument, scales, score, end)
    raise KeyError(ast.unparse(node))


def names_in(expression: str) -> set[str]:
    """Names of the label sets and reward columns that an expression uses. Raises RewardError if it cannot be read."""
    used = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return used - RESERVED


def controls(expression: str) -> dict[str, str]:
    """The expression with every label set and reward column replaced by one without content: "constant" and "shuffled". Empty if it uses
    none.

    >>> controls("0.1 * rg_vlm + sparse")
    {'constant': '0.1 * constant(rg_vlm) + sparse', 'shuffled': '0.1 * shuffled(rg_vlm) + sparse'}
    """
    labels = names_in(expression)
    return {name: ast.unparse(_Wrapped(labels, name).visit(_parse(expression))) for name in ("constant", "shuffled") if labels}


class _Wrapped(ast.NodeTransformer):
    """Puts the names of label sets into a function."""

    def __init__(self, labels: set[str], function: str) -> None:
        self._labels, self._function = labels, function

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._wrap(node) if node.id in self._labels else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._wrap(node)

    def _wrap(self, node: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(self._function, ast.Load()), [node], [])


def compose(
    label_sets: Mapping[str, LabelSet], dataset: Dataset, expression: str, *, columns: Mapping[str, RewardColumn] | None = None,
    gamma: float = 0.97, seed: int = 0,
) -> RewardColumn:  # fmt: skip
    """The reward column that `expression` describes (see the module's docstring).

    Args:
        label_sets: by name as used in the expression (underscores).
        columns: reward columns that a model gave, by name.
        gamma: discount factor, used by `potential` only.
        seed: for `shuffled` only.

    Raises:
        RewardError: for an expression that cannot be read, an unknown name, a name that is both, a column without a scale, an infinite
            reward, or labels or rewards of another dataset.
    """
    tree = _parse(expression)
    columns = columns or {}
    where = f"expression '{expression}'"
    names = names_in(expression)
    for name in sorted(names & set(label_sets) & set(columns)):
        cure = "Make one of the two again under another name."
        raise RewardError(f"'{name}' is the name of a label set and of a reward column", where=where, cure=cure)
    unknown = names - set(label_sets) - set(columns)
    if unknown:
        known = ", ".join(sorted([*label_sets, *columns, *_BUILT_IN, *(f"{name}(...)" for name in _FUNCTIONS)]))
        what = "label set or reward column" if columns else "label set"
        raise RewardError(f"no {what} '{min(unknown)}'; there are: {known}", where=where)
    infos = list(dataset.episodes())
    used = {name: label_sets[name] for name in sorted(names - set(columns))}
    used_columns = {name: columns[name] for name in sorted(names & set(columns))}
    _refuse_other_data(used, used_columns, dataset)
    sources = _sources(tree, used, used_columns, {info.index: info.length for info in infos}, where)
    values: Values = {}
    for info in infos:
        for annotation in range(max(1, len(info.annotations))):
            terms = _Terms(dataset, info, annotation, sources, gamma, seed)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                values[info.index, annotation] = np.broadcast_to(terms.evaluate(tree), (info.length,)).astype(np.float32)
    if any(np.isinf(array).any() for array in values.values()):
        raise RewardError("it divides by zero, or its numbers are too large", where=where)
    metadata = {
        "expression": expression,
        "labels": {name: label_set.fingerprint for name, label_set in used.items()},
        "dataset": dataset.fingerprint,
        "gamma": gamma,
        "seed": seed,
    }
    made_from = {"columns": {name: column.fingerprint for name, column in used_columns.items()}} if used_columns else {}
    return RewardColumn(values, metadata | made_from)


def _refuse_other_data(label_sets: Mapping[str, LabelSet], columns: Mapping[str, RewardColumn], dataset: Dataset) -> None:
    for name, label_set in label_sets.items():
        if label_set.metadata.get("dataset") != dataset.fingerprint:
            cure = "Label this dataset, in a run folder of its own."
            raise RewardError(f"the label set '{name}' was made from another dataset", cure=cure)
    for name, column in columns.items():
        if column.metadata.get("dataset") != dataset.fingerprint:
            raise RewardError(f"the reward column '{name}' was made from another dataset", cure="Make it for this one: guerdon relabel")


@dataclass(frozen=True)
class _Source:
    """A label set or a reward column, as numbers for each transition."""

    scale: tuple[float, float]
    """Lowest and highest value; NaN where there are no bounds, and then only NAME.raw is used."""
    numbers: Mapping[Column, Values]


def _sources(
    tree: ast.expr, label_sets: Mapping[str, LabelSet], columns: Mapping[str, RewardColumn], lengths: Mapping[int, int], where: str
) -> dict[str, _Source]:
    """What the names of an expression stand for. Raises RewardError for a column that is used as it cannot be."""
    scaled, raw, spread = _uses(tree)
    uses: dict[Column, set[str]] = {"value": scaled | raw, "spread": spread}
    sources: dict[str, _Source] = {}
    for name, label_set in label_sets.items():
        numbers = {
            kind: transition_values(label_set, lengths, column=kind, source=f"labels/{name}.parquet")
            for kind, names in uses.items()
            if name in names
        }
        sources[name] = _Source(label_set.scale, numbers)
    for name, column in columns.items():
        if not column.by_model:
            made = column.metadata.get("expression", "")
            what = f"'{name}' is a composed reward column, which has no scale and cannot be named in an expression"
            raise RewardError(what, where=where, cure=f"Write its own expression in its place: {made}")
        if name in spread:
            raise RewardError(f"'{name}' is a reward column, which has no spread", where=where, cure="See --pessimism of guerdon relabel.")
        if column.scale is None and name in scaled:
            what = f"'{name}' is standardised, so it has no scale by which it could be brought to [0, 1]"
            raise RewardError(what, where=where, cure=f"Write {name}.raw, or make it with another --transform of guerdon relabel.")
        sources[name] = _Source(column.scale or (np.nan, np.nan), {"value": column.values})
    return sources


def _uses(tree: ast.expr) -> tuple[set[str], set[str], set[str]]:
    """Names of an expression that are used by their scale, those used as NAME.raw, and those used as NAME.spread."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in attributes}
    plain = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in inner} - RESERVED
    by_bounds = {
        node.args[0].value.id
        for node in nodes
        if isinstance(node, ast.Call) and _name(node.func) == "constant" and isinstance(node.args[0], ast.Attribute)
        and isinstance(node.args[0].value, ast.Name) and node.args[0].attr == "raw"
    }  # fmt: skip
    raw, spread = ({node.value.id for node in attributes if node.attr == kind and isinstance(node.value, ast.Name)} for kind in _ATTRIBUTES)
    return plain | by_bounds, raw, spread


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


class _Terms:
    """Evaluates an expression for one episode under one annotation."""

    def __init__(
        self, dataset: Dataset, info: EpisodeInfo, annotation: int, sources: Mapping[str, _Source], gamma: float, seed: int
    ) -> None:
        self.dataset, self.info, self.annotation = dataset, info, annotation
        self.sources, self.gamma, self.seed = sources, gamma, seed

    def evaluate(self, node: ast.expr) -> Array:
        match node:
            case ast.Constant(value=int() | float() as value):
                return np.asarray(float(value))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.evaluate(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self.evaluate(left), self.evaluate(right))
            case ast.Attribute(value=ast.Name(id=name), attr="raw"):
                return self._raw(name)
            case ast.Attribute(value=ast.Name(id=name), attr="spread"):
                low, high = self.sources[name].scale
                return self._raw(name, "spread") / (high - low)
            case ast.Name(id=name):
                return self._named(name)
            case ast.Call(func=ast.Name(id="potential"), args=[argument]):
                total = np.cumsum(np.broadcast_to(self.evaluate(argument), (self.info.length,)))
                return potential_shaping(np.concatenate([[0.0], total / self.info.length]), self.gamma)
            case ast.Call(func=ast.Name(id="shuffled"), args=[argument]):
                return self._shuffled(np.broadcast_to(self.evaluate(argument), (self.info.length,)))
            case ast.Call(func=ast.Name(id="constant"), args=[argument]):
                return self._constant(argument)
            case _:
                raise AssertionError(f"the parser let {ast.dump(node)} through")

    def _named(self, name: str) -> Array:
        if name == "sparse":
            reward = np.zeros(self.info.length)
            if self.info.terminated:
                reward[-1:] = 1.0
            return reward
        if name == "original":
            return np.asarray(self.dataset.rewards(self.info.index), np.float64)
        if name == "oracle":
            return self._oracle()
        low, high = self.sources[name].scale
        return (self._raw(name) - low) / (high - low)

    def _raw(self, name: str, column: Column = "value") -> Array:
        unlabelled = np.full(self.info.length, np.nan, np.float32)
        return self.sources[name].numbers[column].get((self.info.index, self.annotation), unlabelled).astype(np.float64)

    def _oracle(self) -> Array:
        contribution = self.dataset.privileged(self.info.index).get("contribution")
        if contribution is None:
            raise RewardError("the dataset holds no ground truth", where="name 'oracle'", cure="Use labels instead.")
        return np.where(np.isnan(contribution), np.nan, contribution > 0)

    def _constant(self, argument: ast.expr) -> Array:
        column: Column = "value"
        match argument:
            case ast.Name(id=name) if name in self.sources:
                highest = 1.0
            case ast.Attribute(value=ast.Name(id=name), attr="raw"):
                highest = self.sources[name].scale[1]
            case ast.Attribute(value=ast.Name(id=name), attr="spread"):
                highest, column = 0.0, "spread"
            case _:
                raise RewardError(f"constant(...) takes the name of a label set, not '{ast.unparse(argument)}'")
        return np.where(np.isfinite(self._raw(name, column)), highest, np.nan)

    def _shuffled(self, values: Array) -> Array:
        known = np.isfinite(values)
        order = generator(self.seed, "shuffled", self.info.index, self.annotation)
        result = values.copy()
        result[known] = order.permutation(values[known])
        return result


def _parse(expression: str) -> ast.expr:
    """The expression as a tree that holds nothing but what `_Terms` evaluates. Raises RewardError."""
    where = f"expression '{expression}'"
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        _allow(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = str(error) if isinstance(error, _NotAllowed) else "it is not an expression"
        cure = 'Write something like "0.1 * rg_vlm + sparse".'
        raise RewardError(f"cannot be read: {what}", where=where, cure=cure) from None
    return tree


class _NotAllowed(ValueError):
    """Part of an expression that means nothing here."""


def _allow(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            return
        case ast.Name(id=name) if name not in _FUNCTIONS:
            return
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name not in RESERVED and attribute in _ATTRIBUTES:
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _allow(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            _allow(left)
            _allow(right)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            _allow(argument)
        case _:
            raise _NotAllowed(f"'{ast.unparse(node)}' is not allowed; use + - * /, numbers, names and {', '.join(_FUNCTIONS)}")


def reward_statistics(column: RewardColumn) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum over the known rewards (None if there are none), and coverage."""
    known = np.concatenate([array[np.isfinite(array)] for array in column.values.values()]) if column.values else np.zeros(0)
    numbers = (known.mean(), known.std(), known.min(), known.max()) if known.size else (None,) * 4
    named = zip(("mean", "std", "min", "max"), numbers, strict=True)
    return {"coverage": column.coverage} | {name: None if number is None else float(number) for name, number in named}
