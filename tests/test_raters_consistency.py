"""`guerdon raters consistency`: from a dataset to a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon import samples
from guerdon.cli import main
from guerdon.datasets import open_dataset
from guerdon.errors import DatasetError, UsageError
from guerdon.evaluation.truth import digitise, qualities
from guerdon.methods.rating import Rating
from guerdon.recipes.consistency import Config, experts, measure
from guerdon.records import Label
from tests.memory import MemoryDataset, MemoryEpisode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("consistency") / "data"
    guerdon.collect_babyai(out=path, level="small", tasks=2, demonstrations=1, lengths=(1, 1))
    return path


def test_a_perfect_rater_is_steady_and_agrees_with_the_truth(data: Path, tmp_path: Path) -> None:
    measured = guerdon.raters_consistency(
        dataset=data, run=tmp_path / "run", vlm=("scripted:perfect",), classes=(2, 3), repeats=3, quiet=True,
        sampling=samples.Config(every=3),
    )  # fmt: skip
    dataset = open_dataset(data)
    for row, levels in zip(measured.rows, (2, 3), strict=True):
        assert (row.levels, row.repeats, row.answered, row.same_again, row.reliability) == (levels, 3, 1.0, 1.0, 1.0)
        expected = []
        for episode in experts(dataset):
            quality = qualities(dataset, episode)
            assert quality is not None
            shown = np.arange(len(quality) - 1, 0, -3)
            said, done = digitise(quality[shown], levels), quality[shown] >= 1 - 1e-6
            expected += [(each > (levels - 1) / 2) == right for each, right in zip(said, done, strict=True) if each != (levels - 1) / 2]
        assert row.agreement == pytest.approx(np.mean(expected))
    record = json.loads(measured.table.read_text())
    assert [each["levels"] for each in record["rows"]] == [2, 3]
    assert record["rater"] == "scripted:perfect"
    assert measured.picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_its_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "raters",
        "consistency",
        str(data),
        "--vlm",
        "scripted",
        "--run",
        str(tmp_path / "run"),
        "--every",
        "4",
        "--repeats",
        "2",
        "--classes",
        "2",
        "--quiet",
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "scripted: 2 answers about each of" in printed
    assert "written:" in printed
    assert main(words) == 0, "everything lies in the store"
    assert capsys.readouterr().out == printed


def test_what_cannot_be_compared_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    cases = {
        ("--classes", "2", "7"): "different numbers from 2 to 5",
        ("--repeats", "1"): "says nothing about consistency",
        ("--levels", "4"): "Name them with --classes",
        ("--item", "episode"): "Use --item picture",
        ("--name", "mine"): "Leave out --method and --name",
    }
    for flags, words in cases.items():
        assert main(["raters", "consistency", str(data), "--run", run, "--quiet", *flags]) == 2, flags
        assert words in capsys.readouterr().err
    assert main(["raters", "steady"]) == 2
    with pytest.raises(UsageError):
        Config(dataset=data, run=tmp_path, classes=())


def test_experts_are_successful(tmp_path: Path) -> None:
    assert experts(MemoryDataset([MemoryEpisode(3, terminated=False), MemoryEpisode(0), *[MemoryEpisode(2)] * 5])) == (2, 3, 4)
    with pytest.raises(DatasetError, match="no episode ended by success"):
        experts(MemoryDataset([MemoryEpisode(3, terminated=False)]))


def test_without_ground_truth_only_the_last_picture_is_success() -> None:
    dataset = MemoryDataset([MemoryEpisode(4)])

    def rated(observation: int, value: float) -> Label:
        return Label("observation", 0, observation, observation, "go", "labelled", value=value)

    votes = {0: [rated(k, value) for k, value in enumerate([0.0, 0.0, 1.0, 1.0], start=1)]}
    assert measure(votes, dataset, 2).agreement == pytest.approx(3 / 4)
    with pytest.raises(UsageError, match="single pictures only"):
        measure({0: [Label("segment", 0, 0, 2, "go", "labelled", value=1.0)]}, dataset, 2)


def test_it_takes_what_label_takes(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": data,
        "run": tmp_path / "run",
        "vlm": ("scripted",),
        "quiet": True,
        "classes": (2,),
        "repeats": 2,
    }
    measured = guerdon.raters_consistency(
        method_settings=Rating.Config(tile=100), sampling=samples.Config(episodes=(1,), every=5), **settings
    )
    assert json.loads(measured.table.read_text())["episodes"] == [1]
