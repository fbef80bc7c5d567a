"""The study of offline policies: what its tables say, worked out by hand; and a run of all of it, small."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon.errors import UsageError
from guerdon.labels import LabelSet
from guerdon.recipes import reproduce_offline
from guerdon.recipes.reproduce_offline import Config, distilled_fidelity, per_length, policy_table, reward_agreement, tables, value_of
from guerdon.records import Annotation, EpisodeInfo, Label
from tests.memory import MemoryDataset, MemoryEpisode


def scored(step: int, value: float | None, episode: int = 0) -> Label:
    state: Any = "labelled" if value is not None else "failed"
    return Label("transition", episode, step, step + 1, "go", state, value=value, cause=None if value is not None else "timeout")


def test_fidelity_is_measured_where_the_model_was_not_fitted() -> None:
    dataset = MemoryDataset([MemoryEpisode(5, contribution=[1, 0, 1, -1, 0])])
    every = LabelSet([scored(step, value) for step, value in enumerate([9, 1, 8, 2, 3])], {})
    part = LabelSet([scored(0, 9), scored(1, None)], {})
    learned = {(0, 0): np.array([0.0, 0.0, 0.9, 0.95, 0.1], np.float32)}
    found = distilled_fidelity(learned, every, part, dataset)
    # Held out are steps 2, 3, 4: scores 8, 2, 3; learned .9, .95, .1; only step 2 serves.
    assert found["spearman"] == pytest.approx(-0.5)
    assert found["auroc"] == pytest.approx(0.5)
    assert found["rater_auroc"] == pytest.approx(1.0)


def test_nothing_held_out_is_nothing_known() -> None:
    every = LabelSet([scored(0, 9)], {})
    assert all(math.isnan(value) for value in distilled_fidelity({}, every, every, MemoryDataset([MemoryEpisode(1)])).values())


def test_rewards_are_compared_with_the_state_that_an_action_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {0: np.array([0.9, 0.1, 0.2, 0.3]), 1: np.array([0.9, 0.4])}
    monkeypatch.setattr(reproduce_offline, "qualities", lambda dataset, episode: quality[episode])
    values = {(1, 0): np.array([4.0], np.float32), (0, 0): np.array([1.0, 2.0, 3.0], np.float32)}
    assert reward_agreement(values, MemoryDataset([])) == pytest.approx(1.0)


def row(arm: str, seed: int, task: str, share: float, start: str = "fixed") -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "task": task, "length": 1, "start": start, "wording": "seen", "return": share, "success": share == 1.0,
        "steps": 3, "step_limit": 9,
    }  # fmt: skip


def rows(arm: str, shares: list[float]) -> list[dict[str, Any]]:
    return [row(arm, seed, "t", share, start) for start in ("fixed", "randomised") for seed, share in enumerate(shares)]


def test_tables_and_marks() -> None:
    study = [*rows("bc", [0.0, 0.0, 1.0, 1.0]), *rows("erl_vlm", [1.0, 1.0, 1.0, 1.0])]
    table = policy_table(study)
    assert table.splitlines()[2].startswith("| BC | 0.500 [")
    assert "| ERL-VLM (r − 1) | 1.000 [1.00, 1.00] |" in table
    record = {"parts": {"babyai": {"rows": study}}, "command": "guerdon reproduce offline", "seconds": 120.0, "version": "1"}
    assert tables(record) == {"babyai": table}
    assert value_of("table babyai", record) == table
    assert value_of("minutes", record) == "2"
    assert value_of("command", record) == "`guerdon reproduce offline`"
    assert value_of("better babyai erl_vlm bc fixed", record).startswith("0.750")
    with pytest.raises(KeyError):
        value_of("something else", record)


def test_no_more_tasks_are_tried_than_were_recorded() -> None:
    class Recorded:
        def episodes(self) -> Iterator[EpisodeInfo]:
            for number, (length, name) in enumerate([(1, "a"), (1, "a"), (1, "b"), (1, "c"), (2, "d"), (2, "e"), (2, "e")]):
                yield EpisodeInfo(number, 5, True, False, (Annotation("go"),), {"task": {"length": length, "id": name}})

    dataset: Any = Recorded()
    assert per_length(dataset, most=20) == 2
    assert per_length(dataset, most=1) == 1


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="part of the study"):
        Config(parts=("mars",))
    with pytest.raises(UsageError, match="seeds is at least 1"):
        Config(seeds=0)


@pytest.mark.slow
def test_the_whole_study_small(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    page = tmp_path / "page.md"
    page.write_text("<!-- fill table models --><!-- /fill -->\n<!-- fill table fidelity --><!-- /fill -->\n", encoding="utf-8")
    small = Config(
        out=tmp_path / "study", page=page, parts=("drawer-open-v3", "distillation", "consistency"), seeds=2, pictures=60, demonstrations=8,
        layouts=3, tasks=5, updates=20, picture_updates=5, fit_updates=4, repeats=2, size=48, jobs=1, quiet=True,
    )  # fmt: skip
    first = reproduce_offline.reproduce(small)
    record = json.loads(first[0].read_text())
    assert set(record["parts"]) == {"drawer-open-v3", "distillation", "consistency"}
    assert {each["arm"] for each in record["parts"]["drawer-open-v3"]["rows"]} == {
        "random", "bc", "sparse", "true", "erl_vlm", "erl_vlm_sparse", "erl_vlm_raw",
    }  # fmt: skip
    assert "| drawer-open-v3 | 8 (" in page.read_text(encoding="utf-8")
    again = json.loads(reproduce_offline.reproduce(small)[0].read_text())
    assert again["parts"] == record["parts"], "what is there is kept"
