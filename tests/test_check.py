"""The check of a dataset: what is in it is counted right, and each defect planted is found where it was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from guerdon.datasets import open_dataset
from guerdon.datasets.check import Findings, check, render
from guerdon.datasets.minari import RecordedEpisode
from guerdon.records import Annotation, Frames, Span
from tests.data.episodes import ACTIONS, episode, write
from tests.memory import MemoryDataset, MemoryEpisode


def checked(path: Path, *episodes: RecordedEpisode, **changes: Any) -> Findings:
    return check(open_dataset(write(path / "d", list(episodes) or None, **changes)))


def test_contents_are_counted(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "d"))
    findings = check(dataset)
    contents = findings.contents
    assert findings.problems == ()
    assert (contents.episodes, contents.transitions, contents.lengths) == (3, 33, (10, 11.0, 12))
    assert contents.views == {"image": ((8, 10),), "wrist": ((4, 5),)}
    taken = np.concatenate([dataset.actions(index) for index in range(3)])
    assert contents.actions == {name: int((taken == number).sum()) for number, name in enumerate(ACTIONS)}
    assert sum(contents.actions.values()) == 33
    assert (contents.instructions, contents.annotations, contents.subtasks, contents.subtask_instructions) == (2, 6, 6, 2)
    assert (contents.terminated, contents.truncated) == (3, 0)
    assert (contents.rewards, contents.rewarded) == ((0.0, 1.0), 3)
    assert contents.privileged == ("contribution", "progress")
    assert contents.environment == {"name": "doors"}
    assert contents.fingerprint == dataset.fingerprint
    json.dumps(findings.to_record(), allow_nan=False)


def test_continuous_actions_have_ranges(tmp_path: Path) -> None:
    actions = [np.array([[0.0, -1.0], [0.5, 0.0]]), np.array([[-2.0, 0.25], [0.0, 0.0]])]
    findings = checked(tmp_path, *(episode(2, seed, actions=a) for seed, a in enumerate(actions)), action_names=())
    assert findings.contents.action_ranges == ((-2.0, 0.5), (-1.0, 0.25))
    assert findings.contents.actions == {}
    assert "actions       -2 to 0.5; -1 to 0.25" in render(findings)


def flat(length: int, colour: int) -> dict[str, Frames]:
    return {"image": np.full((length + 1, 8, 10, 3), colour, np.uint8)}


def still(length: int) -> dict[str, Frames]:
    return {"image": np.repeat(episode(1).frames["image"][:1], length + 1, axis=0)}


def spans(*spans: Span) -> tuple[Annotation, ...]:
    return (Annotation("x", spans),)


PLANTED: dict[str, tuple[dict[str, Any], str, str, int | None, str]] = {
    "black": ({"frames": flat(10, 0)}, "error", "flat-pictures", None, "every picture is black"),
    "grey": ({"frames": flat(10, 90)}, "error", "flat-pictures", None, "every picture is of one flat colour"),
    "still": ({"frames": still(10)}, "warning", "still-pictures", None, "all 11 pictures are the same"),
    "no words": ({"annotations": (Annotation("  "),)}, "error", "no-instruction", None, "its instruction has no words"),
    "no sub-task words": (
        {"annotations": spans(Span(0, 4, ""), Span(4, 10, "b"))}, "error", "no-instruction", None, "its sub-task [0, 4) has no words"
    ),
    "overlap": (
        {"annotations": spans(Span(0, 6, "a"), Span(5, 10, "b"))}, "error", "overlapping-spans", 5,
        "the sub-task 'b' [5, 10) begins before the one before it ends",
    ),
    "gap": (
        {"annotations": spans(Span(0, 4, "a"), Span(6, 10, "b"))}, "warning", "gap-between-spans", 4,
        "transitions [4, 6) belong to no sub-task",
    ),
    "gap at the end": (
        {"annotations": spans(Span(0, 9, "a"))}, "warning", "gap-between-spans", 9, "transitions [9, 10) belong to no sub-task"
    ),
    "empty span": (
        {"annotations": spans(Span(0, 10, "a"), Span(10, 10, "b"))}, "warning", "empty-span", 10,
        "the sub-task 'b' [10, 10) holds no transition",
    ),
    "both endings": ({"truncated": True}, "warning", "unclear-ending", 9, "is both terminated and truncated"),
    "no ending": ({"terminated": False}, "warning", "unclear-ending", 9, "is neither terminated nor truncated at its end"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_is_found_at_its_place_and_nothing_else(tmp_path: Path, name: str) -> None:
    changes, severity, kind, step, what = PLANTED[name]
    one_view = {"frames": {"image": episode(10, 1).frames["image"]}}
    healthy = episode(10, 5, frames={"image": episode(10, 5).frames["image"]})
    (problem,) = checked(tmp_path, healthy, episode(10, 1, **(one_view | changes))).problems
    assert (problem.severity, problem.kind, problem.episode, problem.step, problem.what) == (severity, kind, 1, step, what)
    assert problem.where.startswith(f"{tmp_path / 'd'}, episode 1")


def test_episodes_that_are_the_same_are_named(tmp_path: Path) -> None:
    findings = checked(tmp_path, episode(10, 1), episode(10, 2), episode(10, 1), episode(10, 1, annotations=(Annotation("other words"),)))
    (problem,) = findings.problems
    assert (problem.kind, problem.episode, problem.what) == ("duplicate-episode", 2, "is the same as episode 0")


def test_damaged_and_empty_episodes_do_not_hide_the_next_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(10, seed) for seed in range(4)])
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1/observations/image"]
        for name in ("rewards", "actions", "terminations", "truncations"):
            del file[f"episode_2/{name}"]
            file[f"episode_2/{name}"] = np.zeros(0)
        file["episode_2"].attrs["guerdon"] = json.dumps({"annotations": [{"instruction": "x", "spans": []}]})
        file["episode_3/terminations"][2] = True
        file["episode_3/observations/state"] = np.r_[np.zeros(4), np.nan, np.zeros(6)]
    done: list[tuple[int, int]] = []
    findings = check(open_dataset(path), progress=lambda *step: done.append(step))
    found = [(problem.severity, problem.kind, problem.episode, problem.step) for problem in findings.problems]
    assert found == [
        ("error", "unreadable", 1, None),
        ("error", "empty-episode", 2, None),
        ("warning", "odd-values", 3, 2),
        ("warning", "odd-values", 3, 4),
    ]
    assert findings.errors == 2
    assert findings.contents.transitions == 20
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    text = render(findings)
    assert "error (unreadable), 1 time:" in text
    assert f"  {path}/data/main_data.hdf5, episode 1: view 'image' is missing" in text
    assert text.endswith("2 errors, 2 warnings")


def test_without_pictures_no_picture_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = MemoryDataset([MemoryEpisode(4), MemoryEpisode(4)])
    monkeypatch.setattr(MemoryDataset, "frames", lambda *_: pytest.fail("a picture was read"))
    assert check(dataset, pictures=False).problems == ()


def test_long_lists_are_cut_short_and_cures_are_written_once() -> None:
    text = render(check(MemoryDataset([MemoryEpisode(3, instruction="") for _ in range(5)])), examples=2)
    assert "error (no-instruction), 5 times:" in text
    assert text.count("has no words") == 2
    assert "  ... and 3 more" in text
    assert text.count("-> Give one with --instruction") == 1


def test_pictures_of_several_sizes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = MemoryDataset([MemoryEpisode(3), MemoryEpisode(3)])
    read: Callable[..., Frames] = MemoryDataset.frames
    monkeypatch.setattr(MemoryDataset, "frames", lambda self, index, *rest: read(self, index, *rest)[:, : 16 - index])
    kinds = {problem.kind: problem.what for problem in check(dataset).problems}
    assert kinds["mixed-sizes"] == "view 'full' has pictures of 2 sizes: 16 x 15, 16 x 16"
