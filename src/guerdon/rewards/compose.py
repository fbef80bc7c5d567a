"""Composing a reward column from label sets: `0.1 * rg_vlm + sparse`.

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
    constant(NAME)  the label set's highest value wherever it has a value: what a rater who praises everything would give (a control);
                    of NAME.spread it is 0, because such a rater never wavers

Unknown stays unknown: a transition without a label has no reward, whatever else the expression adds. Rows are never dropped.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
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
"""Names that mean something in expressions, so that no label set can have them."""


def potential_shaping(potential: npt.ArrayLike, gamma: float) -> Array:
    """F(t) = gamma * phi(t+1) - phi(t), whose discounted sum telescopes to gamma^T phi(T) - phi(0).

    Args:
        potential: (T+1,) phi of each observation.

    Returns:
        (T,)
    """
    phi = np.asarray(potential, np.float64)
    return gamma * phi[1:] - phi[:-1]


def names_in(expression: str) -> set[str]:
    """Names of the label sets that an expression uses. Raises RewardError if it cannot be read."""
    used = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return used - RESERVED


def controls(expression: str) -> dict[str, str]:
    """The expression with every label set replaced by one without content: "constant" and "shuffled". Empty if it uses no labels.

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


def compose(label_sets: Mapping[str, LabelSet], dataset: Dataset, expression: str, *, gamma: float = 0.97, seed: int = 0) -> RewardColumn:
    """The reward column that `expression` describes (see the module's docstring).

    Args:
        label_sets: by name as used in the expression (underscores).
        gamma: discount factor, used by `potential` only.
        seed: for `shuffled` only.

    Raises:
        RewardError: for an expression that cannot be read, an unknown name, an infinite reward, or labels of another dataset.
    """
    tree = _parse(expression)
    unknown = names_in(expression) - set(label_sets)
    if unknown:
        known = ", ".join(sorted([*label_sets, *_BUILT_IN, *(f"{name}(...)" for name in _FUNCTIONS)]))
        raise RewardError(f"no label set '{min(unknown)}'; there are: {known}", where=f"expression '{expression}'")
    infos = list(dataset.episodes())
    lengths = {info.index: info.length for info in infos}
    used = {name: label_sets[name] for name in sorted(names_in(expression))}
    for name, label_set in used.items():
        if label_set.metadata.get("dataset") != dataset.fingerprint:
            cure = "Label this dataset, in a run folder of its own."
            raise RewardError(f"the label set '{name}' was made from another dataset", cure=cure)
    raw = {
        (name, column): transition_values(used[name], lengths, column=column, source=f"labels/{name}.parquet")
        for name, column in sorted(_columns_in(tree))
    }
    values: Values = {}
    for info in infos:
        for annotation in range(max(1, len(info.annotations))):
            terms = _Terms(dataset, info, annotation, used, raw, gamma, seed)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                values[info.index, annotation] = np.broadcast_to(terms.evaluate(tree), (info.length,)).astype(np.float32)
    if any(np.isinf(array).any() for array in values.values()):
        raise RewardError("it divides by zero, or its numbers are too large", where=f"expression '{expression}'")
    metadata = {
        "expression": expression,
        "labels": {name: label_set.fingerprint for name, label_set in used.items()},
        "dataset": dataset.fingerprint,
        "gamma": gamma,
        "seed": seed,
    }
    return RewardColumn(values, metadata)


class _Terms:
    """Evaluates an expression for one episode under one annotation."""

    def __init__(
        self, dataset: Dataset, info: EpisodeInfo, annotation: int, label_sets: Mapping[str, LabelSet],
        raw: Mapping[tuple[str, Column], Values], gamma: float, seed: int,
    ) -> None:  # fmt: skip
        self.dataset, self.info, self.annotation = dataset, info, annotation
        self.label_sets, self.raw, self.gamma, self.seed = label_sets, raw, gamma, seed

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
                low, high = self.label_sets[name].scale
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
        low, high = self.label_sets[name].scale
        return (self._raw(name) - low) / (high - low)

    def _raw(self, name: str, column: Column = "value") -> Array:
        unlabelled = np.full(self.info.length, np.nan, np.float32)
        return self.raw[name, column].get((self.info.index, self.annotation), unlabelled).astype(np.float64)

    def _oracle(self) -> Array:
        contribution = self.dataset.privileged(self.info.index).get("contribution")
        if contribution is None:
            raise RewardError("the dataset holds no ground truth", where="name 'oracle'", cure="Use labels instead.")
        return np.where(np.isnan(contribution), np.nan, contribution > 0)

    def _constant(self, argument: ast.expr) -> Array:
        column: Column = "value"
        match argument:
            case ast.Name(id=name) if name in self.label_sets:
                highest = 1.0
            case ast.Attribute(value=ast.Name(id=name), attr="raw"):
                highest = self.label_sets[name].scale[1]
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


def _columns_in(tree: ast.expr) -> set[tuple[str, Column]]:
    """Label sets of an expression and which of their numbers it uses."""
    columns: set[tuple[str, Column]] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="spread"):
                columns.add((name, "spread"))
            case ast.Name(id=name) if name not in RESERVED:
                columns.add((name, "value"))
    return columns


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
