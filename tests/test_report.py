"""The report: what it says about a whole run, about half a run, and about a run that somebody damaged."""

from __future__ import annotations

import base64
import html
import importlib
import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import guerdon
from guerdon.datasets import open_dataset
from guerdon.errors import DatasetError, RunError
from guerdon.evaluation.statistics import Estimate
from guerdon.labels import LabelSet
from guerdon.records import Frames, Label
from guerdon.report import build, figures
from guerdon.report.build import render
from guerdon.report.contents import read_contents, stale_parts
from guerdon.report.examples import examples
from guerdon.report.models import GivenRewards, ModelSection
from guerdon.report.rated import VERDICTS, class_counts, rated_examples
from guerdon.report.results import Results
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Manifest, Run, write_json
from tests import rated_runs
from tests.memory import MemoryDataset, MemoryEpisode

HOSTILE = 'go to the <script>alert(1)</script> & "ball"'
CONTRIBUTION = [1, 1, 0, -1, 1, 0, 1, 1, 1, -1]
EXPRESSIONS = {"both": "0.1 * rg_vlm + sparse", "sparse": "sparse"}


def dataset(episodes: int = 12) -> MemoryDataset:
    return MemoryDataset([MemoryEpisode(10, HOSTILE, contribution=CONTRIBUTION) for _ in range(episodes)])


def score(episode: int, step: int) -> float:
    """Right nearly everywhere; episode 3 is judged upside down."""
    return 9.0 if (CONTRIBUTION[step] > 0) != (episode == 3) else 1.0


def label(episode: int, step: int) -> Label:
    fate = {5: ("unreadable", "unreadable"), 6: ("refused", "blocked"), 7: ("failed", "timeout")}.get(episode) if step < 8 else None
    common: dict[str, Any] = {"unit": "transition", "episode": episode, "start": step, "stop": step + 1, "instruction": HOSTILE}
    common |= {"question": f"q{episode}-{step // 8}", "views": ("full",), "asked": 2, "rationale": f"line <b>{step}</b>"}
    if fate:
        return Label(**common, state=fate[0], cause=fate[1])  # type: ignore[arg-type]
    return Label(**common, state="labelled", value=score(episode, step))


def label_set(rater: str = "scripted") -> LabelSet:
    labels = [label(episode, step) for episode in range(12) for step in range(10)]
    return LabelSet(labels, {"method": "rg-vlm", "version": "1 s256:abc", "scale": [0, 10], "rater": rater, "dataset": "s256:memory"})


def begin(path: Path) -> Run:
    return Run.open_or_create(path / "run", dataset_path=path / "gone", fingerprint="s256:memory")


def add_labels(run: Run, rater: str = "scripted", dollars: float | None = None, *, name: str = "rg_vlm", requests: int = 48) -> None:
    part = run.part("labels", name).with_suffix(".parquet")
    label_set(rater).write(part)
    results = {"requests": requests, "found": 0, "input_tokens": 61000, "output_tokens": 5200, "dollars": dollars, "seconds": 71.0}
    run.finish(part, Manifest({"method": "rg-vlm"}, {}, results, {"command": "guerdon label data --run run"}))


def add_rewards(run: Run, expressions: Mapping[str, str] = EXPRESSIONS) -> None:
    for name, expression in expressions.items():
        part = run.part("rewards", name).with_suffix(".parquet")
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"not read by the report")
        findings = [{"severity": "warning", "name": "loitering", "message": "a step pays <em>too much</em>"}] if name == "both" else []
        run.finish(part, Manifest({"expression": expression}, {}, {"coverage": 0.8, "mean": 0.1, "min": 0, "max": 1, "findings": findings}))


def row(arm: str, seed: int, length: int, number: int, start: str, wording: str, share: float) -> dict[str, Any]:
    task = f"t{length}-{number}-{start}-{wording}"
    group = {"arm": arm, "seed": seed, "task": task, "length": length, "start": start, "wording": wording}
    return {**group, "return": share, "success": share == 1, "steps": 9, "step_limit": 30}


def add_evaluation(run: Run, arm: str, level: float, seeds: int = 3) -> None:
    random = np.random.default_rng([ord(letter) for letter in arm])
    for seed in range(seeds):
        groups = (("fixed", "seen", 1.0), ("randomised", "seen", 0.6), ("fixed", "held-out", 0.9))
        rows = [
            row(arm, seed, length, number, start, wording, int(random.binomial(length, level * factor)) / length)
            for start, wording, factor in groups
            for length in (1, 2, 3)
            for number in range(10)
        ]
        part = run.part("evaluations", arm) / f"seed-{seed}.jsonl"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(each) + "\n" for each in rows))
        run.finish(part, Manifest({}, {}, {"seconds": 5.0, "advantage_spearman": 0.3 + 0.1 * seed if arm == "both" else None}))
        if run.part("rewards", arm).with_suffix(".parquet").exists():
            policy = run.part("policies", arm) / f"seed-{seed}"
            run.finish(policy, Manifest({"algorithm": "iql", "reward": arm}, {}, {"seconds": 80.0}))


def add_rollouts(run: Run, arm: str, count: int = 5) -> None:
    folder = run.part("evaluations", arm) / "rollouts-seed-0"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.gif").write_bytes(gif(number))
    entry = {"instruction": HOSTILE, "start": "fixed", "wording": "seen", "return": 1.0, "steps": 7, "length": 2}
    write_json(folder / "index.json", [{**entry, "task": f"t{number}", "file": f"{number}.gif"} for number in range(count)])


def gif(shade: int) -> bytes:
    stream = BytesIO()
    pictures = [Image.new("RGB", (8, 8), (shade * 20, 0, step * 90)) for step in range(2)]
    pictures[0].save(stream, format="GIF", save_all=True, append_images=pictures[1:])
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = begin(tmp_path_factory.mktemp("whole"))
    add_labels(run)
    add_rewards(run)
    for arm, level in (("both", 0.9), ("sparse", 0.6), ("random", 0.1)):
        add_evaluation(run, arm, level)
    add_rollouts(run, "both")
    return run


@pytest.fixture(scope="module")
def page(whole_run: Run) -> str:
    return build(whole_run.path, dataset=dataset()).read_text(encoding="utf-8")


def plain(page: str) -> str:
    """The page's text, tags removed and white space folded."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))))


class Tags(HTMLParser):
    """Gathers start tags, and checks that every element that is opened is closed in its turn."""

    VOID = {"meta", "img", "br"}  # noqa: RUF012

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- a whole run ----------------------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_asks_no_server(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    assert all(tag not in ("script", "link", "iframe", "object") for tag, _ in tags.found)
    addresses = [value or "" for _, attributes in tags.found for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "url(" not in page
    assert "@import" not in page


def test_every_text_of_the_run_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "line <b>" not in page
    assert "line &lt;b&gt;0" in page
    assert "<em>" not in page


def test_the_lead_says_what_came_out(whole_run: Run, page: str) -> None:
    lead = plain(page[page.index('<div class="lead">') : page.index("<nav")])
    found = Results.of(read_contents(whole_run.path)).get("both", "fixed")
    assert found is not None
    assert f"completes on average {figures.spoken(found.mean)} from the start in the data" in lead
    assert "IQL on 0.1 * rg_vlm + sparse" in lead
    assert "That is above random" in lead
    assert "beats the sparse reward alone with probability" in lead
    assert "guessing from the actions alone reaches" in lead
    assert "sent 48 requests; no price is known" in lead


def test_a_scripted_rater_is_named_as_such(page: str) -> None:
    assert "Labels come from a scripted rater built on ground truth: no evidence about any real VLM." in plain(page)


@pytest.mark.parametrize(
    "words",
    [
        "relative drop", "Wordings that the data do not hold", "blind guess: per-action majority",
        "blind guess: previous, this and next action", "failed: timeout", "refused: blocked", "warning, loitering:",
        "no price known", "1 min 11 s", "4 min 0 s", "s256:memory", "guerdon label data --run run", "0.1 * rg_vlm + sparse",
        "3 × 30", "Score and ground truth disagree most", "No usable answer", "3 of 5 recorded rollouts are shown",
    ],
)  # fmt: skip
def test_what_the_page_holds(page: str, words: str) -> None:
    assert words in plain(page)


def test_the_number_is_not_sold_as_the_papers(page: str) -> None:
    assert "It is not the “task-completion accuracy” of the RG-VLM paper" in plain(page)


def test_pictures_are_what_the_rater_saw_and_what_the_policy_did(whole_run: Run, page: str) -> None:
    pictures = [attributes["src"] or "" for tag, attributes in Tags(page).found if tag == "img"]
    kinds = [address.partition(";")[0] for address in pictures]
    assert kinds.count("data:image/gif") == 3
    assert kinds.count("data:image/png") >= 6
    for address in pictures:
        Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).verify()


def test_figures_are_svg_with_one_colour_per_arm(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).find("title") is not None
    colours = {arm: set(re.findall(rf'class="(?:bar|range|dot) ([\w-]+)[^"]*"><title>{arm},', "".join(drawings))) for arm in EXPRESSIONS}
    assert all(len(found) == 1 for found in colours.values())
    assert colours["both"] != colours["sparse"]
    assert "arm-random" in page


def test_the_same_run_gives_the_same_page(whole_run: Run, page: str) -> None:
    again = build(whole_run.path, dataset=dataset()).read_text(encoding="utf-8")
    assert re.sub(r"written [\d\-: ]+ UTC", "", again) == re.sub(r"written [\d\-: ]+ UTC", "", page)


# --- comparisons ----------------------------------------------------------------------------------------------------------------------


def test_the_headline_arm_is_chosen_by_what_it_is_and_not_by_its_result(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_rewards(run)
    for arm, level in (("both", 0.2), ("sparse", 0.9), ("random", 0.15)):
        add_evaluation(run, arm, level)
    results = Results.of(read_contents(run.path))
    assert results.headline is not None
    assert results.headline.name == "both"
    assert [arm.name for arm in results.arms] == ["both", "sparse", "random"]
    assert results.above_random("both", "fixed") is False
    assert results.drop("both").estimate is None
    assert "not above that of a random policy" in plain(render(read_contents(run.path), None))
    assert "nothing is shown to have been learned" in plain(render(read_contents(run.path), None))


def test_labels_alone_come_before_labels_with_a_sparse_reward(tmp_path: Path) -> None:
    run = begin(tmp_path)
    expressions = {**EXPRESSIONS, "rg_vlm": "rg_vlm - 1"}
    add_rewards(run, expressions)
    for arm in expressions:
        add_evaluation(run, arm, 0.5)
    results = Results.of(read_contents(run.path))
    assert results.headline is not None
    assert results.headline.name == "rg_vlm"
    assert [arm.name for arm in results.arms] == ["rg_vlm", "both", "sparse"]


def test_arms_are_shown_in_the_order_of_their_roles(tmp_path: Path) -> None:
    run = begin(tmp_path)
    rewards = {
        "both": "0.1 * rg_vlm + sparse", "constant_both": "0.1 * constant(rg_vlm) + sparse", "shuffled_both": "shuffled(rg_vlm) + sparse",
        "flat": "0.5", "oracle": "oracle", "sparse": "sparse",
    }  # fmt: skip
    for name, expression in rewards.items():
        part = run.part("rewards", name).with_suffix(".parquet")
        part.parent.mkdir(exist_ok=True)
        part.touch()
        run.finish(part, Manifest({"expression": expression}, {}))
        run.finish(run.part("policies", name) / "seed-0", Manifest({"algorithm": "iql", "reward": name}, {}))
    run.finish(run.part("policies", "bc") / "seed-0", Manifest({"algorithm": "bc", "reward": None}, {}))
    for arm in (*rewards, "bc", "random", "replay"):
        add_evaluation(run, arm, 0.5, seeds=1)
    arms = Results.of(read_contents(run.path)).arms
    assert [(arm.name, arm.role) for arm in arms] == [
        ("both", "method"), ("sparse", "method"), ("bc", "method"), ("oracle", "reference"), ("constant_both", "control"),
        ("shuffled_both", "control"), ("flat", "control"), ("random", "baseline"), ("replay", "baseline"),
    ]  # fmt: skip
    assert {arm.name: arm.description for arm in arms}["bc"] == "BC, no rewards"
    assert len({arm.css for arm in arms}) == len(arms)


def test_advantages_are_averaged_over_seeds(whole_run: Run, page: str) -> None:
    assert Results.of(read_contents(whole_run.path)).advantages == {"both": pytest.approx(0.4)}
    assert "advantages vs truth" in page


def test_a_known_price_is_shown(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run, "google:gemini-2.5-flash", dollars=1.234)
    page = plain(build(run.path, dataset=dataset()).read_text(encoding="utf-8"))
    assert "sent 48 requests and cost $1.23" in page
    assert "scripted" not in page
    assert "no evidence" not in page


def test_the_rater_of_the_package_is_named_as_such(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run, "embedded:babyai-1", dollars=0.0)
    page = plain(build(run.path, dataset=dataset()).read_text(encoding="utf-8"))
    assert "Labels come from guerdon's own embedded rater: no evidence about general VLMs. “embedded:babyai-1” sees the pictures" in page
    assert "built on ground truth" not in page


def test_what_several_label_sets_cost_is_not_counted_twice(tmp_path: Path) -> None:
    """Each says what the whole run had cost when it was made."""
    run = begin(tmp_path)
    add_labels(run, "google:gemini-2.5-flash", dollars=1.0)
    add_labels(run, "google:gemini-2.5-pro", dollars=3.5, name="second", requests=96)
    page = plain(build(run.path, dataset=dataset()).read_text(encoding="utf-8"))
    assert "sent 96 requests and cost $3.50" in page
    assert "all of this run" in page
    assert "$1.00" not in page
    assert "$4.50" not in page


# --- examples -------------------------------------------------------------------------------------------------------------------------


def test_examples_are_sorted_into_right_wrong_and_unusable() -> None:
    found = examples(label_set(), dataset())
    kinds = [example.kind for example in found]
    assert kinds == ["agree"] * 3 + ["disagree"] + ["unusable"] * 3
    assert all(example.wrong == 0 and example.right == 8 for example in found[:3])
    assert (found[3].episode, found[3].wrong) == (3, 8)
    assert [example.outcome for example in found[4:]] == ["unreadable", "refused: blocked", "failed: timeout"]
    assert examples(label_set(), dataset()) == found


def test_examples_without_ground_truth_are_spread_over_the_labels() -> None:
    blind = MemoryDataset([MemoryEpisode(10, HOSTILE) for _ in range(12)])
    found = examples(label_set(), blind)
    assert [example.kind for example in found] == ["sample"] * 3 + ["unusable"] * 3
    assert len({example.episode for example in found[:3]}) == 3
    assert all(action.truth is None and action.agrees is None for example in found for action in example.actions)


def test_an_unreadable_picture_is_said_to_be_missing() -> None:
    class Damaged(MemoryDataset):
        def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
            raise DatasetError("the file is damaged", where=f"episode {index}")

    found = examples(label_set(), Damaged([MemoryEpisode(10, contribution=CONTRIBUTION) for _ in range(12)]))
    assert found
    assert all(example.picture is None and "the file is damaged" in example.missing for example in found)


# --- what is missing, damaged or hostile ------------------------------------------------------------------------------------------------


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    page = plain(build(begin(tmp_path).path).read_text(encoding="utf-8"))
    for words in ("No policy has been evaluated", "holds no labels", "holds no reward columns", "No rollouts", "dataset cannot be read"):
        assert words in page


def test_a_run_with_labels_only_and_no_dataset_has_a_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run)
    page = plain(build(run.path).read_text(encoding="utf-8"))
    assert "Agreement with ground truth was not measured: the dataset is not at hand" in page
    assert "No examples: the dataset is not at hand" in page
    assert "80.0% of 120 labels carry a value" in page


def test_labels_without_ground_truth_have_a_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run, "google:some-model")
    blind = MemoryDataset([MemoryEpisode(10, HOSTILE) for _ in range(12)])
    page = plain(build(run.path, dataset=blind).read_text(encoding="utf-8"))
    assert "the dataset records no ground truth" in page
    assert "Windows from the label set" in page


def test_one_arm_without_random_or_random_start_has_a_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    part = run.part("evaluations", "mystery") / "seed-0.jsonl"
    part.parent.mkdir(parents=True)
    part.write_text(json.dumps(row("mystery", 0, 1, 0, "fixed", "seen", 1.0)))
    run.finish(part, Manifest({}, {}))
    page = plain(build(run.path).read_text(encoding="utf-8"))
    assert "“mystery” (no record of how it was made) completes on average 1.00 from the start in the data" in page
    assert "The random start was not evaluated" in page
    assert "undefined: not evaluated from the randomised start" in page
    assert "Held-out wordings were not evaluated" in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels/rg_vlm.parquet", b"PAR1 damaged", "cannot be read as a label set"),
        ("labels/rg_vlm.json", b"{", "cannot be read as JSON"),
        ("rewards/both.json", b"[]", "“both”"),
        ("evaluations/both/seed-1.jsonl", b'{"arm": "both"\n', "line 1 is no JSON"),
        ("evaluations/both/seed-1.jsonl", b"[1, 2]\n", "line 1 is no record"),
        ("evaluations/both/seed-1.jsonl", b'{"arm": "both", "return": 7}\n', "has no 'task'"),
        ("evaluations/both/seed-1.jsonl", b"\xff\xfe\n", "line 1 is no JSON"),
        ("evaluations/both/rollouts-seed-0/index.json", b'[{"file": "../../../run.json"}, 3]', "no GIF file beside it"),
        ("evaluations/both/rollouts-seed-0/0.gif", b"<svg onload=alert(1)>", "no GIF file beside it"),
        ("tasks.json", b"{}", "is not a list of tasks"),
    ],
)
def test_a_damaged_part_is_named_and_the_rest_is_shown(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    run = begin(tmp_path)
    add_labels(run)
    add_rewards(run)
    add_evaluation(run, "both", 0.8)
    add_rollouts(run, "both", 2)
    (run.path / name).write_bytes(content)
    page = build(run.path, dataset=dataset()).read_text(encoding="utf-8")
    assert words in plain(page)
    assert "onload" not in page
    assert "Provenance" in page


def test_an_unfinished_evaluation_is_left_out_and_named(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_evaluation(run, "both", 0.8)
    (run.path / "evaluations/both/seed-2.json").unlink()
    page = plain(build(run.path).read_text(encoding="utf-8"))
    assert "evaluations/both/seed-2.jsonl is not finished" in page
    assert "2 × 30" in page


def test_episodes_that_not_every_seed_has_done_are_counted_as_left_out(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for seed, tasks in enumerate(("ab", "a")):
        part = run.part("evaluations", "both") / f"seed-{seed}.jsonl"
        part.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**row("both", seed, 1, 0, "fixed", "seen", 1.0), "task": task} for task in tasks]
        rows.append({**row("both", seed, 1, 0, "randomised", "seen", 1.0), "task": f"own-{seed}"})
        part.write_text("".join(json.dumps(each) + "\n" for each in rows))
        run.finish(part, Manifest({}, {}))
    problems = Results.of(read_contents(run.path)).problems
    assert problems == (
        "both, randomised, seen: its seeds have no task in common.",
        "both (fixed, seen): 1 episodes do not count, because not every seed has done their task.",
    )


def test_parts_made_from_what_has_changed_since_are_named(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run)
    add_rewards(run)
    add_evaluation(run, "both", 0.5, seeds=1)
    for part, inputs, results in (
        (run.path / "labels/rg_vlm.parquet", {}, {"fingerprint": "s256:new"}),
        (run.path / "rewards/both.parquet", {"dataset": "s256:memory", "labels/rg_vlm": "s256:old"}, {"fingerprint": "s256:reward"}),
        (run.path / "rewards/sparse.parquet", {"labels/rg_vlm": "s256:new"}, {}),
    ):
        run.finish(part, Manifest({"expression": "rg_vlm"}, inputs, results))
    policy = run.path / "policies/both/seed-0"
    run.finish(policy, Manifest({"algorithm": "iql", "reward": "both"}, {"rewards": "s256:other reward"}))
    assert stale_parts(read_contents(run.path)) == [
        "policies/both/seed-0 was made from another rewards/both than there is now; make it again.",
        "rewards/both was made from another labels/rg_vlm than there is now; make it again.",
    ]
    assert "rewards/both was made from another labels/rg_vlm" in plain(render(read_contents(run.path), None))


def test_manifests_with_nonsense_in_them_do_not_stop_the_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_labels(run)
    add_rewards(run)
    nonsense: Mapping[str, Any] = {"seconds": "long", "dollars": [], "requests": None, "findings": "none", "coverage": True}
    write_json(run.path / "labels/rg_vlm.json", {"config": [], "inputs": None, "results": nonsense, "provenance": 3})
    write_json(run.path / "rewards/both.json", {"config": {"expression": 5}, "results": {"findings": [1, {"name": 2}]}})
    assert "no price known" in plain(build(run.path, dataset=dataset()).read_text(encoding="utf-8"))


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add_rewards(run)
    run.finish(run.part("rewards", "both").with_suffix(".parquet"), Manifest({"expression": "\ud800"}, {}))
    assert "Reward checks" in build(run.path).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        build(tmp_path)


# --- ratings, reward models and their rewards: a world of continuous actions and state vectors, without contributions ------------------

WRONG = ((1, 2), (4, 11))
"""Pictures that the rater of these runs gets wrong."""


@pytest.fixture(scope="module")
def rated_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ratings, preferences and scores of an arm's pictures, a model fitted to the ratings, its rewards, and a reward made with them."""
    from guerdon.rewards.fitting import Config

    folder = tmp_path_factory.mktemp("rated")
    run = rated_runs.begin(rated_runs.robot_data(folder / "data"), folder / "run")
    rated_runs.add_labels(run, rated_runs.ratings(wrong=WRONG, missing=3))
    rated_runs.add_labels(run, rated_runs.pairs(), "preference", method="preference", scale=[0, 1], levels=None)
    with pytest.MonkeyPatch.context() as patch:
        for recipe in ("fit", "relabel"):
            module = importlib.import_module(f"guerdon.recipes.{recipe}")
            patch.setattr(module, "run_apart", lambda work, job, *, progress, variables: work(job, progress))
        guerdon.fit(run=run.path, vectors=("state",), fitting=Config(updates=60, members=2, width=32), quiet=True)
        guerdon.relabel(run=run.path, quiet=True)
    guerdon.reward(run=run.path, compose="0.1 * erl_vlm + sparse", name="both")
    return run


@pytest.fixture(scope="module")
def rated_page(rated_run: Run) -> str:
    return build(rated_run.path).read_text(encoding="utf-8")


def test_ratings_are_shown_with_what_was_true(rated_page: str, rated_run: Run) -> None:
    words = plain(rated_page)
    labels = LabelSet.read(rated_run.path / "labels/rating.parquet").labels
    assert f"The rater scripted:perfect gave a usable rating for 97.5% of the {len(labels)} things asked about, with a balanced" in words
    assert "Measured on 117 labels of 10 episodes whose true quality is known" in words
    good = sum(label.value == 2 for label in labels)
    assert f"Good {good} {good / 117:.1%}" in words
    assert "failed: timeout 3 2.5%" in words
    assert "the truly better one, where one is preferred 1.00 [1.00, 1.00]" in words
    assert "cut into equal widths" in words, "what true classes are is said"
    assert words.count("✗") == len(WRONG) + 6, "both wrong ratings, and six of the pairs called equal"
    assert "episode 1, picture 2" in words
    ElementTree.fromstring(re.findall(r"<svg.*?</svg>", rated_page, re.DOTALL)[0])


def test_a_model_and_its_rewards_are_shown(rated_page: str) -> None:
    words = plain(rated_page)
    assert "“erl_vlm”, fitted to rating" in words
    assert "117 labels (rating) about 117 transitions. The model looks at state (3 numbers) after an action" in words
    assert "Balanced accuracy while it was fitted" in words
    assert "From model “erl_vlm”, raw rewards. Over 120 transitions of 10 episodes their rank correlation with the true quality" in words
    assert words.count("Episode 1: “open the drawer”") == 1
    assert "Episode 8: “open the drawer”, completed" in words
    assert '<a href="#models">' in rated_page
    assert "“both” = 0.1 * erl_vlm + sparse" in words
    assert "onload" not in rated_page


def test_a_report_of_ratings_needs_no_dataset_and_survives_damage(rated_run: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(rated_run.path, tmp_path / "run"))
    words = plain(render(read_contents(run.path), None))
    assert "Agreement with ground truth was not measured: the dataset is not at hand" in words
    assert "How far they follow the truth is not known: the dataset is not at hand" in words
    (run.path / "rewards/erl_vlm.parquet").write_bytes(b"damaged")
    (run.path / "models/erl_vlm/metrics.jsonl").write_text("{}\nnonsense\n")
    write_json(run.path / "models/erl_vlm/manifest.json", {"config": {"labels": 3}, "results": {"classes": [["a"], 4], "held_out": [1]}})
    (run.path / "models/.other.x.part/other").mkdir(parents=True)
    (run.path / "models/half").mkdir()
    words = plain(render(read_contents(run.path), open_dataset(run.dataset_path)))
    assert "rewards/erl_vlm.parquet: cannot be read as a reward column" in words
    assert "metrics.jsonl: line 2 is no JSON" in words
    assert "models/half is not finished" in words
    assert "“erl_vlm”, fitted to labels" in words
    assert "other" not in read_contents(run.path).models


def test_models_and_rewards_of_what_has_changed_since_are_named(rated_run: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(rated_run.path, tmp_path / "run"))
    assert stale_parts(read_contents(run.path)) == []
    rated_runs.add_labels(run, rated_runs.ratings((0, 1)))
    assert stale_parts(read_contents(run.path)) == ["models/erl_vlm was made from another labels/rating than there is now; make it again."]
    manifest = json.loads((run.path / "models/erl_vlm/manifest.json").read_text())
    write_json(run.path / "models/erl_vlm/manifest.json", {**manifest, "inputs": {}, "results": {"fingerprint": "s256:new"}})
    assert stale_parts(read_contents(run.path)) == [
        "rewards/erl_vlm was made from another models/erl_vlm than there is now; make it again."
    ]


def test_rewards_are_compared_with_the_quality_that_actions_led_to(rated_run: Run) -> None:
    """Rewards that equal the quality of o_(t+1) correlate perfectly; turned round in half of the episodes, within episodes not at all."""
    contents = read_contents(rated_run.path)
    metadata = contents.columns["erl_vlm"].metadata
    straight = {(episode, 0): rated_runs.quality(episode)[1:] for episode in range(rated_runs.EPISODES)}
    turned = {key: values if key[0] % 2 else values[::-1].copy() for key, values in straight.items()}
    late = {key: np.r_[values[1:], values[:1]] for key, values in straight.items()}
    dataset = open_dataset(rated_run.dataset_path)
    found = [GivenRewards._of("x", RewardColumn(values, metadata), dataset) for values in (straight, turned, late)]
    assert found[0].spearman == Estimate(pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))  # type: ignore[arg-type]
    assert [each.within for each in found[:2]] == pytest.approx([1.0, 0.0])
    assert found[2].within is not None
    assert found[2].within < 0.6
    assert (found[0].episodes, found[0].transitions) == (10, 120)
    unknown = GivenRewards._of("x", RewardColumn({(0, 0): np.full(12, np.nan, np.float32)}, metadata), dataset)
    assert (unknown.spearman, unknown.transitions) == (None, 0)


def test_manifests_of_models_are_read_without_trust(rated_run: Run) -> None:
    (section,) = ModelSection.all_of(read_contents(rated_run.path))
    assert [name for name, _ in section.classes] == list(rated_runs.LEVELS)
    assert {name for name, _, _ in section.measures} == {"accuracy", "balanced accuracy", "contradicted"}
    assert section.history is not None


def test_examples_of_each_class_and_of_what_is_wrong(rated_run: Run) -> None:
    dataset = open_dataset(rated_run.dataset_path)
    found = rated_examples(LabelSet.read(rated_run.path / "labels/rating.parquet"), dataset)
    assert [(each.kind, each.given) for each in found] == [
        *[("right", name) for name in rated_runs.LEVELS for _ in range(2)], ("wrong", "Good"), ("wrong", "Bad"), ("unusable", "")
    ]  # fmt: skip
    wrong = {each.places[0][:2]: (each.given, each.truth) for each in found if each.kind == "wrong"}
    assert wrong == {(1, 2): ("Good", "Bad"), (4, 11): ("Bad", "Good")}
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(found[0].pictures[0].split(",")[1]))))
    episode, k, _ = found[0].places[0]
    assert set(np.unique(picture)) == {int(255 * rated_runs.quality(episode)[k])}, "the one picture that was rated, and nothing drawn on it"
    pairs = rated_examples(LabelSet.read(rated_run.path / "labels/preference.parquet"), dataset)
    assert {len(each.pictures) for each in pairs} == {2}
    assert {each.given for each in pairs if each.kind == "right"} == {VERDICTS[0], VERDICTS[2]}


def test_segments_are_shown_as_a_few_frames_and_unknown_truth_as_samples() -> None:
    common: dict[str, Any] = {"unit": "segment", "instruction": "go", "state": "labelled", "views": ("full",)}
    labels = [Label(**common, episode=0, start=2, stop=40, value=1.0), Label(**common, episode=0, start=0, stop=1, value=0.0)]
    meaning = {"levels": ["Bad", "Good"], "scale": [0, 1], "dataset": "s256:memory"}
    found = rated_examples(LabelSet(labels, meaning), MemoryDataset([MemoryEpisode(40)]))
    assert [(each.kind, each.given, each.where) for each in found] == [
        ("sample", "Bad", "episode 0, action 0"), ("sample", "Good", "episode 0, actions 2 to 39")
    ]  # fmt: skip
    sizes = [Image.open(BytesIO(base64.b64decode(each.pictures[0].split(",")[1]))).size for each in found]
    side = 19 * 16  # enlarged
    assert sizes == [(2 * (side + 4) + 4, 18 + side + 8), (3 * (side + 4) + 4, 3 * (18 + side + 4) + 4)], "two frames, and nine of 39"


def test_labels_are_counted_by_class() -> None:
    labels = [rated_runs.rating(0, 1, level) for level in (0, 2, 2, None)]
    assert class_counts(labels, rated_runs.LEVELS) == [("Bad", 1), ("Average", 0), ("Good", 2)]
    assert [count for _, count in class_counts(rated_runs.pairs(10), ())] == [
        sum(label.value == value for label in rated_runs.pairs(10)) for value in (0.0, 0.5, 1.0)
    ]


# --- figures --------------------------------------------------------------------------------------------------------------------------


def test_bars_have_the_height_of_their_numbers() -> None:
    series = figures.Series("<both>", "arm-0", {"1": Estimate(0.5, 0.25, 0.75), "2": Estimate(1.0)})
    drawing = ElementTree.fromstring(figures.bars([series], ["1", "2", "3"], axis="sub-tasks", description="bars"))
    heights = [float(bar.get("height", "")) for bar in drawing.iter("rect")]
    assert heights[1] == pytest.approx(2 * heights[0])
    titles = [title.text for bar in drawing.iter("rect") for title in bar.iter("title")]
    assert titles == ["<both>, 1: 0.50 [0.25, 0.75]", "<both>, 2: 1.00"]
    assert len([path for path in drawing.iter("path") if path.get("class") == "whisker"]) == 1


def test_many_distinct_scores_are_put_into_ten_bins() -> None:
    counts = {"serves": {float(value): 1 for value in np.linspace(0, 1, 41)}}
    drawing = ElementTree.fromstring(figures.histogram(counts, (0.0, 1.0), axis="score", description="scores"))
    heights = [float(bar.get("height", "")) for bar in drawing.iter("rect")]
    assert len(heights) == 10
    assert heights[-1] > heights[0]


def test_lines_go_through_their_numbers_and_leave_gaps() -> None:
    """Of a height of 190 the lines take 12 to 144: -1 is drawn at 144, 1 at 12, 0 in the middle."""
    reward = figures.Line("reward", "arm-0", (-1.0, 0.0, None, 1.0), (-1.0, 1.0))
    truth = figures.Line("truth", "arm-2", (0.0, 0.25, 0.5, 1.0), (0.0, 1.0))
    drawing = ElementTree.fromstring(figures.lines([reward, truth], axis="transition", description="lines"))
    paths = [path.get("d") or "" for path in drawing.iter("path")]
    heights = [[float(point.split()[1]) for point in re.split("[ML]", path) if point] for path in paths]
    assert heights == [[144, 78, 12], [144, 111, 78, 12]]
    assert [re.sub("[^ML]", "", path) for path in paths] == ["MLM", "MLLL"]
    ends = [text.text for text in drawing.iter("text") if text.get("text-anchor") in ("start", "end")]
    assert ends == ["-1", "0", "0", "0.5", "1", "1"]
    titles = [title.text for path in drawing.iter("path") for title in path.iter("title")]
    assert titles == ["reward: -1 at 0, 1 at 3", "truth: 0 at 0, 1 at 3"]
    assert "circle" in figures.lines([figures.Line("one", "arm-0", (0.5,), (0.0, 1.0))], axis="epoch", description="one", places=[20])
    assert "path" not in figures.lines([figures.Line("none", "arm-0", (None,), (0.0, 1.0))], axis="epoch", description="none")


def test_whole_scores_keep_their_empty_places() -> None:
    drawing = ElementTree.fromstring(figures.histogram({"serves": {0.0: 1, 10.0: 3}}, (0.0, 10.0), axis="score", description="scores"))
    ticks = [text.text for text in drawing.iter("text") if text.get("text-anchor") == "middle"]
    assert ticks == ["score", *(str(value) for value in range(11))]
