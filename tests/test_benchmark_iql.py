"""The parts of benchmarks/iql.py that a wrong number could come from: the same data for all, rounds compared with their own kind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_SCRIPT = Path(__file__).parent.parent / "benchmarks" / "iql.py"


@pytest.fixture(scope="module")
def benchmark_script() -> Any:
    specification = importlib.util.spec_from_file_location("benchmark_iql", _SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    sys.modules["benchmark_iql"] = module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_peers_and_ours_learn_from_the_same_transitions(benchmark_script: Any) -> None:
    flat, ours = benchmark_script.flat_vectors(3000), benchmark_script.vector_transitions(3000)
    state = ours.vectors["state"]
    observed = np.concatenate([t.first_observation + np.arange(t.length) for t in ours.trajectories])
    assert np.array_equal(flat["observations"], state[observed])
    assert np.array_equal(flat["next_observations"], state[observed + 1])
    assert np.array_equal(flat["actions"], ours.action)
    assert np.array_equal(flat["rewards"], ours.reward)
    assert np.array_equal(flat["terminals"] > 0, ours.terminal)
    assert ours.known.all()
    assert flat["terminals"].sum() == 3


def test_instructions_differ_and_are_no_longer_than_said(benchmark_script: Any) -> None:
    texts = benchmark_script.random_instructions()
    tokens = benchmark_script.picture_transitions(memory=False).spec.vocabulary.batch(texts)
    assert len(set(texts)) == 64
    assert tokens.shape[1] <= 32


def result(walls: list[float], others: float = 0.0) -> dict[str, Any]:
    chunks = [{"updates": 100, "seconds": 100 / wall, "cpu": 50 / wall, "others": others} for wall in walls]
    return {"chunks": chunks, "versions": {}}


def test_ratios_are_taken_within_a_round(benchmark_script: Any) -> None:
    row = benchmark_script.Row("ours", "ours_vectors")
    # The machine is half as fast in the second round, and in the third for the first of the two only.
    ours = benchmark_script.summary(row, [result([200, 210, 190]), result([100, 100, 5]), result([100, 100, 100])])
    peer = benchmark_script.summary(row, [result([100, 100, 100]), result([50, 50, 50]), result([100, 100, 100])])
    assert ours["wall"] == pytest.approx(100)
    assert ours["cpu"] == pytest.approx(200)
    assert benchmark_script.ratio(ours, peer, "wall") == pytest.approx(2)


def test_a_measurement_makes_as_many_updates_as_it_says(benchmark_script: Any) -> None:
    made = 0

    def run(count: int) -> int:
        nonlocal made
        made += count
        end = benchmark_script.time.perf_counter() + 1e-4 * count
        while benchmark_script.time.perf_counter() < end:
            pass
        return count

    chunks = benchmark_script.measure(run, 0.02)
    assert len(chunks) == benchmark_script.CHUNKS
    assert sum(chunk["updates"] for chunk in chunks) <= made
    assert all(chunk["cpu"] > 0 and chunk["seconds"] > 0 for chunk in chunks)
