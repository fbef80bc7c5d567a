"""The study of RG-VLM: what its tables say, worked out by hand; arms, data and raters; and a run of it that is killed and goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("minigrid")

from guerdon.datasets import open_dataset
from guerdon.errors import DatasetError, RewardError, RunError, UnknownName, UsageError
from guerdon.evaluation.raters import measure
from guerdon.evaluation.statistics import Estimate
from guerdon.evaluation.tasks import TaskList, task_list
from guerdon.evaluation.truth import qualities
from guerdon.interfaces import Dataset
from guerdon.recipes import _study
from guerdon.recipes._rg_vlm_results import CLAIMS, TABLES, Results, figures, per_cent, value_of
from guerdon.recipes._study import Finding, verdict
from guerdon.recipes.collect_babyai import Config as Collect
from guerdon.recipes.collect_babyai import collect_babyai
from guerdon.recipes.data import dataset_of
from guerdon.recipes.evaluate import Config as EvaluateConfig
from guerdon.recipes.evaluate import evaluate, frozen_tasks
from guerdon.recipes.label import label
from guerdon.recipes.reproduce_rg_vlm import (
    ARMS,
    CORE,
    SCRIPTED,
    Config,
    Window,
    accuracy_of,
    arm_of,
    calibrated,
    cut_into_skills,
    merge_rows,
    read_rows,
    reproduce,
    windows_of,
)
from guerdon.rewards.compose import compose
from guerdon.runs import Run
from tests.memory import MemoryDataset, MemoryEpisode

PAGE = Path(__file__).parent.parent / "docs" / "results" / "rg-vlm.md"


# --- tables, claims and figures from made-up rows -------------------------------------------------------------------------------------

RETURNS = {
    "random": (0.0, 0.0), "bc": (0.6, 0.4), "sparse": (0.8, 0.4), "rg_vlm": (0.7, 0.5), "both": (1.0, 0.8), "oracle": (1.0, 0.9),
    "constant": (0.6, 0.4), "shuffled": (1.0, 0.6), "scripted_flips_86": (0.9, 0.7),
}  # fmt: skip
"""Arm -> its return on every task, from the recorded start and from another one."""


def row(arm: str, seed: int, task: str, length: int, start: str, share: float, steps: int) -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "task": f"{task}-{start}", "length": length, "start": start, "wording": "seen", "return": share,
        "success": share == 1.0, "steps": steps, "step_limit": 20,
    }  # fmt: skip


def rows_of(arm: str, shares: tuple[float, float], seeds: int = 2) -> list[dict[str, Any]]:
    return [
        row(arm, seed, f"task{number}", 1 + number // 2, start, share, 10 if share == 1.0 else 20)
        for seed in range(seeds)
        for number in range(4)
        for start, share in zip(("fixed", "randomised"), shares, strict=True)
    ]


def record_of(arms: Any) -> dict[str, Any]:
    learned = [arm for arm in arms if arm not in ("random", "bc")]
    agreement = {
        name: {"value": 0.86, "low": 0.85, "high": 0.87} for name in ("accuracy", "balanced_accuracy", "auroc", "spearman")
    }  # fmt: skip
    quality = {"rater": "scripted", "coverage": 1.0, "agreement": agreement}
    statistics = {"mean": 0.5, "std": 0.25, "min": -1.0, "max": 1.0, "coverage": 1.0, "discount": 0.8}
    return {
        "arms": [ARMS[arm].to_record() for arm in arms if arm != "random"],
        "labels": {"chains/rg_vlm": quality, "chains/scripted_flips_86": quality},
        "rewards": dict.fromkeys(learned, statistics),
        "training": {arm: {"0": {"advantage_spearman": 0.25}, "1": {"advantage_spearman": 0.75}} for arm in learned},
        "seconds": {"labels": 60.0, "training": 120.0},
        "command": "guerdon reproduce rg-vlm", "version": "1", "machine": {"processor": "abacus"},
        "config": {"vlm": ["embedded"]}, "tasks": 4, "episodes": 20, "transitions": 100,
    }  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(record_of(RETURNS), [each for arm, shares in RETURNS.items() for each in rows_of(arm, shares)])


def test_claims_are_judged_by_their_intervals() -> None:
    above, around, below = (Finding("", Estimate(value, value - 0.1, value + 0.1)) for value in (0.2, 0.05, -0.2))
    assert verdict([above, above], 0.0) == "holds"
    assert verdict([above, around], 0.0) == "not shown"
    assert verdict([above, below], 0.0) == "does not hold"
    assert verdict([above], 1.0) == "does not hold"
    assert verdict([], 0.0) == "not measured"
    assert verdict([Finding("", Estimate(0.2))], 0.0) == "not shown", "without an interval nothing can be said"
    assert verdict([Finding("", Estimate(float("nan")))], 0.0) == "not measured"


def test_claims_of_the_paper(results: Results) -> None:
    found = {claim.name: (claim.find(results), verdict(claim.find(results), claim.threshold)) for claim in CLAIMS}
    # Every policy of an arm does alike, so the intervals have no width and the numbers are those of the arms.
    drops, said = found["drop"]
    assert (drops[0].estimate.value, said) == (pytest.approx(0.5 - 0.2), "holds")  # 1 - 0.4 / 0.8, less 1 - 0.8 / 1
    ratio, said = found["alone"]
    assert (ratio[0].estimate.value, said) == (pytest.approx(0.9 / 0.6), "holds")
    best, said = found["best"]
    assert [each.estimate.value for each in best] == pytest.approx([0.2, 0.4, 0.3, 0.3])
    assert said == "holds"
    assert found["others"] == ([], "not measured")
    content, said = found["content"]
    assert [each.estimate.value for each in content] == pytest.approx([0.4, 0.4, 0.0, 0.2])
    assert said == "not shown", "from the recorded start, shuffled labels do as well"
    assert value_of("verdict content", results) == "not shown"


def test_a_claim_that_is_wrong_does_not_hold() -> None:
    worse = {"random": (0.0, 0.0), "both": (0.5, 0.25), "rg_vlm": (0.75, 0.5), "sparse": (0.75, 0.75)}
    found = Results(record_of(worse), [each for arm, shares in worse.items() for each in rows_of(arm, shares)])
    for name in ("drop", "best", "alone", "sparse"):
        assert value_of(f"verdict {name}", found) == "does not hold", name
    assert value_of("verdict truth", found) == "not measured", "there is no arm with perfect labels"


def test_an_interval_covers_seeds_and_tasks() -> None:
    uneven = rows_of("random", (0.0, 0.0)) + rows_of("sparse", (0.5, 0.5))
    uneven += [{**each, "return": (1.0, 0.5)[each["seed"]]} for each in rows_of("both", (0.0, 0.0))]
    found = Results(record_of(("random", "sparse", "both")), uneven)
    difference = found.difference("both", "sparse", "fixed")
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.25, 0.0, 0.5))
    assert value_of("verdict sparse", found) == "not shown"


def test_tables(results: Results) -> None:
    returns = TABLES["returns"](results)
    order = ["random actions", *(ARMS[arm].words for arm in RETURNS if arm != "random")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in returns.splitlines()[2:]] == order
    assert "| sparse + RG-VLM | 2 | 1.000 [1.00, 1.00] | 1.000 [1.00, 1.00] | 0.800 [0.80, 0.80] | 0.800 [0.80, 0.80] |" in returns
    assert TABLES["lengths fixed"](results).splitlines()[0] == "| arm | 1 sub-task | 2 sub-tasks |"
    drops = TABLES["drop"](results)
    assert "| sparse | 50.0 % [50.0, 50.0] | 49.91 % |" in drops
    assert "| sparse + RG-VLM | 20.0 % [20.0, 20.0] | 38.94 % |" in drops
    improvement = TABLES["improvement"](results)
    assert "| sparse + RG-VLM | sparse | **1.000 [1.00, 1.00]** | **1.000 [1.00, 1.00]** |" in improvement
    assert "| sparse + RG-VLM | sparse + shuffled labels | 0.500 [0.50, 0.50] | **1.000 [1.00, 1.00]** |" in improvement
    assert "| RG-VLM | sparse + constant labels | **1.000" in improvement
    loitering = TABLES["loitering"](results)
    both = next(line for line in loitering.splitlines() if line.startswith("| sparse + RG-VLM |"))
    assert both.split(" | ")[1:] == [
        "100.0 % [100.0, 100.0]", "10.0 (50%)", "0.0 % [0.0, 0.0]", "0.0 % [0.0, 0.0]", "– (–)", "100.0 % [100.0, 100.0] |",
    ]  # fmt: skip
    assert "| sparse | 2 | 0.500 [0.25, 0.75] |" in TABLES["advantages"](results)
    assert "| rater of 86.2%, errs either way | 0.860 [0.85, 0.87] | 0.900" in TABLES["raters"](results)
    reward = "| sparse + RG-VLM | `rg_vlm + sparse - 1` | 0.8 | chains | 0.500 | 0.250 | −1.000 | 1.000 | 100.0% |"
    assert reward in TABLES["rewards"](results)
    forms = TABLES["forms"](results).splitlines()
    assert [line.split(" | ")[0] for line in forms[2:]] == [
        "| sparse + RG-VLM", "| RG-VLM", "| sparse + perfect labels", "| sparse", "| sparse + constant labels",
    ]  # fmt: skip
    assert forms[2].startswith("| sparse + RG-VLM | `rg_vlm + sparse - 1` | 0.8 | 1.000 [1.00, 1.00] | 0.800")
    assert "| training | 2.0 |" in TABLES["stages"](results)
    assert per_cent(Estimate(-0.125, -0.25, 0.0)) == "−12.5 % [−25.0, 0.0]"


def test_an_arm_at_the_level_of_chance_has_no_drop() -> None:
    poor = {"random": (0.25, 0.25), "both": (0.25, 0.0)}
    found = Results(record_of(poor), [each for arm, shares in poor.items() for each in rows_of(arm, shares)])
    assert "| sparse + RG-VLM | the return from the fixed start is not above that of a random policy | 38.94 % |" in TABLES["drop"](found)
    assert value_of("drop both", found).startswith("the return")


def test_every_mark_of_the_page_is_known(results: Results) -> None:
    page = PAGE.read_text(encoding="utf-8")
    keys = re.findall(r"<!-- fill (.+?) -->", page)
    assert {f"table {name}" for name in TABLES} <= set(keys), "every table has its place"
    filled = _study.filled(page, lambda key: value_of(key, results, ARMS))
    assert "<!-- fill mean potential fixed -->–<!-- /fill -->" in filled, "an arm that was not carried out yet"
    assert "<!-- fill mean both fixed -->1.000 [1.00, 1.00]<!-- /fill -->" in filled
    assert "`guerdon reproduce rg-vlm`" in filled
    assert "took <!-- fill minutes -->3<!-- /fill --> minutes" in filled
    for name in figures(results):
        assert f"(rg-vlm-{name}.svg)" in page
    for key in ("table nothing", "mean nobody fixed", "drop nobody", "verdict nothing", "better both nobody fixed", "poem"):
        with pytest.raises(KeyError):
            value_of(key, results, ARMS)


def test_figures_show_every_number(results: Results) -> None:
    drawn = figures(results)
    assert set(drawn) == {"fixed", "randomised", "ablation"}
    tips = {
        name: [each.text for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("title")][1:] for name, svg in drawn.items()
    }
    shown = [arm for arm in RETURNS if arm != "random" and ARMS[arm].shown]
    assert len(tips["fixed"]) == len(shown) * 2, "an arm at every length"
    assert "sparse + RG-VLM, 2: 1.000 [1.00, 1.00]" in tips["fixed"]
    assert tips["ablation"] == [
        "sparse, recorded start: 0.800 [0.80, 0.80]", "sparse, other start: 0.400 [0.40, 0.40]",
        "RG-VLM, recorded start: 0.700 [0.70, 0.70]", "RG-VLM, other start: 0.500 [0.50, 0.50]",
        "sparse + RG-VLM, recorded start: 1.000 [1.00, 1.00]", "sparse + RG-VLM, other start: 0.800 [0.80, 0.80]",
    ]  # fmt: skip
    heights = [float(each.get("height", 0)) for each in ElementTree.fromstring(drawn["ablation"]).iter() if len(each)]
    assert heights[1] == pytest.approx(2 * heights[2], abs=0.2), "bars are as high as their numbers"


def test_an_arm_has_one_colour_in_all_figures(results: Results) -> None:
    found: dict[str, set[str]] = {}
    for svg in figures(results).values():
        for bar in (each for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("rect") and len(each)):
            found.setdefault((bar[0].text or "").split(":")[0].rsplit(", ", 1)[0], set()).add(bar.get("fill", ""))
    assert all(len(colours) == 1 for colours in found.values()), found
    assert len(found) > 3
    assert found["sparse"] != found["RG-VLM"]


def test_rows_of_two_calls_become_one_table() -> None:
    before = [*rows_of("bc", (0.25, 0.25), 3), *rows_of("both", (0.5, 0.5), 3)]
    now = [*rows_of("both", (0.75, 0.75), 2), *rows_of("oracle", (1.0, 1.0), 1)]
    merged = merge_rows(before, now, gone=())
    assert Counter((each["arm"], each["seed"], each["return"]) for each in merged) == {
        **{("bc", seed, 0.25): 8 for seed in range(3)}, ("both", 0, 0.75): 8, ("both", 1, 0.75): 8, ("both", 2, 0.5): 8,
        ("oracle", 0, 1.0): 8,
    }  # fmt: skip
    assert {each["seed"] for each in merge_rows(before, now, gone=["both"]) if each["arm"] == "both"} == {0, 1}


# --- arms -----------------------------------------------------------------------------------------------------------------------------


def test_the_core_of_the_study() -> None:
    assert CORE == ("bc", "sparse", "rg_vlm", "both", "oracle", "constant", "shuffled")
    assert Config().chosen == tuple(ARMS[name] for name in CORE)
    for arm in ARMS.values():
        assert arm_of(arm.name) is arm
        assert arm.expression is None or arm_of(f"{arm.name}={arm.expression}") is arm


def test_arms_of_ones_own() -> None:
    mine = arm_of("mine = 0.2 * rg_vlm + sparse")
    assert (mine.name, mine.expression, mine.episodes, mine.policies) == ("mine", "0.2 * rg_vlm + sparse", "chains", "mine")
    assert arm_of("mine_skills=rg_vlm").episodes == "skills"
    assert ARMS["rg_vlm"].policies == "rg_vlm_reward", "the label set has the other name"
    assert ARMS["bc_skills"].policies == "bc"


def test_wrong_arms_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"arm of the study 'bost'.*both"):
        Config(arms=("bost",))
    with pytest.raises(UsageError, match=r"'both' stands for another reward: rg_vlm"):
        Config(arms=("both=0.5 * rg_vlm",))
    with pytest.raises(UsageError, match="'bc'"):
        Config(arms=("bc=sparse",))
    with pytest.raises(UsageError, match="letters, digits"):
        Config(arms=("my arm=sparse",))
    with pytest.raises(UsageError, match="end in _reward"):
        Config(arms=("rg_vlm_reward=sparse",))
    with pytest.raises(RewardError, match="cannot be read"):
        Config(arms=("mine=sparse +",))
    with pytest.raises(UsageError, match="named twice"):
        Config(arms=("both", "both=rg_vlm + sparse - 1"))
    with pytest.raises(UsageError, match="at least one arm"):
        Config(arms=())
    with pytest.raises(UsageError, match="seeds is at least 1"):
        Config(seeds=0)


# --- data, tasks and raters -----------------------------------------------------------------------------------------------------------


def recorded(folder: Path, tasks: int) -> Dataset:
    return open_dataset(collect_babyai(Collect(out=folder / "data", level="small", tasks=tasks, demonstrations=1, lengths=(1, 6))))


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return recorded(tmp_path_factory.mktemp("hundred"), 100)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return recorded(tmp_path_factory.mktemp("chains"), 12)


@pytest.fixture(scope="module")
def windows(chains: Dataset) -> list[Window]:
    return windows_of(chains)


@pytest.fixture(scope="module")
def skills(chains: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("skills") / "data"
    cut_into_skills(chains, out)
    return open_dataset(out)


@pytest.fixture(scope="module")
def tasks(hundred: Dataset) -> TaskList:
    return task_list(hundred, lengths=range(1, 7), per_length=None, seed=0, held_out_words=False)


def test_all_hundred_tasks_from_two_starts(tasks: TaskList) -> None:
    kinds = Counter((task.length, task.start, task.wording) for task in tasks)
    counts = {1: 17, 2: 17, 3: 17, 4: 17, 5: 16, 6: 16}
    assert kinds == {(length, start, "seen"): count for length, count in counts.items() for start in ("fixed", "randomised")}


def test_all_tasks_are_those_that_are_drawn_and_more(hundred: Dataset, tasks: TaskList) -> None:
    drawn = task_list(hundred, lengths=range(1, 7), per_length=1, seed=0)
    every = {task.id: task for task in tasks}
    assert all(every[task.id] == task for task in drawn if task.wording == "seen")
    with pytest.raises(UsageError, match="has 0 tasks of 9"):
        task_list(hundred, lengths=[9], per_length=None, seed=0)


def test_a_chain_is_cut_into_its_sub_tasks(chains: Dataset, skills: Dataset) -> None:
    pieces = list(skills.episodes())
    assert len(pieces) == sum(len(info.annotations[0].spans) for info in chains.episodes())
    last = chains.episode(5)
    parts = [piece for piece in pieces if piece.metadata["episode"] == 5]
    assert last.metadata["task"]["length"] == len(parts) == 6
    assert [piece.metadata["subtask"] for piece in parts] == list(range(6))
    assert [piece.annotations[0].instruction for piece in parts] == [span.text for span in last.annotations[0].spans]
    assert all(piece.terminated and not piece.truncated for piece in parts)
    assert np.array_equal(np.concatenate([skills.actions(piece.index) for piece in parts]), chains.actions(5))
    known = [skills.privileged(piece.index) for piece in parts]
    assert np.array_equal(np.concatenate([each["contribution"] for each in known]), chains.privileged(5)["contribution"])
    for piece, span in zip(parts, last.annotations[0].spans, strict=True):
        seen = skills.frames(piece.index, "full", 0, piece.length + 1)
        assert np.array_equal(seen, chains.frames(5, "full", span.start, span.stop + 1))
    for piece, each in zip(parts, known, strict=True):
        assert each["progress"].tolist() == [0.0] * piece.length + [1.0]
        assert each["distance"][-1] == 0.0
        done = qualities(skills, piece.index)
        assert done is not None
        assert (done[-1], done.max()) == (1.0, 1.0)
    assert skills.environment == chains.environment


def test_rewards_of_a_sub_task(chains: Dataset, skills: Dataset) -> None:
    sparse, perfect = (compose({}, skills, expression).values for expression in ("sparse", "oracle"))
    whole = compose({}, chains, "oracle").values
    parts = [piece for piece in skills.episodes() if piece.metadata["episode"] == 5]
    assert all(sparse[piece.index, 0].tolist() == [0.0] * (piece.length - 1) + [1.0] for piece in parts)
    assert np.array_equal(np.concatenate([perfect[piece.index, 0] for piece in parts]), whole[5, 0])


def test_what_names_no_sub_tasks_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"episode 0.*names no sub-tasks"):
        cut_into_skills(MemoryDataset([MemoryEpisode(3)]), tmp_path / "out")


def test_scripted_raters_are_as_right_as_they_are_made_to_be(chains: Dataset, windows: list[Window]) -> None:
    assert sum(len(window.truth) for window in windows) == sum(info.length for info in chains.episodes())
    for name, (kind, accuracy) in SCRIPTED.items():
        settings = calibrated(windows, kind, accuracy)
        assert accuracy_of(windows, settings) == pytest.approx(accuracy, abs=0.005), name
        assert (settings.flip > 0, settings.optimism > 0) == (kind == "flips", kind == "optimism")


def test_optimism_is_wrong_one_way_only(windows: list[Window]) -> None:
    serving = [window._replace(truth=np.where(window.truth > 0, window.truth, np.nan)) for window in windows]
    settings = calibrated(windows, "optimism", 0.742)
    assert accuracy_of(serving, settings) == 1.0


def test_what_cannot_be_reached_is_refused(windows: list[Window]) -> None:
    with pytest.raises(RunError, match=r"no rate of optimism makes a scripted rater of 20\.0%"):
        calibrated(windows[:40], "optimism", 0.2)


def test_the_accuracy_is_that_of_the_labels(tmp_path: Path) -> None:
    data = collect_babyai(Collect(out=tmp_path / "data", level="small", tasks=4, demonstrations=2, lengths=(1, 2)))
    dataset = open_dataset(data)
    windows = windows_of(dataset)
    settings = calibrated(windows, "flips", 0.862)
    made = label(
        dataset=data, run=tmp_path / "run", vlm=("scripted",), name="scripted_flips_86", store=str(tmp_path / "store.sqlite"), quiet=True,
        rater_settings={"scripted": settings},
    )  # fmt: skip
    agreement = measure(made.labels, dataset, resamples=10).agreement
    assert agreement is not None
    assert agreement.accuracy is not None
    assert agreement.accuracy.value == pytest.approx(accuracy_of(windows, settings))


# --- evaluating on the tasks of another run ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(chains: Dataset, skills: Dataset, tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "chains", tmp_path / "skills"
    for path, dataset in zip(paths, (chains, skills), strict=True):
        Run.open_or_create(path, dataset_path=dataset.path, fingerprint=dataset.fingerprint)
    return paths


def test_policies_of_other_data_meet_the_same_tasks(two_runs: tuple[Path, Path], chains: Dataset) -> None:
    first, second = two_runs
    config = EvaluateConfig(run=first, lengths=(1,), per_length=2, other_words=False)
    made = frozen_tasks(Run.open(first), chains, config)
    assert Counter(task.start for task in made) == {"fixed": 2, "randomised": 2}
    again = {"tasks": first / "tasks.json", "rollouts": 0, "jobs": 1, "quiet": True}
    rows = evaluate(run=second, arms=("random",), seeds=1, **again)
    assert {each["task"] for each in rows} == {task.id for task in made}
    assert frozen_tasks(Run.open(second), dataset_of(Run.open(second)), EvaluateConfig(run=second, tasks=first / "tasks.json")) == made
    with pytest.raises(UsageError, match="tasks come from another dataset"):
        evaluate(run=second, arms=("replay",), **again)


def test_seeds_that_are_not_trained_are_named(two_runs: tuple[Path, Path]) -> None:
    folder = two_runs[0] / "policies" / "both" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="no finished policy of seed 1"):
        evaluate(run=two_runs[0], arms=("both",), lengths=(1,), per_length=1, policy_seeds=(0, 1), quiet=True)
    with pytest.raises(UsageError, match="policy_seeds"):
        EvaluateConfig(run=two_runs[0], policy_seeds=(-1,))


# --- the study --------------------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"tasks": 4, "lengths": (1, 2), "demonstrations": 2, "updates": 8, "seeds": 2, "jobs": 1, "quiet": True}
SMALL_ARMS = ("bc", "both", "scripted_flips_86", "bc_skills")


def test_a_study_does_not_change_its_data(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"tasks": 4}))
    with pytest.raises(RunError, match=r"begun with vlm null, not \[\"embedded\"\]"):
        reproduce(Config(out=tmp_path, **SMALL))


@pytest.mark.slow
def test_labels_that_others_have_to_make_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds neither labels nor a model's rewards 'clip'.*guerdon label"):
        reproduce(Config(out=tmp_path, arms=("clip",), **SMALL))


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    page = tmp_path / "rg-vlm.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "guerdon", "reproduce", "rg-vlm", "--out", str(killed), "--arms", *SMALL_ARMS]
    command += ["--tasks", "4", "--lengths", "1", "2", "--demonstrations", "2", "--updates", "8", "--seeds", "2", "--jobs", "1", "--quiet"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while not list((killed / "run" / "policies").glob("*/seed-0/manifest.json")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = {path: path.stat().st_mtime_ns for path in (killed / "run" / "policies").glob("*/seed-*/manifest.json")}
    assert done
    assert not (killed / "rg-vlm.json").exists(), "killed before the end"
    written = reproduce(Config(out=killed, arms=SMALL_ARMS, page=page, **SMALL))
    assert all(path.stat().st_mtime_ns == then for path, then in done.items()), "what was trained is kept"
    reproduce(Config(out=whole, arms=SMALL_ARMS[:2], **SMALL))
    reproduce(Config(out=whole, arms=SMALL_ARMS[2:], **SMALL))
    assert read_rows(killed / "rg-vlm.parquet") == read_rows(whole / "rg-vlm.parquet"), "killed, or in two calls: the numbers are the same"
    records = [json.loads((out / "rg-vlm.json").read_text(encoding="utf-8")) for out in (killed, whole)]
    assert [[arm["name"] for arm in record["arms"]] for record in records] == [list(SMALL_ARMS)] * 2
    assert records[0]["labels"]["chains/scripted_flips_86"]["agreement"]["accuracy"]["value"] == pytest.approx(0.862, abs=0.005 + 0.05)
    rows = read_rows(killed / "rg-vlm.parquet")
    assert Counter((each["arm"], each["seed"]) for each in rows) == {(arm, seed): 8 for arm in ("random", *SMALL_ARMS) for seed in (0, 1)}
    assert {path.name for path in written} >= {"rg-vlm.json", "rg-vlm.parquet", "rg-vlm-fixed.svg", "rg-vlm.md"}
    assert "| sparse + RG-VLM | 2 |" in page.read_text(encoding="utf-8")
    assert _study.machine()["python"] in page.read_text(encoding="utf-8")
