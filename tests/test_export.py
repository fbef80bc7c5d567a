"""Exports: other libraries read the new rewards, everything else keeps its bytes, and unknown rewards never become numbers unasked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest

from guerdon.datasets import open_dataset
from guerdon.errors import DatasetError, RewardError, RunError, StaleInput, UsageError
from guerdon.recipes.export import Exported, export
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Manifest, Run, package_version
from tests.data.episodes import episode, write, write_stock

LENGTHS = (10, 11, 12)


def make_run(folder: Path, data: Path, values: dict[tuple[int, int], Any], **options: str) -> Path:
    """A run folder with a reward column called "dense" made from a label set called "rg_vlm"."""
    dataset = open_dataset(data, **options)
    run = Run.open_or_create(folder, dataset_path=data, fingerprint=dataset.fingerprint, options=options)
    labels = run.part("labels", "rg_vlm").with_suffix(".parquet")
    run.finish(labels, Manifest({"method": "rg-vlm", "vlm": ["scripted"]}, {"dataset": dataset.fingerprint}))
    part = run.part("rewards", "dense").with_suffix(".parquet")
    metadata = {"expression": "0.1 * rg_vlm", "labels": {"rg_vlm": "s256:ab"}, "dataset": dataset.fingerprint}
    column = RewardColumn({key: np.asarray(array, np.float32) for key, array in values.items()}, metadata)
    column.write(part)
    inputs = {"dataset": dataset.fingerprint, "labels/rg_vlm": "s256:ab"}
    run.finish(part, Manifest({"expression": "0.1 * rg_vlm"}, inputs, {"fingerprint": column.fingerprint}))
    return folder


def known() -> dict[tuple[int, int], Any]:
    return {(index, 0): np.linspace(-1, 1, length) for index, length in enumerate(LENGTHS)}


def with_gap() -> dict[tuple[int, int], Any]:
    return {**known(), (1, 0): np.r_[np.ones(4), np.nan, np.ones(6)]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source")


def exported(tmp_path: Path, source: Path, values: dict[tuple[int, int], Any] | None = None, **settings: Any) -> Exported:
    run = make_run(tmp_path / "run", source, known() if values is None else values)
    return export(**{"run": run, "out": tmp_path / "out", **settings})


def test_plain_minari_reads_the_new_rewards_and_the_same_observations(tmp_path: Path, source: Path) -> None:
    done = exported(tmp_path, source)
    assert done == Exported(tmp_path / "out", "tests/doors-dense-v0", 3, 33, 0, ())
    before, after = minari.MinariDataset(source / "data"), minari.MinariDataset(done.path / "data")
    assert (after.id, after.total_episodes, after.total_steps) == ("tests/doors-dense-v0", 3, 33)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        rewards = known()[index, 0].astype(np.float32)
        assert np.array_equal(new.rewards, rewards.astype(np.float64))
        assert new.rewards.dtype == old.rewards.dtype
        assert np.array_equal(new.infos["original_reward"], np.r_[np.nan, old.rewards], equal_nan=True)
        assert new.infos["guerdon_reward_known"].tolist() == [False] + [True] * len(rewards)
        for name in ("image", "wrist"):
            assert np.array_equal(new.observations[name], old.observations[name])
        assert new.observations["instruction"] == old.observations["instruction"]
        for field in ("actions", "terminations", "truncations"):
            assert np.array_equal(getattr(new, field), getattr(old, field))


def test_stored_pictures_keep_their_bytes_and_ours_reads_the_rest(tmp_path: Path, source: Path) -> None:
    done = exported(tmp_path, source)
    with h5py.File(source / "data/main_data.hdf5") as old, h5py.File(done.path / "data/main_data.hdf5") as new:
        for name in ("episode_1/observations/image", "episode_2/observations/instruction", "episode_0/actions"):
            assert new[name].dtype == old[name].dtype
            assert new[name].id.read_direct_chunk((0,) * new[name].ndim) == old[name].id.read_direct_chunk((0,) * old[name].ndim)
    before, after = open_dataset(source), open_dataset(done.path)
    for index in range(3):
        assert after.episode(index) == before.episode(index)
        assert np.array_equal(after.privileged(index)["progress"], before.privileged(index)["progress"])
    assert (after.views, after.action_names, after.environment) == (before.views, before.action_names, before.environment)


def test_the_source_and_where_rewards_come_from_are_written_down(tmp_path: Path, source: Path) -> None:
    fingerprint = open_dataset(source).fingerprint
    done = exported(tmp_path, source)
    note = json.loads((done.path / "data/metadata.json").read_text())["guerdon"]["export"]
    assert note["source"] == {"dataset_id": "tests/doors-v0", "fingerprint": fingerprint}
    assert note["column"]["expression"] == "0.1 * rg_vlm"
    assert note["column"]["fingerprint"] == RewardColumn.read(tmp_path / "run/rewards/dense.parquet").fingerprint
    assert note["inputs"] == {"dataset": fingerprint, "labels/rg_vlm": "s256:ab"}
    assert note["raters"]["rg_vlm"]["config"] == {"method": "rg-vlm", "vlm": ["scripted"]}
    assert note["guerdon"] == package_version()
    assert open_dataset(source).fingerprint == fingerprint, "the source was modified"


def test_equal_runs_give_equal_files(tmp_path: Path, source: Path) -> None:
    run = make_run(tmp_path / "run", source, known())
    one, two = (export(run=run, out=tmp_path / name).path for name in ("one", "two"))
    for name in ("main_data.hdf5", "metadata.json"):
        assert (one / "data" / name).read_bytes() == (two / "data" / name).read_bytes()


def test_unknown_rewards_are_refused_unless_something_is_said(tmp_path: Path, source: Path) -> None:
    with pytest.raises(RewardError, match=r"1 rewards in 1 episodes are unknown, the first in episode 1, step 4. Choose --unknown zero"):
        exported(tmp_path, source, with_gap())
    assert not (tmp_path / "out").exists()


def test_unknown_rewards_become_zero_under_a_mask(tmp_path: Path, source: Path) -> None:
    done = exported(tmp_path, source, with_gap(), unknown="zero")
    assert str(done) == f"{tmp_path / 'out'} (tests/doors-dense-v0: 3 episodes, 33 transitions, 1 unknown rewards written as 0)"
    found = minari.MinariDataset(done.path / "data")[1]
    assert found.rewards.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert np.flatnonzero(~found.infos["guerdon_reward_known"]).tolist() == [0, 5]  # entry t+1 belongs to transition t


def test_episodes_with_unknown_rewards_can_be_left_out(tmp_path: Path, source: Path) -> None:
    values = {key: array for key, array in with_gap().items() if key[0] != 0}  # nothing is known of episode 0
    done = exported(tmp_path, source, values, unknown="drop-episodes")
    assert (done.episodes, done.transitions, done.unknown, done.dropped) == (1, 12, 0, (0, 1))
    dataset = open_dataset(done.path)
    assert dataset.episode(0).metadata == open_dataset(source).episode(2).metadata
    stock = minari.MinariDataset(done.path / "data")
    assert (stock.total_steps, stock[0].id, next(iter(stock.storage.get_episode_metadata([0])))["id"]) == (12, 0, 0)
    with pytest.raises(RewardError, match="none would be left"):
        exported(tmp_path / "b", source, {(0, 0): np.full(10, np.nan)}, unknown="drop-episodes")


def test_another_wording_has_other_rewards(tmp_path: Path, source: Path) -> None:
    values = known() | {(index, 1): np.full(length, 5.0) for index, length in enumerate(LENGTHS)}
    done = exported(tmp_path, source, values, annotation=1)
    assert set(minari.MinariDataset(done.path / "data")[0].rewards) == {5.0}


def test_what_cannot_be_exported_is_refused(tmp_path: Path, source: Path) -> None:
    run = make_run(tmp_path / "run", source, known())
    with pytest.raises(RunError, match=r"no reward column is called 'sparse'. There are: dense. Make one with: guerdon reward"):
        export(run=run, out=tmp_path / "out", rewards="sparse")
    with pytest.raises(UsageError, match="not a Minari dataset id"):
        export(run=run, out=tmp_path / "out", dataset_id="doors")
    with pytest.raises(DatasetError, match="exists already"):
        export(run=run, out=source)
    with pytest.raises(RewardError, match="the column has 3 rewards for episode 0, which has 10 transitions"):
        exported(tmp_path / "b", source, known() | {(0, 0): np.zeros(3)})
    again = make_run(tmp_path / "run2", export(run=run, out=tmp_path / "out").path, known())
    with pytest.raises(DatasetError, match="is an export already"):
        export(run=again, out=tmp_path / "out2")
    with (source / "data/metadata.json").open("a") as file:
        file.write(" ")
    with pytest.raises(StaleInput, match="has changed since the run"):
        export(run=run, out=tmp_path / "out3")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_datasets_of_others_are_exported_with_everything_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str) -> None:
    made = np.repeat(np.repeat(episode(10).frames["image"][:, :5, :5], 8, 1), 8, 2)
    path = write_stock(
        tmp_path, monkeypatch, data_format=data_format, jpeg=True, episodes=2, actions=np.zeros(10, int),
        observations={"image": made, "mission": ["gö"] * 11, "state": np.arange(22, dtype=np.float32).reshape(11, 2)},
        spaces={
            "image": gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8), "mission": gymnasium.spaces.Text(9),
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        },
        action_space=gymnasium.spaces.Discrete(3), infos={"mark": np.arange(11)[:, np.newaxis]}, rewards=np.arange(10) / 4,
    )  # fmt: skip
    minari.MinariDataset(path / "data").storage.update_episode_metadata([{"camera": "left"}] * 2)
    run = make_run(tmp_path / "run", path, {(index, 0): np.full(10, index) for index in range(2)})
    done = export(run=run, out=tmp_path / "out", dataset_id="stock/thing-v7")
    before, after = minari.MinariDataset(path / "data"), minari.MinariDataset(done.path / "data")
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(new.observations["image"], old.observations["image"])
        assert np.array_equal(new.observations["state"], old.observations["state"])
        assert new.observations["mission"] == old.observations["mission"] == ["gö"] * 11
        assert np.array_equal(np.ravel(new.infos["mark"]), np.arange(11))
        assert np.array_equal(new.infos["original_reward"][1:], np.arange(10) / 4)
        assert new.rewards.tolist() == [index] * 10
    assert after.observation_space == before.observation_space
    assert [facts["camera"] for facts in after.storage.get_episode_metadata([0, 1])] == ["left", "left"]


@pytest.fixture
def d3rlpy_python(tmp_path: Path) -> Iterator[Path]:
    """The interpreter of a new environment with d3rlpy in it; the test is skipped where no index of packages can be reached."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    command = [folder / "bin/python", "-m", "pip", "install", "--quiet", "torch==2.13.0", "d3rlpy", "minari[hdf5]", "pillow"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"d3rlpy cannot be installed here: {installed.stderr[-300:]}")
    yield folder / "bin/python"
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_d3rlpy_trains_on_an_export(tmp_path: Path, d3rlpy_python: Path) -> None:
    frames = {seed: np.random.default_rng(seed).integers(0, 256, (31, 48, 48, 3), dtype=np.uint8) for seed in range(6)}
    source = write(tmp_path / "source", [episode(30, seed, frames={"image": frames[seed]}) for seed in range(6)])
    run = make_run(tmp_path / "run", source, {(seed, 0): np.full(30, 0.25 * seed) for seed in range(6)})
    root = tmp_path / "datasets"
    export(run=run, out=root / "doors-dense-v0", dataset_id="doors-dense-v0")
    script = Path(__file__).parent / "data" / "train_with_d3rlpy.py"
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(root)}
    done = subprocess.run([d3rlpy_python, script], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["transitions"] == 180
    assert result["return_of_last_episode"] == pytest.approx(30 * 1.25)
    assert set(result["actions"]) <= set(range(7))
    assert result["losses"].keys() == {"DiscreteBCConfig", "DiscreteCQLConfig"}
    assert all(len(losses) == 2 and np.isfinite(losses).all() for losses in result["losses"].values())
