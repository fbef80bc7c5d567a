"""The study of ERL-VLM: what its tables say, worked out by hand; arms and their settings; and a run of it that is killed and goes on."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="NOT TESTED: torch is not installed; install 'guerdon[train]'")
pytest.importorskip("metaworld", reason="NOT TESTED: metaworld is not installed; install 'guerdon[metaworld]'")
pytest.importorskip("minigrid", reason="NOT TESTED: minigrid is not installed; install 'guerdon[babyai]'")

from guerdon.algorithms.sac import SAC
from guerdon.cli.online import _config
from guerdon.cli.reproduce import studies
from guerdon.errors import RunError, UnknownName, UsageError
from guerdon.evaluation.statistics import Estimate
from guerdon.recipes import _study, online, reproduce_erl_vlm
from guerdon.recipes._erl_vlm_results import (
    ABLATION,
    CLAIMS,
    PUBLISHED,
    TABLES,
    TASKS,
    Results,
    curves_of,
    figures,
    value_of,
)
from guerdon.recipes._study import Finding, verdict
from guerdon.recipes.reproduce_erl_vlm import ARMS, Config, Job, carry_out, collected, jobs_of, merge, read_rows, reproduce, rows_of
from guerdon.runs import write_json
from guerdon.training import online as loop

PAGE = Path(__file__).parent.parent / "docs" / "results" / "erl-vlm.md"
DRAWER, SWEEP, INSTRUCTIONS = TASKS


# --- tables, claims and figures from made-up rows -------------------------------------------------------------------------------------

STEPS = (0, 100, 200, 300, 400)
ALWAYS, LATE, NEVER = (1, 1, 1, 1, 1), (0, 0, 0, 1, 1), (0, 0, 0, 0, 0)
"""Success at each evaluation: final success 1, 2/3 and 0; area 1, 3/8 and 0."""
WENT: dict[tuple[str, str], Sequence[int]] = {
    (DRAWER, "true"): ALWAYS, (DRAWER, "erl_vlm"): LATE, (DRAWER, "vanilla"): NEVER, (DRAWER, "erl_vlm_mistake"): LATE,
    (DRAWER, "vanilla_mistake"): LATE, (DRAWER, "ce"): NEVER, (DRAWER, "unbalanced"): ALWAYS, (SWEEP, "erl_vlm"): ALWAYS,
    (SWEEP, "true"): ALWAYS, (SWEEP, "erl_vlm_mistake"): ALWAYS, (INSTRUCTIONS, "erl_vlm"): ALWAYS, (INSTRUCTIONS, "sparse"): LATE,
}  # fmt: skip


def rows_like(task: str, arm: str, went: Sequence[int], seeds: int = 2, cases: int = 4) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        for evaluation, (step, success) in enumerate(zip(STEPS, went, strict=True)):
            for place in range(cases):
                babyai = TASKS[task] == "babyai"
                yield {
                    "world": TASKS[task], "task": task, "arm": arm, "seed": seed, "evaluation": evaluation,
                    "step": step + (7 * seed if babyai else 0), "episode": step // 10, "place": place, "case": f"{seed}/{place}",
                    "start": ("fixed", "randomised")[place % 2] if babyai else "fixed", "length": 1, "success": bool(success),
                    "return": 2.5,
                }  # fmt: skip


def record_of(went: Any) -> dict[str, Any]:
    runs = [
        {
            "world": TASKS[task], "task": task, "arm": arm, "seed": seed, "steps": 400, "episodes": 40, "sessions": 3, "labels": 150,
            "requests": 151, "dollars": 0.0, "success": 1.0, "return": 1.0, "seconds": 120.0,
        }
        for task, arm in went
        for seed in range(2)
    ]  # fmt: skip
    settings = {
        "steps": 25_000, "rounds": 50,
        "babyai": {
            "tasks": 10, "lengths": [1, 3], "demonstrations": 3, "feedback": {"budget": 1500}, "algorithm": {"inverse_temperature": 3.0},
            "loop": {"episodes": 20, "updates": 200, "first_updates": 400, "session_every": 5, "temperature": 0.5},
        },
        "metaworld": {
            "queries": 50, "evaluation_tasks": 10, "fitting": {"batch": 32}, "algorithm": {"batch": 256, "actor_learning_rate": 0.001},
            "episode_steps": 5, "repeat": 4, "edges": {DRAWER: [0.25, 0.5]},
            "loop": {"steps": 25_000, "random_steps": 1000, "first_session": 4000, "every": 1000, "evaluate_every": 2500},
        },
    }  # fmt: skip
    names = {arm for _, arm in went}
    return {
        "arms": [arm.to_record() for name, arm in ARMS.items() if name in names], "runs": runs, "settings": settings, "version": "1",
        "machine": {"processor": "abacus"}, "seconds": {"learning": 180.0, "collecting": 1.0}, "config": {},
        "commands": ["guerdon reproduce erl-vlm", "guerdon reproduce erl-vlm --arms ce"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(record_of(WENT), [row for (task, arm), went in WENT.items() for row in rows_like(task, arm, went)])


def test_final_success_and_area_are_those_worked_out_by_hand(results: Results) -> None:
    late = results.curves[DRAWER, "erl_vlm"]
    assert late.success.shape == (2, 5, 4)
    np.testing.assert_allclose(late.measured("final").returns, 2 / 3)
    np.testing.assert_allclose(late.measured("area").returns, (50 + 100) / 400)  # trapezoid from 200 to 300, rectangle to 400
    assert results.difference(DRAWER, "erl_vlm", "true").value == pytest.approx(-1 / 3)
    assert results.difference(DRAWER, "erl_vlm", "true", "area").value == pytest.approx(3 / 8 - 1)
    assert results.improvement(DRAWER, "erl_vlm", "vanilla").value == 1.0
    assert results.improvement(DRAWER, "erl_vlm", "erl_vlm_mistake").value == 0.5


def test_uneven_evaluations_count_by_how_far_apart_they_are() -> None:
    rows = [
        {**row, "step": {0: 0, 100: 10, 200: 50, 300: 60, 400: 100}[row["step"]]} for row in rows_like(SWEEP, "true", (0, 1, 1, 0, 0), 1)
    ]
    found = curves_of(rows, "step")
    assert found is not None
    np.testing.assert_allclose(found.measured("area").returns, (5 + 40 + 5) / 100)
    np.testing.assert_allclose(found.measured("final").returns, 1 / 3)
    one = curves_of([row for row in rows if row["step"] == 50], "step")
    assert one is not None
    np.testing.assert_allclose([one.measured(measure).returns for measure in ("final", "area")], 1.0)
    assert curves_of([], "step") is None


def test_evaluated_tasks_of_other_seeds_are_matched_by_kind_and_place() -> None:
    """In BabyAI every seed has layouts of its own, and episodes and not steps are what runs share."""
    found = curves_of(rows_like(INSTRUCTIONS, "erl_vlm", LATE), "episode")
    assert found is not None
    assert found.cases == ("fixed 1 001", "fixed 1 002", "randomised 1 001", "randomised 1 002")
    assert found.kinds == (0, 0, 1, 1)
    assert found.at.tolist() == [0, 10, 20, 30, 40]
    assert found.seeds == (0, 1)


def test_an_interval_covers_seeds_and_tasks_and_one_seed_proves_nothing() -> None:
    uneven = list(rows_like(DRAWER, "erl_vlm", NEVER)) + [{**row, "success": row["seed"] == 1} for row in rows_like(DRAWER, "true", ALWAYS)]
    found = Results(record_of([(DRAWER, "erl_vlm"), (DRAWER, "true")]), uneven)
    difference = found.difference(DRAWER, "true", "erl_vlm")
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.0, 1.0))
    single = Results(record_of([(DRAWER, "erl_vlm"), (DRAWER, "true")]), [row for row in uneven if row["seed"] == 1])
    alone = single.difference(DRAWER, "true", "erl_vlm")
    assert (alone.value, alone.low) == (pytest.approx(1.0), None)
    assert single.improvement(DRAWER, "true", "erl_vlm").low is None


def test_claims_are_judged_by_their_intervals(results: Results) -> None:
    above, around, below = (Finding("", Estimate(value, value - 0.1, value + 0.1)) for value in (0.2, 0.05, -0.2))
    assert [verdict(each, 0.0) for each in ([above, above], [above, around], [above, below], [])] == [
        "holds", "not shown", "does not hold", "not measured",
    ]  # fmt: skip
    assert verdict([Finding("", Estimate(0.2))], 0.0) == "not shown", "without an interval nothing can be said"
    assert verdict([Finding("", Estimate(math.nan))], 0.0) == "not measured"
    # Every run of an arm goes alike, so the intervals have no width and the numbers are those of the arms.
    found = {claim.name: ([each.estimate.value for each in claim.find(results)], claim.verdict(results)) for claim in CLAIMS}
    assert found["vanilla"] == (pytest.approx([2 / 3, 0.0]), "not shown")  # with wrong ratings both do alike
    assert found["preferences"] == ([], "not measured")
    assert found["loss"] == (pytest.approx([2 / 3]), "holds")
    assert found["balance"] == (pytest.approx([-1 / 3]), "does not hold")
    assert found["true"] == (pytest.approx([-1 / 3, -5 / 8, 0.0, 0.0]), "does not hold")
    assert found["sparse"] == (pytest.approx([1 / 3]), "holds")
    assert found["mistakes"] == (pytest.approx([0.0] * 4), "holds"), "no more than a tenth below"
    assert value_of("verdict loss", results) == "holds"


def test_tables(results: Results) -> None:
    drawer = TABLES[DRAWER](results)
    assert [line.split(" | ")[0].removeprefix("| ") for line in drawer.splitlines()[2:]] == [
        ARMS[arm].words for arm in ARMS if (DRAWER, arm) in WENT
    ]
    assert "| ERL-VLM | 2 | 150 | 0.667 [0.67, 0.67] | 0.667 [0.67, 0.67] | 0.375 [0.38, 0.38] | 0.050 [0.05, 0.05] | 0.96 |" in drawer
    assert TABLES[SWEEP](results).splitlines()[-1].startswith("| ERL-VLM, a fifth wrong | 2 |")
    differences = TABLES["differences"](results)
    row = f"| {DRAWER} | ERL-VLM | vanilla ratings | **+0.667 [+0.67, +0.67]** | **+0.375 [+0.38, +0.38]** | **1.000 [1.00, 1.00]** |"
    assert row in differences
    assert f"| {DRAWER} | ERL-VLM, a fifth wrong | cross entropy, a fifth wrong | **+0.667" in differences
    ablation = TABLES["ablation"](results).splitlines()
    assert ablation[0] == f"| arm | {DRAWER} | {DRAWER}, paper | {SWEEP} | {SWEEP}, paper |"
    assert ablation[3] == "| cross entropy, a fifth wrong | 0.000 [0.00, 0.00] | 0.84 | – | 0.02 |"
    settings = TABLES["settings metaworld"](results)
    assert "| environment steps | 25,000 | 1,000,000 |" in settings
    assert "| its learning rates (policy, critics, temperature) | 0.001, 0.0003, 0.0001 | 0.0003, 0.0003, 0.0001 |" in settings
    assert f"| {DRAWER}: 3, from 2.5, 5 |" in settings
    assert "0.050 [0.05, 0.05]" in TABLES[DRAWER](results), "returns of 2.5, of 5 steps that could give 10 each"
    assert "| most labels | 1,050 | 9,900" in settings, "21 sessions of 50 labels"
    assert "| most labels | 1,500 | 1,500 |" in TABLES["settings babyai"](results)
    assert f"| {DRAWER} | true reward | 2 | 400 | 3 | 150 | 151 | 2.0 | 3 |" in TABLES["runs"](results)
    assert "| learning | 3.0 |" in TABLES["stages"](results)
    assert "**does not hold**" in TABLES["claims"](results)


def test_the_papers_numbers_stand_beside_arms_that_there_are() -> None:
    assert set(PUBLISHED) == set(TASKS)
    for task, found in PUBLISHED.items():
        assert all(task in ARMS[arm].tasks for arm in found)
    assert set(ABLATION) <= set(ARMS)
    assert {arm for claim in CLAIMS for pair in claim.pairs for arm in pair} <= set(ARMS)


def test_every_mark_of_the_page_is_known(results: Results) -> None:
    page = PAGE.read_text(encoding="utf-8")
    keys = re.findall(r"<!-- fill (.+?) -->", page)
    assert {f"table {name}" for name in TABLES} <= set(keys), "every table has its place"
    named = [key.split()[1:] for key in keys if key.split()[0] in ("final", "area", "total", "difference", "better")]
    assert all(arm in ARMS and task in ARMS[arm].tasks for task, *arms in named for arm in arms), "a page names what can be"
    filled = _study.filled(page, lambda key: value_of(key, results))
    assert "`guerdon reproduce erl-vlm`, then `guerdon reproduce erl-vlm --arms ce`" in filled
    assert "<!-- fill minutes -->3<!-- /fill -->" in filled
    for name in figures(results):
        assert f"(erl-vlm-{name}.svg)" in page
    assert value_of(f"final {DRAWER} erl_vlm", results) == "0.667 [0.67, 0.67]"
    assert value_of(f"area {DRAWER} erl_vlm", results) == "0.375 [0.38, 0.38]"
    assert value_of(f"difference {DRAWER} erl_vlm vanilla", results) == "**+0.667 [+0.67, +0.67]**"
    assert value_of(f"better {DRAWER} erl_vlm vanilla", results) == "1.000 [1.00, 1.00]"
    assert value_of(f"total {DRAWER} erl_vlm", results) == "0.050 [0.05, 0.05]"  # 2.5 of 50
    for key in (f"final {SWEEP} vanilla", f"total {SWEEP} vanilla", f"difference {SWEEP} erl_vlm vanilla"):
        assert value_of(key, results) == "–", "not carried out"
    for key in ("table nothing", "final nowhere vanilla", "verdict nothing", "poem"):
        with pytest.raises(KeyError):
            value_of(key, results)


def test_a_page_is_filled_also_where_little_was_tried() -> None:
    record = record_of([(INSTRUCTIONS, "sparse")])
    del record["settings"]["metaworld"], record["settings"]["steps"]
    little = Results(record, rows_like(INSTRUCTIONS, "sparse", LATE))
    filled = _study.filled(PAGE.read_text(encoding="utf-8"), lambda key: value_of(key, little))
    assert "| sparse reward | 2 |" in filled
    assert "**not measured**" in filled
    assert set(figures(little)) == {INSTRUCTIONS}


def test_figures_show_every_number(results: Results) -> None:
    drawn = figures(results)
    assert set(drawn) == {*TASKS, *(f"{task}-return" for task in (DRAWER, SWEEP)), "ablation"}
    elements = {name: list(ElementTree.fromstring(svg).iter()) for name, svg in drawn.items()}
    tips = {name: [each.text for each in found if each.tag.endswith("title")][1:] for name, found in elements.items()}
    assert len(tips[DRAWER]) == 7 * len(STEPS), "an arm at every evaluation"
    assert "ERL-VLM, 300: 1.000 [1.00, 1.00]" in tips[DRAWER]
    assert "ERL-VLM, 40: 1.000 [1.00, 1.00]" in tips[INSTRUCTIONS], "over episodes"
    assert "ERL-VLM, 300: 0.050 [0.05, 0.05]" in tips[f"{DRAWER}-return"], "2.5 of five steps' 50"
    assert sum(each.tag.endswith("polygon") for each in elements[DRAWER]) == 7, "a band for each arm"
    dots = [each for each in elements[DRAWER] if each.tag.endswith("circle")]
    assert float(dots[0].get("cy", 0)) < float(dots[-5].get("cy", 1e9)) or dots[0].get("cy") == dots[-5].get("cy")
    across = [float(each.get("cx", 0)) for each in dots[:5]]
    np.testing.assert_allclose(np.diff(across), np.diff(across)[0], atol=0.2)
    assert tips["ablation"][0] == f"ERL-VLM, a fifth wrong, {DRAWER}: 0.667 [0.67, 0.67]"


def test_an_arm_has_one_colour_in_all_figures(results: Results) -> None:
    found: dict[str, set[str]] = {}
    for svg in figures(results).values():
        coloured = [each for each in ElementTree.fromstring(svg).iter() if each.tag.endswith(("circle", "rect")) and len(each)]
        for mark in coloured:
            found.setdefault((mark[0].text or "").split(":")[0].rsplit(", ", 1)[0], set()).add(mark.get("fill", ""))
    assert len(found) > 5
    assert all(len(colours) == 1 for colours in found.values()), found
    assert found["true reward"] != found["ERL-VLM"]


def test_a_figure_of_curves_places_points_by_their_numbers() -> None:
    values = [Estimate(0.0, 0.0, 0.0), Estimate(0.5, 0.25, 0.75), Estimate(1.0)]
    svg = _study.curves("title", [0.0, 10.0, 100.0], [_study.Line("mine", values)], axis="steps", measure="success")
    elements = list(ElementTree.fromstring(svg).iter())
    across, high = ([float(each.get(name, "nan")) for each in elements if each.tag.endswith("circle")] for name in ("cx", "cy"))
    assert (across[1] - across[0]) / (across[2] - across[0]) == pytest.approx(0.1, abs=0.01)
    assert high[1] == pytest.approx((high[0] + high[2]) / 2, abs=0.1)
    (band,) = (each.get("points", "") for each in elements if each.tag.endswith("polygon"))
    assert len(band.split()) == 4, "the last point has no interval"
    many = _study.curves("title", [0.0, 1.0], [_study.Line(str(number), values[:2]) for number in range(9)], axis="", measure="")
    assert many.count("dasharray") == 2, "the ninth line has the colour of the first one, and dashes"
    assert "svg" in _study.curves("nothing", [], [], axis="", measure="")


# --- arms -----------------------------------------------------------------------------------------------------------------------------


def test_the_core_of_the_study() -> None:
    assert "erl-vlm" in studies()
    by_task: dict[str, list[str]] = {}
    for arm, task in Config().chosen:
        by_task.setdefault(task, []).append(arm.name)
    in_metaworld = ["true", "erl_vlm", "erl_vlm_mistake", "vanilla", "vanilla_mistake"]
    assert by_task == {
        DRAWER: in_metaworld,
        SWEEP: in_metaworld,
        INSTRUCTIONS: ["true", "quality", "erl_vlm", "vanilla", "rl_vlm_f", "sparse"],
    }
    assert [(arm.name, task) for arm, task in Config(arms=("erl_vlm_pictures", "erl_vlm_embedded")).chosen] == [
        ("erl_vlm_pictures", DRAWER), ("erl_vlm_pictures", SWEEP), ("erl_vlm_embedded", INSTRUCTIONS),
    ]  # fmt: skip
    assert {task for _, task in Config(worlds=("metaworld",), tasks=(SWEEP,)).chosen} == {SWEEP}


def test_the_short_run_of_the_docs_is_that_of_the_study(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "docs" / "sweep-into-short.yaml"
    words = ["erl-vlm", "--config", str(example), "--out", str(tmp_path)]
    shown = _config("erl-vlm", True, words, online.Config, loop.Config, "sac", SAC.Config)
    (job,) = jobs_of(Config(out=tmp_path, worlds=("metaworld",), tasks=(SWEEP,), arms=("erl_vlm",), seeds=1))
    assert online.decided(shown) == replace(online.decided(job.settings), out=tmp_path, quiet=False)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"arms": ("erl",)}, UnknownName, "arm of the study 'erl'"),
        ({"worlds": ("alfred",)}, UnknownName, "babyai"),
        ({"tasks": ("open-sesame",)}, UnknownName, SWEEP),
        ({"arms": ("ce", "ce")}, UsageError, "named twice"),
        ({"arms": ("ce",), "worlds": ("babyai",)}, UsageError, "nothing to do"),
        ({"arms": ("ce", "true"), "worlds": ("babyai",)}, UsageError, rf"ce: {DRAWER}"),
        ({"seeds": 0}, UsageError, "at least 1"),
        ({"steps": 5}, UsageError, "at least 20"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Config(**settings)


def test_all_arms_have_settings_that_runs_accept(tmp_path: Path) -> None:
    jobs = jobs_of(Config(out=tmp_path, arms=tuple(ARMS), seeds=2))
    made = {job.settings.out.relative_to(tmp_path): job for job in jobs}
    assert len(made) == len(jobs) == 2 * (9 + 9 + 7) + 2, "one run from pictures of each task"
    decided = {path.parts[2:4]: online.decided(job.settings) for path, job in made.items() if job.world == "metaworld"}
    for (_, arm), run in decided.items():
        assert (run.loop.steps, run.loop.evaluate_every, run.algorithm_settings.batch) == (25_000, 2_500, 256)
        if online.source_of(run.method).kind is not None:
            assert (run.loop.first_session, run.loop.every, run.queries, run.fitting.batch) == (2_000, 1_000, 50, 32)
            assert run.budget >= 1_050, "as many labels for all"
        if online.source_of(run.method).kind == "ratings":
            assert run.levels == 5
            assert len(run.edges) == run.levels - 1, "classes of a task have their own borders"
            assert (run.teacher, run.error_rate) == (("mistake", 0.2) if "mistake" in arm or arm in ABLATION else ("", 0.1))
    assert decided[DRAWER, "ce"].fitting.loss == "ce"
    assert decided[DRAWER, "ce"].fitting.sampler == decided[DRAWER, "erl_vlm"].fitting.sampler == "balanced"
    unbalanced = decided[DRAWER, "unbalanced"].fitting
    assert (unbalanced.loss, unbalanced.sampler, unbalanced.weights) == ("mae", "uniform", "none")
    assert (decided[DRAWER, "erl_vlm_pictures"].views, decided[DRAWER, "erl_vlm"].views) == (("close-no-robot",), ())
    embedded = made[Path("runs/babyai/instructions/erl_vlm_embedded/seed-1")].settings
    assert (embedded.vlm, embedded.seed, embedded.store) == (("embedded",), 1, str(tmp_path / "replies.sqlite"))
    assert [job.settings.seed for job in jobs] == sorted(job.settings.seed for job in jobs), "all arms of a seed before the next one"


def test_a_shorter_study_has_less_of_everything(tmp_path: Path) -> None:
    (job,) = jobs_of(Config(out=tmp_path, arms=("erl_vlm",), worlds=("metaworld",), tasks=(DRAWER,), seeds=1, steps=200))
    loop = online.decided(job.settings).loop
    assert (loop.random_steps, loop.first_session, loop.every, loop.evaluate_every) == (10, 40, 10, 20)


# --- rows -----------------------------------------------------------------------------------------------------------------------------


def test_rows_of_runs_in_both_worlds() -> None:
    outcome = {"task": "a/1", "success": True, "return": 12.0, "steps": 500}
    lines = [{"step": 0, "outcomes": [outcome]}, {"step": 750, "outcomes": [{**outcome, "success": False}]}]
    place = {"world": "metaworld", "task": DRAWER, "arm": "true", "seed": 2}
    found = list(rows_of(place, {"episode_steps": 500}, lines, ()))
    assert [(row["evaluation"], row["step"], row["episode"], row["start"], row["success"]) for row in found] == [
        (0, 0, 0, "fixed", True), (1, 750, 2, "fixed", False),
    ]  # fmt: skip
    elsewhere = {**outcome, "start": "randomised", "length": 2}
    metrics = [{"step": 0, "round": 0}, {"step": 300, "round": 1}, {"step": 750, "round": 2}]
    place = {"world": "babyai", "task": INSTRUCTIONS, "arm": "true", "seed": 0}
    found = list(rows_of(place, {"loop": {"episodes": 20}}, [{"step": 750, "outcomes": [outcome, elsewhere]}], metrics))
    assert [(row["episode"], row["place"], row["start"], row["length"]) for row in found] == [(40, 0, "fixed", 1), (40, 1, "randomised", 2)]


def test_rows_of_several_calls_become_one_table() -> None:
    before = [*rows_like(DRAWER, "vanilla", NEVER), *rows_like(DRAWER, "true", NEVER)]
    now = [*rows_like(DRAWER, "true", ALWAYS, seeds=1), *rows_like(SWEEP, "true", ALWAYS)]
    merged = merge(before, now, runs=[(DRAWER, "true", 0), (SWEEP, "true", 0), (SWEEP, "true", 1)])
    found = dict.fromkeys((row["task"], row["arm"], row["seed"], row["success"]) for row in merged)
    assert list(found) == [
        (DRAWER, "true", 0, True), (DRAWER, "true", 1, False), (DRAWER, "vanilla", 0, False), (DRAWER, "vanilla", 1, False),
        (SWEEP, "true", 0, True), (SWEEP, "true", 1, True),
    ]  # fmt: skip
    assert len(merged) == 6 * len(STEPS) * 4


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    assert collected(tmp_path) == ([], [])
    folder = Config(out=tmp_path).run(ARMS["true"], DRAWER, 0)
    write_json(folder / "manifest.json", {"results": {}, "config": {}})
    with pytest.raises(RunError, match="is damaged"):
        collected(tmp_path)


# --- the study --------------------------------------------------------------------------------------------------------------------------


def test_a_study_does_not_change_its_settings(tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", {"steps": 30})
    with pytest.raises(RunError, match="begun with steps 30, not 40"):
        reproduce(Config(out=tmp_path, steps=40, quiet=True))


def test_a_world_may_join_a_study_later(tmp_path: Path) -> None:
    first = reproduce_erl_vlm._begin(Config(out=tmp_path, worlds=("metaworld",), steps=40, rounds=7))
    assert set(first) == {"steps", "metaworld"}
    both = reproduce_erl_vlm._begin(Config(out=tmp_path, worlds=("babyai",), steps=90, rounds=3))
    assert (both["steps"], both["rounds"]) == (40, 3)
    with pytest.raises(RunError, match="begun with rounds 3, not 7"):
        reproduce_erl_vlm._begin(Config(out=tmp_path, steps=40, rounds=7))


def test_a_run_is_interrupted_when_its_caller_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_erl_vlm, "_SECONDS_BETWEEN_REPORTS", 0.01)
    told = threading.Event()

    def stop() -> None:
        told.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reproduce_erl_vlm._reporting(stop):
        while True:
            time.sleep(0.01)
    assert told.is_set()


TINY_METAWORLD = {
    "episode_steps": 25, "repeat": 2, "edges": {DRAWER: [0.15, 0.2]}, "evaluation_tasks": 1, "queries": 12,
    "loop": {"random_steps": 10, "first_session": 30, "every": 15},
    "fitting": {"batch": 8, "width": 8, "members": 1, "epochs": 1}, "algorithm": {"hidden": [8, 8], "batch": 16},
}  # fmt: skip
TINY_BABYAI = {
    "tasks": 2, "lengths": [1, 2], "demonstrations": 2, "feedback": {"budget": 60},
    "loop": {"episodes": 2, "updates": 2, "first_updates": 2, "session_every": 1, "temperature": 1.0},
    "fitting": {"members": 1, "epochs": 1, "encoder": "residual", "channels": 8}, "algorithm": {"inverse_temperature": 1.0},
}  # fmt: skip
SMALL = {"seeds": 1, "steps": 60, "rounds": 2, "tasks": (DRAWER,), "jobs": 1, "quiet": True}
SMALL_ARMS = ("true", "rl_vlm_f", "erl_vlm")
CHILD = """
from pathlib import Path
from guerdon.recipes import reproduce_erl_vlm as study
study.METAWORLD_SETTINGS, study.BABYAI_SETTINGS = {metaworld!r}, {babyai!r}
study.reproduce(study.Config(out=Path({out!r}), arms={arms!r}, **{small!r}))
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_erl_vlm, "METAWORLD_SETTINGS", TINY_METAWORLD)
    monkeypatch.setattr(reproduce_erl_vlm, "BABYAI_SETTINGS", TINY_BABYAI)


@pytest.mark.usefixtures("tiny")
def test_a_run_is_carried_out_and_kept(tmp_path: Path) -> None:
    config = Config(out=tmp_path, **{**SMALL, "arms": ("true",), "worlds": ("metaworld",), "steps": 40})
    (job,) = jobs_of(config)
    assert isinstance(job, Job)
    told: list[tuple[int, int]] = []
    path = carry_out(job, lambda done, total: told.append((done, total)))
    written = (path / "manifest.json").stat().st_mtime_ns
    assert carry_out(job, lambda *_: None) == path
    assert (path / "manifest.json").stat().st_mtime_ns == written
    runs, rows = collected(tmp_path)
    assert [(run["task"], run["arm"], run["seed"], run["steps"]) for run in runs] == [(DRAWER, "true", 0, 40)]
    assert [row["step"] for row in rows] == list(range(0, 41, 4))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    page = tmp_path / "erl-vlm.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code = CHILD.format(metaworld=TINY_METAWORLD, babyai=TINY_BABYAI, out=str(killed), arms=SMALL_ARMS, small=SMALL)
    child = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while not list((killed / "runs").glob("*/*/*/seed-0/manifest.json")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/*/seed-*/manifest.json")}
    assert done
    assert not (killed / "erl-vlm.json").exists(), "killed before the end"
    written = reproduce(Config(out=killed, arms=SMALL_ARMS, page=page, **SMALL))
    assert all(path.stat().st_mtime_ns == then for path, then in done.items()), "what was learned is kept"
    reproduce(Config(out=whole, arms=SMALL_ARMS[:1], **SMALL))
    reproduce(Config(out=whole, arms=SMALL_ARMS[1:], **{**SMALL, "jobs": 0}))
    rows = read_rows(killed / "erl-vlm.parquet")
    assert rows == read_rows(whole / "erl-vlm.parquet"), "killed, in two calls, or in other processes: the numbers are the same"
    assert {(row["task"], row["arm"]) for row in rows} == {(task, arm) for task in (DRAWER, INSTRUCTIONS) for arm in SMALL_ARMS}
    record = json.loads((whole / "erl-vlm.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in record["arms"]] == ["true", "erl_vlm", "rl_vlm_f"]
    assert len(record["runs"]) == 6
    assert all(run["labels"] > 0 for run in record["runs"] if run["arm"] != "true")
    assert {path.name for path in written} == {
        "erl-vlm.json", "erl-vlm.parquet", "erl-vlm.md",
        *(f"{each}{name}.svg" for each in ("", "erl-vlm-") for name in (DRAWER, f"{DRAWER}-return", INSTRUCTIONS)),
    }  # fmt: skip
    assert "| ERL-VLM | 1 |" in page.read_text(encoding="utf-8")
