"""Training the embedded rater, small: the same seed gives the same bytes, and what is finished is used again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("minigrid")
pytest.importorskip("torch")

from guerdon import cli
from guerdon.errors import RunError, UsageError, WriteFailed
from guerdon.recipes import _embedded_card, embedded
from guerdon.recipes._embedded_card import page as page_of
from guerdon.recipes._embedded_data import Window, windows
from guerdon.recipes.embedded import FULL, QUICK, Config, by_subtask, train_embedded
from guerdon.runs import read_json, write_json
from tests.embedded_weights import random_weights

TINY: dict[str, Any] = {
    "layouts": 2, "looks_updates": 2, "windows_tasks": 2, "windows_updates": 2, "calibration_tasks": 2, "evaluation_tasks": 2,
    "engine_tasks": 2, "channels": 4, "blocks": 1, "jobs": 1, "threads": 1, "quiet": True,
}  # fmt: skip


def trained_bytes(folder: Path, **settings: Any) -> bytes:
    """The weights after training, without the evaluation."""
    config = Config(out=folder, **{**TINY, **settings})
    network, _ = embedded._trained(config, embedded._Watch(config))
    embedded._write_weights(folder / "w", network, config.name)
    return (folder / "w").read_bytes()


def test_settings_are_checked() -> None:
    out = Path("x")
    assert Config(out=out).sizes == FULL
    assert Config(out=out, quick=True).sizes == QUICK
    assert Config(out=out, quick=True, layouts=7).sizes == replace(QUICK, layouts=7)
    wrong: list[dict[str, Any]] = [
        {"layouts": 0}, {"evaluation_tasks": 1}, {"looks_updates": 0}, {"threads": 0}, {"jobs": -1}, {"channels": 0}, {"seed": -1},
        {"name": "two words"}, {"name": "a:b"}, {"name": ""},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(UsageError):
            Config(out=out, **settings)


def test_parts_of_a_window_are_windows_of_one_sub_task() -> None:
    whole = windows("small", seed=4, tasks=2, lengths=(2, 3))
    changing = [window for window in whole if window.subtask[len(window.actions) - 1] > window.subtask[0]]
    assert changing
    for window in whole:
        parts = by_subtask(window)
        assert np.array_equal(np.concatenate([part.actions for part in parts]), window.actions)
        assert np.array_equal(np.concatenate([part.contribution for part in parts]), window.contribution, equal_nan=True)
        for part in parts:
            check_part(part, window)


def check_part(part: Window, window: Window) -> None:
    first = part.start - window.start
    clause = int(window.subtask[first])
    assert part.phrases == (window.phrases[clause],)
    assert part.instruction == window.phrases[clause]
    assert len(part.pictures) == len(part.actions) + 1 == len(part.subtask) == len(part.quality)
    assert np.array_equal(part.pictures[0], window.pictures[first])
    assert not part.subtask[:-1].any()
    assert part.subtask[-1] == (window.subtask[first + len(part.actions)] > clause)
    assert part.quality[0] == pytest.approx(window.quality[first] * len(window.phrases) - clause)
    assert part.quality[-1] == pytest.approx(1.0 if part.subtask[-1] else part.quality[-1])
    assert ((part.quality >= 0) & (part.quality <= 1)).all()


def test_the_same_seed_gives_the_same_bytes_and_goes_on_after_what_is_finished(tmp_path: Path) -> None:
    first = trained_bytes(tmp_path / "one")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "work").iterdir()}
    assert {path.suffix for path in kept} >= {".npz", ".safetensors"}
    assert trained_bytes(tmp_path / "one") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "work").iterdir()} == kept
    for path in (tmp_path / "one" / "work").glob("looks*"):
        path.unlink()
    assert trained_bytes(tmp_path / "one") == first  # from the scenes that were kept


@pytest.mark.slow
def test_nothing_but_the_seed_decides(tmp_path: Path) -> None:
    first = trained_bytes(tmp_path / "one")
    assert trained_bytes(tmp_path / "two") == first
    assert trained_bytes(tmp_path / "one", seed=1) != first


def test_seeds_of_the_stages_differ() -> None:
    seeds = [embedded._seeds(Config(out=Path("x"), seed=seed)) for seed in (0, 1)]
    numbers = [value for each in seeds for value in each.values() if isinstance(value, int)]
    assert len(set(numbers)) == len(numbers) == 14


def test_a_card_has_five_decimals() -> None:
    assert embedded._rounded({"a": [0.123456789, (1, None)], "b": "0.123456789"}) == {"a": [0.12346, [1, None]], "b": "0.123456789"}


HELP = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "minigrid", "pygame"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from guerdon import cli
try:
    cli.main(["train-embedded", "--help"])
except SystemExit as stopped:
    assert not stopped.code
"""


def test_help_loads_neither_torch_nor_a_simulator() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout
    assert "--quick" in done.stdout


def test_wrong_sizes_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train-embedded", "--out", "x", "--layouts", "0"]) == 2
    assert capsys.readouterr().err == "error: layouts is at least 1, got 0\n"


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already", encoding="utf-8")
    with pytest.raises(WriteFailed):
        train_embedded(out=tmp_path / "file", **TINY)
    with pytest.raises(UsageError, match="no such page"):
        train_embedded(out=tmp_path / "out", page=tmp_path / "nothing.md", **TINY)
    page = tmp_path / "page.md"
    for content, problem in ((b"no marks", "no marks"), (b"\xff<!-- fill name --><!-- /fill -->", "cannot be read as text")):
        page.write_bytes(content)
        with pytest.raises(UsageError, match=problem):
            train_embedded(out=tmp_path / "out", page=page, **TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["looks-*.safetensors", "scenes-small-*.npz"])
def test_what_was_damaged_since_is_told_and_made_again_if_deleted(tmp_path: Path, name: str) -> None:
    whole = trained_bytes(tmp_path)
    (path,) = (tmp_path / "work").glob(name)
    path.write_bytes(path.read_bytes()[:1000])
    if path.suffix == ".npz":
        for other in (tmp_path / "work").glob("looks-*"):
            other.unlink()
    with pytest.raises(RunError) as caught:
        trained_bytes(tmp_path)
    assert caught.value.where == str(path)
    assert "Delete it" in caught.value.cure
    path.unlink()
    assert trained_bytes(tmp_path) == whole


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteFailed) as caught:
        trained_bytes(tmp_path)
    assert Path(caught.value.where).name.startswith("looks-")
    assert not list((tmp_path / "work").glob("looks-*.safetensors"))


def test_no_card_stays_beside_weights_that_it_is_not_about(tmp_path: Path) -> None:
    os.replace(random_weights(tmp_path), tmp_path / embedded.WEIGHTS)
    embedded._remove_card_of_others(tmp_path)
    write_json(tmp_path / embedded.CARD, {"network": embedded._facts_of(tmp_path / embedded.WEIGHTS)})
    (tmp_path / embedded.PAGE).write_text("the card", encoding="utf-8")
    embedded._remove_card_of_others(tmp_path)
    assert (tmp_path / embedded.CARD).is_file()
    assert (tmp_path / embedded.PAGE).is_file()
    os.replace(random_weights(tmp_path, seed=1), tmp_path / embedded.WEIGHTS)
    embedded._remove_card_of_others(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [embedded.WEIGHTS]


def test_looks_without_their_losses_are_made_again(tmp_path: Path) -> None:
    whole = trained_bytes(tmp_path)
    (path,) = (tmp_path / "work").glob("looks-*.json")
    path.unlink()
    assert trained_bytes(tmp_path) == whole
    assert path.is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_seeds_to_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- fill network/parameters --><!-- /fill -->\n\n<!-- fill table summary --><!-- /fill -->\n", encoding="utf-8")
    path = train_embedded(out=tmp_path / "out", quick=True, page=page, **TINY)
    card = read_json(path)
    folder = tmp_path / "out"
    assert {child.name for child in folder.iterdir()} == {embedded.WEIGHTS, embedded.CARD, embedded.PAGE, "work"}
    assert card["engine"]["equal_without_truth"] is True
    assert card["network"]["bytes"] == (folder / embedded.WEIGHTS).stat().st_size
    assert card["sizes"]["layouts"] == 2
    assert set(card["seconds"]) == {"data", "looks", "windows", "calibration", "evaluation", "total"}
    text = (folder / embedded.PAGE).read_text(encoding="utf-8")
    assert text == page_of(card)
    assert card["network"]["digest"] in text
    assert f"{card['network']['parameters']:,}" in page.read_text(encoding="utf-8")
    assert "| AUROC on |" in page.read_text(encoding="utf-8")
    weights = (folder / embedded.WEIGHTS).read_bytes()
    shutil.rmtree(folder / "work")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "quiet"]
    assert cli.main(["train-embedded", f"--out={folder}", "--quick", "--quiet", *flags]) == 0
    printed = capsys.readouterr().out
    assert "four-rooms" in printed
    assert f"written: {folder / embedded.WEIGHTS}" in printed
    assert read_json(path)["network"] == card["network"]
    assert (folder / embedded.WEIGHTS).read_bytes() == weights


def test_what_is_nearly_one_is_told_with_more_digits() -> None:
    assert _embedded_card.shown({"value": 0.99996, "low": 0.99981, "high": 1.0}) == "0.9999 [0.9998, 1.0000]"
    assert _embedded_card.shown({"value": 0.9854, "low": 0.98, "high": 0.99}) == "0.985 [0.98, 0.99]"
    assert _embedded_card.shown({"value": 4.2281, "low": 4.1354, "high": 4.3141}) == "4.228 [4.14, 4.31]", "a mean score is no share"
    assert _embedded_card.shown({"value": 0.995, "low": 0.99, "high": 0.999}, signed=True) == "**+0.995 [+0.99, +1.00]**"
