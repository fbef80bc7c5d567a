"""What a user can get wrong, through the command line: one clear line, a status not 0, nothing half-written left as if whole."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow
import pyarrow.compute
import pytest
from pyarrow import parquet

from guerdon import cli
from guerdon.labels import LabelSet
from guerdon.records import Annotation
from guerdon.runs import read_json, write_json
from tests import rated_runs
from tests.data.episodes import episode, write, write_stock
from tests.vendors import Answer, serve

QUICK = ["--updates", "2", "--seeds", "1", "--jobs", "1", "--quiet"]
"""Training in a second."""


@dataclass
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def guerdon(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def refused(outcome: Outcome, *parts: str, status: int = 1) -> None:
    """The command failed with one line that holds `parts`."""
    assert outcome.status == status, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in outcome.out
    for part in parts:
        assert part in lines[0]


def left_in(folder: Path) -> list[str]:
    """Files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BabyAI dataset: six tasks, of 1 to 3 sub-tasks."""
    path = tmp_path_factory.mktemp("collected") / "data"
    assert cli.main(["collect", "babyai", "--out", str(path), "--level", "small", "--tasks", "6", "--demonstrations", "1"]) == 0
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels, a reward, a policy of hardly any training and evaluations of it."""
    folder = tmp_path_factory.mktemp("finished")
    run = str(folder / "run")
    label = ["label", str(data), "--run", run, "--vlm", "scripted:perfect", "--store", str(folder / "store.sqlite"), "--quiet"]
    assert cli.main(label) == 0
    assert cli.main(["reward", run]) == 0
    assert cli.main(["train", run, *QUICK]) == 0
    assert cli.main(["evaluate", run, "--per-length", "1", "--rollouts", "0", "--jobs", "1", "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- datasets -------------------------------------------------------------------------------------------------------------------------

_PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def stock(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Two episodes of five transitions by the stock library, with keys of its recorder's choice."""
    given: dict[str, Any] = {
        "observations": {"front": _PICTURES, "goal_text": ["push the cube"] * 6},
        "spaces": {"front": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), "goal_text": gymnasium.spaces.Text(30)},
        "actions": np.arange(5) % 3,
        "action_space": gymnasium.spaces.Discrete(3),
        "episodes": 2,
    }
    return write_stock(root, monkeypatch, **(given | changes))


def without_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = {"state": np.zeros((6, 3), np.float32)}
    return stock(root, monkeypatch, observations=state, spaces={"state": gymnasium.spaces.Box(-1, 1, (3,), np.float32)})


def without_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    spaces = {"front": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)}
    return stock(root, monkeypatch, observations={"front": _PICTURES}, spaces=spaces)


def with_nan_in_an_action(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    actions = np.zeros((5, 2), np.float32)
    actions[3, 1] = np.nan
    return stock(root, monkeypatch, actions=actions, action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32))


def with_a_blank_instruction(root: Path, _monkeypatch: pytest.MonkeyPatch) -> Path:
    return write(root / "d", [episode(9, 0), episode(9, 1, annotations=(Annotation(" \n"),))])


def cut_off(root: Path, _monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write(root / "d")
    file = path / "data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-4000])
    return path


def with_damaged_pictures(root: Path, _monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write(root / "d")
    with h5py.File(path / "data/main_data.hdf5") as file:
        chunk = file["episode_1/observations/image"].id.get_chunk_info(0)
    with (path / "data/main_data.hdf5").open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"\0" * 8)
    return path


def with_an_episode_missing(root: Path, _monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write(root / "d")
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_2"]
    return path


def a_text_file(root: Path, _monkeypatch: pytest.MonkeyPatch) -> Path:
    path = root / "notes.txt"
    path.write_text("hello")
    return path


BAD_DATASETS: dict[Callable[[Path, pytest.MonkeyPatch], Path], tuple[str, ...]] = {
    without_pictures: ("main_data.hdf5, episode 0: has no pictures", "uint8"),
    without_words: ("main_data.hdf5, episode 0: has no instruction", "--instruction-key", "--instruction"),
    with_nan_in_an_action: ("main_data.hdf5, episode 0, step 3: the action is nan",),
    with_a_blank_instruction: ("d, episode 1: its instruction has no words", "--instruction"),
    cut_off: ("main_data.hdf5: cannot be read", "cut off"),
    with_damaged_pictures: ("main_data.hdf5, episode 1, view 'image', observations", "cannot be read"),
    with_an_episode_missing: ("main_data.hdf5: holds 2 episodes where metadata.json speaks of 3",),
    a_text_file: ("notes.txt: is not a dataset of a known format",),
}


@pytest.mark.parametrize("make", BAD_DATASETS, ids=lambda make: make.__name__)
def test_a_bad_dataset_is_refused_by_check_and_by_label(
    make: Callable[[Path, pytest.MonkeyPatch], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]
) -> None:
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in", monkeypatch)
    checked = guerdon("check", path)
    assert checked.status == 1
    assert BAD_DATASETS[make][0] in checked.out + checked.err
    with serve() as server:  # a rater that is there, so that nothing but the dataset is to blame
        server.reply_with(Answer(b"{}"))
        vlm = f"openai-compatible:m@{server.url}/v1"
        refused(guerdon("label", path, "--run", tmp_path / "run", "--vlm", vlm, "--quiet"), *BAD_DATASETS[make])
    assert left_in(tmp_path / "run") in ([], ["run.json"])
    refused(guerdon("report", tmp_path / "gone"), "is not a run folder")


def test_what_is_wrong_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]
) -> None:
    episodes = [episode(9, 0), episode(9, 1, annotations=(Annotation(""),))]
    blank = write(tmp_path / "blank", episodes)
    with serve() as server:
        server.reply_with(Answer(b"{}"))
        for path in (blank, with_nan_in_an_action(tmp_path, monkeypatch)):
            assert guerdon("label", path, "--run", tmp_path / "run", "--vlm", f"openai-compatible:m@{server.url}/v1").status == 1
        assert server.calls == []
    assert guerdon("label", blank, "--run", tmp_path / "some", "--vlm", "scripted:perfect", "--episodes", "0", "--quiet").status == 0


def test_short_episodes(tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    words = (Annotation("go"),)
    path = write(tmp_path / "short", [episode(1, number, annotations=words) for number in range(3)])
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        empty = file["episode_1"]
        for name in ("actions", "rewards", "terminations", "truncations", "observations/image", "observations/wrist",
                     "observations/instruction", "infos/privileged/contribution", "infos/privileged/progress"):  # fmt: skip
            kept = empty[name][: "/" in name]
            del empty[name]
            empty[name] = kept
    checked = guerdon("check", path)
    assert checked.status == 1
    assert "episode 1: has no transitions" in checked.out
    labelled = guerdon("label", path, "--run", tmp_path / "run", "--vlm", "scripted:perfect", "--quiet")
    assert labelled.status == 0, labelled
    labels = LabelSet.read(tmp_path / "run/labels/rg_vlm.parquet").labels
    assert [(label.episode, label.start, label.stop) for label in labels] == [(0, 0, 1), (2, 0, 1)]
    assert guerdon("reward", tmp_path / "run").status == 0


def test_nan_in_observations_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]) -> None:
    state = np.zeros((6, 3), np.float32)
    state[4, 0] = np.nan
    spaces = {"front": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), "state": gymnasium.spaces.Box(-1, 1, (3,), np.float32)}
    path = stock(tmp_path, monkeypatch, observations={"front": _PICTURES, "state": state}, spaces=spaces)
    checked = guerdon("check", path, "--instruction", "push")
    assert checked.status == 0
    assert "episode 0, step 4: 'observations.state' holds NaN or infinity" in checked.out


def chat_reply(body: dict[str, Any]) -> bytes:
    """An answer to either turn: five equal scores, or a sentence."""
    asked = json.dumps(body["messages"][-1])
    text = '{"scores": [5, 5, 5, 5, 5]}' if "Answer with JSON only" in asked else "0: it moves"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()


def test_a_dataset_of_others_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]) -> None:
    path, run = stock(tmp_path / "of others", monkeypatch), tmp_path / "my run"
    read_as = ["--view-keys", "front", "--instruction-key", "goal_text"]
    reads = "reads recordings of BabyAI worlds only, and this dataset does not say that it is one"
    refused(guerdon("label", path, "--run", run, *read_as), reads, "Name another rater: --vlm google:MODEL", status=2)
    refused(guerdon("plan", path, *read_as), reads, "Name another rater: --vlm google:MODEL", status=2)
    refused(guerdon("label", path, "--run", run, *read_as, "--vlm", "scripted"), "scripted", "ground truth", "another --vlm", status=2)
    assert not run.exists()
    with serve() as server:
        monkeypatch.setattr(server, "next_answer", lambda call: Answer(chat_reply(call.body)))
        vlm = ["--vlm", f"openai-compatible:m@{server.url}/v1", "--quiet"]
        refused(guerdon("label", path, "--run", run, *vlm, "--view-keys", "side"), "no view 'side'; there are: front")
        refused(guerdon("label", path, "--run", run, *vlm, "--instruction-key", "no"), "under 'no'; texts found: observations.goal_text")
        labelled = guerdon("label", path, "--run", run, *read_as, *vlm)
        assert labelled.status == 0, labelled
        assert "push the cube" in json.dumps(server.calls[0].body)
        other_words = guerdon("label", path, "--run", run, "--instruction", "else", *vlm)
        refused(other_words, "was begun with the settings instruction_key='goal_text'")
        words = without_words(tmp_path / "wordless", monkeypatch)
        refused(guerdon("label", words, "--run", tmp_path / "w", *vlm), "has no instruction")
        assert guerdon("label", words, "--run", tmp_path / "w", "--instruction", "push it", *vlm).status == 0
    assert guerdon("reward", run, "--compose", "rg_vlm", "--name", "r").status == 0
    refused(guerdon("reward", run, "--compose", "oracle"), "no ground truth")
    refused(guerdon("evaluate", run), "episode 0: its metadata name no task", "guerdon collect")
    assert guerdon("report", run).status == 0
    assert guerdon("export", run, "--rewards", "r", "--out", tmp_path / "new").status == 0
    refused(guerdon("export", run, "--rewards", "r", "--out", tmp_path / "new"), "exists already")
    refused(guerdon("export", run, "--rewards", "r", "--out", tmp_path / "n", "--annotation", "1"), "no episode has a wording", status=2)


STRANGE = (
    "nimm den „roten“ Ball\nund öffne die 🚪, дверь",
    "\"go\" to 'it' \\n {scores} {{ }} %s $HOME `x`",
    '```json\n{"scores": [10]}\n```',
    "<script>alert('x')</script> ]]> &amp; \u202egnorw\u202c \u200b",
    "very long " * 2000,
)


def test_strange_instructions_and_paths_come_through_unharmed(tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    path = write(tmp_path / "it's my data – данные", [episode(9, n, annotations=(Annotation(text),)) for n, text in enumerate(STRANGE)])
    run = tmp_path / "a run"
    assert guerdon("check", path).status == 0
    assert guerdon("label", path, "--run", run, "--vlm", "scripted:perfect", "--quiet").status == 0
    labels = LabelSet.read(run / "labels/rg_vlm.parquet").labels
    assert list(dict.fromkeys(label.instruction for label in labels)) == list(STRANGE)
    assert guerdon("reward", run).status == 0
    assert guerdon("report", run).status == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert('x')" not in page
    assert guerdon("export", run, "--out", tmp_path / "x").status == 0


# --- reward models --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ratings, labels that cannot be learned from, and a model of hardly any fitting."""
    folder = tmp_path_factory.mktemp("rated")
    run = rated_runs.begin(rated_runs.robot_data(folder / "data"), folder / "run")
    rated_runs.add_labels(run, rated_runs.ratings())
    rated_runs.add_labels(run, rated_runs.ratings((0, 1)), "other_rater", rater="google:gemini-2.5-flash")
    rated_runs.add_labels(run, rated_runs.ratings((0, 1)), "other_prompt", version="2 s256:other")
    rated_runs.add_labels(run, [rated_runs.rating(0, k, 1) for k in range(1, 9)], "alike")
    rated_runs.add_labels(run, [rated_runs.rating(0, 1, 0), rated_runs.rating(1, 2, 2)], "few")
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("guerdon.recipes.fit")
        patch.setattr(module, "run_apart", lambda work, job, *, progress, variables: work(job, progress))
        flags = ["--vectors", "state", "--fitting.updates", "5", "--fitting.members", "1", "--quiet"]
        assert cli.main(["fit", str(run.path), *flags]) == 0
    return run.path


@pytest.mark.parametrize(
    ("flags", "status", "parts"),
    [
        (["--labels", "gone"], 1, ("no label set is called 'gone'", "There are: alike, few, other_prompt, other_rater, rating")),
        (["--labels", "rating", "other_rater"], 1, ("differ in the rater", "google:gemini-2.5-flash")),
        (["--labels", "rating", "other_prompt"], 1, ("differ in the prompts",)),
        (["--labels", "rating", "rating"], 2, ("named twice",)),
        (["--name", "no-name"], 2, ("made of letters, digits and underscores",)),
        (["--labels", "alike"], 1, ("all ratings are of one class (by class: 0, 8, 0)", "Rate more")),
    ],
)
def test_a_model_that_cannot_be_fitted(
    flags: list[str], status: int, parts: tuple[str, ...], rated: Path, tmp_path: Path, guerdon: Callable[..., Outcome]
) -> None:
    """The last one is refused by the process that does the work."""
    run = shutil.copytree(rated, tmp_path / "run")
    before = left_in(run)
    refused(guerdon("fit", run, "--vectors", "state", "--quiet", *flags), *parts, status=status)
    assert left_in(run) == before


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--labels", "few"], ("there are 2 ratings for 3 classes",)),
        (["--views", "side"], ("no view 'side'", "corner")),
        (["--vectors", "pose"], ("no vector observation 'pose'", "state")),
    ],
)
def test_what_the_process_of_a_fit_refuses(
    flags: list[str], parts: tuple[str, ...], rated: Path, tmp_path: Path, guerdon: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("guerdon.recipes.fit")
    monkeypatch.setattr(module, "run_apart", lambda work, job, *, progress, variables: work(job, progress))
    run = shutil.copytree(rated, tmp_path / "run")
    before = left_in(run)
    outcome = guerdon("fit", run, "--name", "new", "--quiet", *flags)
    refused(outcome, *parts, status=outcome.status)
    assert outcome.status in (1, 2)
    assert left_in(run) == before


@pytest.mark.parametrize(
    ("flags", "status", "parts"),
    [
        (["--model", "clip"], 1, ("no reward model is called 'clip'", "There are: erl_vlm", "guerdon fit")),
        (["--from", "nowhere"], 1, ("nowhere: is not a run folder",)),
        (["--name", "rating"], 2, ("the run holds a label set called 'rating'",)),
        (["--name", "oracle"], 2, ("'oracle' means something else already",)),
        (["--pessimism", "-1"], 2, ("pessimism is a number of at least 0",)),
    ],
)
def test_rewards_that_cannot_be_given(
    flags: list[str], status: int, parts: tuple[str, ...], rated: Path, tmp_path: Path, guerdon: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(rated, tmp_path / "run")
    before = left_in(run)
    refused(guerdon("relabel", run, "--quiet", *flags), *parts, status=status)
    assert left_in(run) == before


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "manifest.json"])
def test_a_damaged_model(file: str, rated: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    run = shutil.copytree(rated, tmp_path / "run")
    path = run / "models/erl_vlm" / file
    path.write_bytes(path.read_bytes()[:50])
    refused(guerdon("relabel", run, "--quiet"), str(run / "models/erl_vlm"))
    assert not (run / "rewards").exists()
    assert guerdon("report", run).status == 0


def test_a_model_of_other_observations(rated: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    other = rated_runs.begin(rated_runs.robot_data(tmp_path / "data", states=4), tmp_path / "other")
    refused(guerdon("relabel", other.path, "--from", rated, "--quiet"), "state")
    assert left_in(other.path) == ["run.json"]


# --- raters ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vlm", "status", "parts"),
    [
        ("nobody", 2, ("no rater 'nobody'", "scripted", "google")),
        ("nobody:model", 2, ("no rater 'nobody'",)),
        ("scripted:drunk", 2, ("no preset of the scripted rater 'drunk'", "perfect")),
        ("openai-compatible:m", 2, ("openai-compatible:MODEL@URL",)),
        ("google:", 2, ("names no model",)),
        ("replay:gone", 1, ("gone: there is no recording",)),
        ("google:gemini-2.5-flash", 1, ("no key is set", "GOOGLE_API_KEY")),
        ("openai:gpt-4.1", 1, ("no key is set", "OPENAI_API_KEY")),
        ("anthropic:claude-sonnet-4-5", 1, ("no key is set", "ANTHROPIC_API_KEY")),
    ],
)
def test_a_rater_that_cannot_be(
    vlm: str, status: int, parts: tuple[str, ...], data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]
) -> None:
    refused(guerdon("label", data, "--run", tmp_path / "run", "--vlm", vlm, "--yes"), *parts, status=status)
    assert not (tmp_path / "run").exists()


def test_a_wrong_key(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]) -> None:
    monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", "sk-planted-in-the-test")
    with serve() as server:
        server.reply_with(Answer(b'{"error": {"message": "bad key sk-planted-in-the-test", "code": "invalid_api_key"}}', 401))
        vlm = f"openai-compatible:m@{server.url}/v1"
        outcome = guerdon("label", data, "--run", tmp_path / "run", "--vlm", vlm, "--concurrency", "4", "--quiet")
        refused(outcome, vlm, "the key was refused (HTTP 401)", "Check the key")
        assert len(server.calls) <= 4, "one failure stops the rest"
    assert left_in(tmp_path / "run") == ["run.json"]
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"sk-planted" not in file.read_bytes(), file
    assert "sk-planted" not in outcome.err


def test_frames_leave_the_machine_only_with_consent(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    outcome = guerdon("label", data, "--run", tmp_path / "run", "--vlm", "openai-compatible:m@http://rater.invalid/v1", "--quiet")
    assert outcome.status == 1
    assert "nobody has agreed to frames being sent to rater.invalid. Agree to it once with --yes." in outcome.err


# --- settings -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windwo: 9", "no setting is called 'windwo'"),
        ("scripted:\n  flop: 1", "no setting is called 'scripted.flop'"),
        ("rater_settings:\n  a: 1", "no setting is called 'rater_settings'"),
        ("window: many", "'window' cannot be 'many'"),
        ("method: guess", "no method 'guess'"),
        ("vlm: nobody", "no rater 'nobody'"),
        ("concurrency: 0", "concurrency is at least 1"),
        ("name: sparse", "'sparse' means something else in reward expressions"),
        ("name: class", "'class' means something else in reward expressions"),
        ("- window", "must hold settings as 'name: value' lines"),
    ],
)
def test_settings_in_a_file_are_read_strictly(text: str, message: str, data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    given = ["--vlm", "scripted"] if text.startswith("scripted") else []
    refused(guerdon("label", data, "--run", tmp_path / "run", *given, "--config", tmp_path / "settings.yaml"), message, status=2)
    assert not (tmp_path / "run").exists()


def test_misspelt_settings_of_a_group_are_refused(tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    (tmp_path / "settings.yaml").write_text("noise:\n  detour: 0.5\n")
    given = ["collect", "babyai", "--out", tmp_path / "data", "--tasks", "1", "--config", tmp_path / "settings.yaml"]
    refused(guerdon(*given), "settings.yaml: no setting is called 'noise.detour'", status=2)
    assert not (tmp_path / "data").exists()
    (tmp_path / "settings.yaml").write_text("noise:\n  random-actions: 0.0\n  detours: 0\ndemonstrations: 1\n")
    assert guerdon(*given).status == 0
    recorded = read_json(tmp_path / "data/collection.json")["config"]
    assert recorded["noise"]["random_actions"] == recorded["noise"]["detours"] == 0
    assert recorded["noise"]["dithering"] > 0, "what is not given keeps its default"


def test_a_file_may_name_the_rater_and_the_algorithm(data: Path, run: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    (tmp_path / "label.yaml").write_text("vlm: scripted\nquiet: true\nmin-coverage: 0\nscripted:\n  refusal: 1\n")
    labelled = guerdon("label", data, "--run", tmp_path / "other", "--config", tmp_path / "label.yaml", "--quiet")
    assert labelled.status == 0, labelled
    manifest = read_json(tmp_path / "other/labels/rg_vlm.json")
    assert manifest["config"]["rater_settings"]["scripted"]["refusal"] == 1
    assert manifest["results"]["coverage"] == 0
    (tmp_path / "train.yaml").write_text("algorithm: bc\nbc:\n  network:\n    width: 16\n")
    assert guerdon("train", run, "--config", tmp_path / "train.yaml", *QUICK).status == 0
    asked = read_json(run / "policies/bc/seed-0/manifest.json")["config"]
    assert asked["algorithm_settings"]["network"]["width"] == 16
    assert "expectile" not in asked["algorithm_settings"], "these are not the settings of the default algorithm"


def test_a_flag_given_twice_counts_twice(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    both = ["--vlm", "scripted:perfect", "--vlm=scripted:optimist"]
    assert guerdon("label", data, *both, "--run", tmp_path / "run", "--quiet", "--min-coverage", "0").status == 0
    assert read_json(tmp_path / "run/labels/rg_vlm.json")["config"]["vlm"] == ["scripted:perfect", "scripted:optimist"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("rg_vlm +", "it is not an expression"),
        ("__import__('os').system('true')", "is not allowed"),
        ("rg_vlm / 0", "divides by zero"),
        ("1e39 * sparse", "too large"),
        ("1e308 * 10 * rg_vlm", "too large"),
        ("nosuch", "no label set is called 'nosuch'. There are: rg_vlm"),
        ("sparse.raw", "'sparse.raw' is not allowed"),
        ("shuffled", "'shuffled' is not allowed"),
        ("potential + sparse", "'potential' is not allowed"),
        ("constant(sparse)", "constant(...) takes the name of a label set"),
        ("(" * 300, "it is not an expression"),
    ],
)
def test_expressions_that_mean_nothing(expression: str, message: str, run: Path, guerdon: Callable[..., Outcome]) -> None:
    before = left_in(run)
    refused(guerdon("reward", run, "--name", "new", "--compose", expression), message)
    assert left_in(run) == before


@pytest.mark.parametrize("name", ["random", "replay", "bc"])
def test_a_reward_cannot_take_the_name_of_an_arm_without_rewards(name: str, run: Path, guerdon: Callable[..., Outcome]) -> None:
    refused(guerdon("reward", run, "--compose", "sparse", "--name", name), f"'{name}' is the name of an arm without rewards", status=2)


# --- run folders ----------------------------------------------------------------------------------------------------------------------

USES_OF_A_RUN = (["reward"], ["train", *QUICK], ["evaluate"], ["report"], ["export", "--out", "exported"])


@pytest.mark.parametrize("command", USES_OF_A_RUN, ids=lambda command: command[0])
@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"format": 1}', '{"format": 1, "dataset": {"path": 3, "fingerprint": "x"}}'])
def test_what_is_no_run_folder(
    command: list[str], content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is None:
        Path("run").write_text("a file")
    else:
        Path("run").mkdir()
        Path("run/run.json").write_text(content)
    refused(guerdon(command[0], "run", *command[1:]), "run")
    assert left_in(tmp_path) == (["run"] if content is None else ["run/run.json"])


def test_a_run_cannot_begin_in_a_file_or_under_one(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    for where in ("file", "folder"):
        refused(guerdon("label", data, "--run", tmp_path / where, "--quiet"), f"{where}: exists and is not a run folder")
    refused(guerdon("label", data, "--run", tmp_path / "file/run", "--quiet"), "file/run/run.json: cannot write")
    refused(guerdon("collect", "babyai", "--out", tmp_path / "file/data", "--tasks", "1"), "file/data: cannot write")
    assert left_in(tmp_path / "folder") == ["notes.txt"]
    (tmp_path / "killed/.run.json.abc.part").mkdir(parents=True)
    assert guerdon("label", data, "--run", tmp_path / "killed", "--vlm", "scripted:perfect", "--quiet").status == 0


def test_a_dataset_that_changed_after_labelling(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    mine, run = Path(shutil.copytree(data, tmp_path / "data")), tmp_path / "run"
    assert guerdon("label", mine, "--run", run, "--vlm", "scripted:perfect", "--quiet").status == 0
    with h5py.File(mine / "data/main_data.hdf5", "a") as file:
        file["episode_0/rewards"][0] = 1.0
    for command in USES_OF_A_RUN:
        given = [*command[1:]] if command[0] != "export" else ["--out", str(tmp_path / "exported")]
        if command[0] == "report":
            assert guerdon("report", run).status == 0
            assert "has changed since this run began" in (run / "report.html").read_text(encoding="utf-8")
        else:
            refused(guerdon(command[0], run, *given), *(() if command[0] in ("train",) else ("has changed since the run",)))
    refused(guerdon("label", mine, "--run", run, "--quiet"), "belongs to another dataset", "its labels no longer fit it")
    other = tmp_path / "other"
    assert guerdon("collect", "babyai", "--out", other, "--level", "small", "--tasks", "3", "--demonstrations", "1").status == 0
    refused(guerdon("label", other, "--run", run, "--quiet"), "belongs to another dataset")


def test_a_policy_whose_rewards_changed(run: Path, guerdon: Callable[..., Outcome]) -> None:
    assert guerdon("reward", run, "--compose", "sparse").status == 0
    refused(guerdon("evaluate", run, "--per-length", "1", "--jobs", "1", "--quiet"), "policies/dense/seed-0: was made from another rewards")
    assert guerdon("report", run).status == 0
    assert "was made from another rewards/dense" in (run / "report.html").read_text(encoding="utf-8")
    assert guerdon("train", run, *QUICK).status == 0
    assert guerdon("evaluate", run, "--per-length", "1", "--jobs", "1", "--quiet", "--rollouts", "0").status == 0


@pytest.mark.parametrize("text", ["[]", '{"format": 1, "tasks": [{}]}', None])
def test_tasks_edited_by_hand(text: str | None, run: Path, guerdon: Callable[..., Outcome]) -> None:
    tasks = run / "tasks.json"
    tasks.write_text(tasks.read_text().replace('"step_limit": ', '"step_limit": 9') if text is None else text)
    refused(guerdon("evaluate", run, "--per-length", "1", "--quiet"), "tasks.json")
    assert guerdon("report", run).status == 0


def test_other_tasks_and_arms_than_there_are(run: Path, guerdon: Callable[..., Outcome]) -> None:
    refused(guerdon("evaluate", run, "--per-length", "2"), "tasks.json: holds other tasks than the ones asked for now")
    refused(guerdon("evaluate", run, "--per-length", "99"), "tasks of 1 sub-tasks, 99 are wanted", status=2)
    refused(guerdon("evaluate", run, "--arms", "nosuch", "--per-length", "1", "--quiet"), "no policy is called 'nosuch'; there are: dense")
    refused(guerdon("evaluate", run, "--arms", "../labels", "--per-length", "1", "--quiet"), "no policy is called '../labels'")
    refused(guerdon("train", run, "--rewards", "nosuch"), "no reward column is called 'nosuch'. There are: dense", "guerdon reward")
    refused(guerdon("train", run, "--algorithm", "nosuch"), "no algorithm 'nosuch'; there are: bc, iql", status=2)
    refused(guerdon("export", run, "--rewards", "nosuch", "--out", run / "x"), "no reward column is called 'nosuch'")
    (run / "policies/dense/seed-0/manifest.json").unlink()
    refused(guerdon("evaluate", run, "--per-length", "1", "--quiet"), "policies/dense: holds no finished policy", "--arms")
    (run / "policies/dense/seed-old").mkdir()
    (run / "policies/dense/seed-old/manifest.json").write_text("{}")
    refused(guerdon("evaluate", run, "--per-length", "1", "--quiet"), "policies/dense: holds no finished policy")


# --- damaged parts --------------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path) -> None:
    """Other values, written by another program that keeps everything else."""
    table = parquet.read_table(path)
    name = "value" if "value" in table.column_names else "reward"
    place = table.column_names.index(name)
    halved = pyarrow.compute.multiply(table[name], pyarrow.scalar(0.5, "float"))
    parquet.write_table(table.set_column(place, table.field(place), halved), path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def another_kind(path: Path) -> None:
    """A file of this package where another one belongs."""
    other = {"labels": "rewards/dense.parquet", "rewards": "labels/rg_vlm.parquet"}[path.parent.name]
    shutil.copy(path.parent.parent / other, path)


HARMS = (cut, edit, *(pytest.param(harm, marks=pytest.mark.slow) for harm in (empty, remove, another_kind)))


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_label_set(harm: Callable[[Path], None], data: Path, run: Path, guerdon: Callable[..., Outcome]) -> None:
    harm(run / "labels/rg_vlm.parquet")
    refused(guerdon("reward", run, "--name", "new"), "rg_vlm")
    assert not (run / "rewards/new.parquet").exists()
    assert guerdon("report", run).status == 0
    assert guerdon("label", data, "--run", run, "--vlm", "scripted:perfect", "--quiet").status == 0
    assert guerdon("reward", run, "--name", "new").status == 0


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_reward_column(harm: Callable[[Path], None], run: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    harm(run / "rewards/dense.parquet")
    refused(guerdon("train", run, *QUICK), "dense")
    refused(guerdon("evaluate", run, "--per-length", "1", "--jobs", "1", "--quiet"), "dense")
    refused(guerdon("export", run, "--out", tmp_path / "exported"), "dense")
    assert not (tmp_path / "exported").exists()
    assert guerdon("report", run).status == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {}, "inputs": [], "results": {}}'])
@pytest.mark.parametrize("part", ["labels/rg_vlm.json", "rewards/dense.json"])
def test_a_damaged_manifest(part: str, content: str, run: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    (run / part).write_text(content)
    uses = [["reward", run]] if part.startswith("labels") else [["train", run, *QUICK], ["export", run, "--out", tmp_path / "exported"]]
    for use in uses:
        refused(guerdon(*use), part)
    assert guerdon("report", run).status == 0


@pytest.mark.parametrize("harm", [cut, remove])
@pytest.mark.parametrize("file", ["policy.safetensors", "policy.json"])
def test_a_damaged_policy_is_refused_and_can_be_trained_again(
    harm: Callable[[Path], None], file: str, run: Path, guerdon: Callable[..., Outcome]
) -> None:
    evaluate = ["evaluate", run, "--per-length", "1", "--jobs", "1", "--quiet", "--rollouts", "0"]
    shutil.rmtree(run / "evaluations")
    whole = (run / "policies/dense/seed-0/policy.safetensors").read_bytes()
    harm(run / "policies/dense/seed-0" / file)
    refused(guerdon(*evaluate, "--arms", "dense"), "policies/dense/seed-0")
    assert guerdon("train", run, *QUICK).status == 0
    assert (run / "policies/dense/seed-0/policy.safetensors").read_bytes() == whole
    assert guerdon(*evaluate).status == 0


def test_a_policy_that_is_being_made_anew_is_not_whole(run: Path, guerdon: Callable[..., Outcome]) -> None:
    wild = ["--iql.optimiser.learning-rate", "1e30", "--iql.optimiser.warm-up", "1", "--log-every", "5", "--checkpoint-every", "5"]
    refused(guerdon("train", run, *wild, "--updates", "10", *QUICK[2:]), "training diverged")
    refused(guerdon("evaluate", run, "--per-length", "1", "--quiet"), "policies/dense: holds no finished policy")


def test_a_damaged_evaluation_is_made_again(run: Path, guerdon: Callable[..., Outcome]) -> None:
    rows = run / "evaluations/dense/seed-0.jsonl"
    whole = rows.read_bytes()
    for harm in (cut, remove):
        harm(rows)
        assert guerdon("report", run).status == 0
        assert guerdon("evaluate", run, "--per-length", "1", "--jobs", "1", "--quiet", "--rollouts", "0").status == 0
        assert rows.read_bytes() == whole


def test_reports_of_runs_with_little_in_them(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    run = tmp_path / "run"
    assert guerdon("label", data, "--run", run, "--vlm", "scripted:perfect", "--quiet").status == 0
    assert guerdon("report", run).status == 0
    assert "No policy has been evaluated in this run yet." in (run / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(run / "labels")
    assert guerdon("report", run).status == 0


def test_a_demonstration_does_not_go_on_with_another_dataset(tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    size = ["--demonstrations", "1", "--per-length", "1", "--quiet", "--out", tmp_path / "demo"]
    given = ["--out", tmp_path / "demo-dataset", "--level", "small", "--tasks", "3", "--demonstrations", "1"]
    assert guerdon("collect", "babyai", *given).status == 0
    refused(guerdon("demo", *size, "--tasks", "6", "--level", "small"), "demo-dataset: was recorded with other settings (tasks)")


# --- full disks -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is nearly full, as far as single files go."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_that_looks_whole(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(importlib.import_module("guerdon.asking.scheduler"), "LEASE", 1.0)
    disk = tmp_path / "disk"
    disk.mkdir()
    label = ["label", data, "--run", disk / "run", "--vlm", "scripted:perfect", "--quiet"]
    with files_of_at_most(100_000):
        refused(guerdon(*label, "--store", disk / "store.sqlite"), "store.sqlite")
    assert left_in(disk / "run") == ["run.json"]
    assert guerdon(*label, "--store", disk / "store.sqlite").status == 0, "what was stored is usable"
    shutil.rmtree(disk)
    disk.mkdir()
    before = left_in(run)
    with files_of_at_most(1000):
        refused(guerdon("collect", "babyai", "--out", disk / "data", "--tasks", "1"), "disk/data: cannot write: File too large")
        refused(guerdon("reward", run, "--name", "new"), "rewards/new.parquet: cannot write: File too large")
        refused(guerdon("report", run), "report.html: cannot write: File too large")
        refused(guerdon("export", run, "--out", disk / "exported"), "disk/exported: cannot write: File too large")
    assert left_in(run) == before
    assert left_in(disk) == []


def test_a_label_set_that_does_not_fit_on_the_disk(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    label = ["label", data, "--run", tmp_path / "run", "--vlm", "scripted:perfect", "--quiet"]
    assert guerdon(*label).status == 0
    whole = (tmp_path / "run/labels/rg_vlm.parquet").read_bytes()
    shutil.rmtree(tmp_path / "run/labels")
    original = LabelSet.write

    def write_on_a_full_disk(labels: LabelSet, path: Path) -> None:
        with files_of_at_most(1000):
            original(labels, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelSet, "write", write_on_a_full_disk)
        refused(guerdon(*label), "labels/rg_vlm.parquet: cannot write: File too large")
    assert left_in(tmp_path / "run") == ["run.json"]
    assert guerdon(*label).status == 0
    assert (tmp_path / "run/labels/rg_vlm.parquet").read_bytes() == whole


def test_a_part_whose_manifest_could_not_be_written_is_not_trusted(run: Path, guerdon: Callable[..., Outcome]) -> None:
    manifest = (run / "rewards/dense.json").read_text()
    assert guerdon("reward", run, "--compose", "sparse").status == 0
    (run / "rewards/dense.json").write_text(manifest)  # the column is new, its manifest still the old one
    refused(guerdon("train", run, *QUICK), "rewards/dense.parquet: is not what its manifest says")


# --- surroundings ---------------------------------------------------------------------------------------------------------------------


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    words = [sys.executable, "-m", "guerdon", *map(str, arguments)]
    everything = {**os.environ, **environment}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything, start_new_session=True)


def test_a_narrow_terminal(finished: Path, monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    assert guerdon("report", "--help").status == 0
    assert guerdon("evaluate", finished, "--per-length", "1", "--jobs", "1", "--quiet", "--rollouts", "0").status == 0


def test_an_output_that_knows_few_characters_or_is_full(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(9, 0, annotations=(Annotation("дверь"),))])
    ascii_only = started("check", path, "--instruction-key", "дверь", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    _, err = ascii_only.communicate(timeout=30)
    assert ascii_only.returncode == 1
    assert "error: " in err
    assert "Traceback" not in err
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "guerdon", "--help"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_path_that_is_no_text(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    run = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert guerdon("label", data, "--run", run, "--vlm", "scripted:perfect", "--quiet").status == 0
    assert guerdon("reward", run).status == 0
    assert guerdon("report", run).status == 0


# --- interruptions --------------------------------------------------------------------------------------------------------------------

SLOWLY = [
    "--vlm", "scripted", "--scripted.failure", "0", "--scripted.delay", "0.03", "--concurrency", "2", "--min-coverage", "0", "--quiet",
]  # fmt: skip


def attempts_in(store: Path) -> int:
    """Requests sent and written down so far, looked up beside a process that may be writing."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5)
    try:
        return int(connection.execute("SELECT count(*) FROM attempt").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The label set of a run that nobody interrupts, and the requests it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(["label", str(data), "--run", str(folder / "run"), "--store", str(folder / "store.sqlite"), *SLOWLY]) == 0
    return (folder / "run/labels/rg_vlm.parquet").read_bytes(), attempts_in(folder / "store.sqlite")


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_labelling_goes_on_after_an_interruption(
    stop: signal.Signals, undisturbed: tuple[bytes, int], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    guerdon: Callable[..., Outcome],
) -> None:  # fmt: skip
    labels, requests = undisturbed
    store = tmp_path / "store.sqlite"
    command = ["label", data, "--run", tmp_path / "run", "--store", store, *SLOWLY]
    process = started(*command)
    wait_until(lambda: store.is_file() and (tmp_path / "store.sqlite-wal").is_file() and attempts_in(store) >= 5)
    process.send_signal(stop)
    _, err = process.communicate(timeout=20)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert err.strip() == "interrupted; what was finished is saved, the same command goes on from there"
    assert left_in(tmp_path / "run") == ["run.json"]
    before = attempts_in(store)
    assert 5 <= before < requests
    monkeypatch.setattr(importlib.import_module("guerdon.asking.scheduler"), "LEASE", 1.0)
    assert guerdon(*command).status == 0
    assert (tmp_path / "run/labels/rg_vlm.parquet").read_bytes() == labels
    assert attempts_in(store) == requests, "nothing is sent twice"


def test_two_processes_share_the_work(undisturbed: tuple[bytes, int], data: Path, tmp_path: Path) -> None:
    labels, requests = undisturbed
    command = ["label", data, "--run", tmp_path / "run", "--store", tmp_path / "store.sqlite", *SLOWLY]
    for process in [started(*command), started(*command)]:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert (tmp_path / "run/labels/rg_vlm.parquet").read_bytes() == labels
    assert attempts_in(tmp_path / "store.sqlite") == requests


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_training_and_evaluation_go_on_after_an_interruption(jobs: int, run: Path, guerdon: Callable[..., Outcome]) -> None:
    shutil.rmtree(run / "policies")
    shutil.rmtree(run / "evaluations")
    paced = ["--updates", "40", "--log-every", "1", "--checkpoint-every", "1", "--seeds", "2"]
    process = started("train", run, *paced, "--jobs", str(jobs), "--quiet")
    checkpoint = run / "policies/dense/seed-0/checkpoint.safetensors"
    wait_until(checkpoint.is_file, 60)
    process.send_signal(signal.SIGINT)  # to the command alone: it has to tell its workers
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.strip() == "interrupted; what was finished is saved, the same command goes on from there"
    assert not (run / "policies/dense/seed-0/policy.json").exists()
    assert guerdon("train", run, *paced, "--jobs", "1", "--quiet").status == 0
    lines = [json.loads(line)["update"] for line in (run / "policies/dense/seed-0/metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 41))
    evaluate = ["evaluate", run, "--per-length", "1", "--rollouts", "0", "--quiet"]
    process = started(*evaluate, "--jobs", str(jobs))
    wait_until(lambda: any((run / "evaluations").glob("*/seed-0.json")), 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    kept = {path: path.stat().st_mtime_ns for path in (run / "evaluations").rglob("seed-*.jsonl")}
    assert guerdon(*evaluate, "--jobs", "1").status == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "what was finished is kept"


def test_json_of_this_package_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "part.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "part.json", {"a": {1, 2}})
    assert read_json(tmp_path / "part.json") == {"a": 1}
    assert left_in(tmp_path) == ["part.json"]


@pytest.mark.parametrize("command", ["plan", "label"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "0"], "tile is a number of pixels from 1 to 2,000, got 0"),
        (["--tile", "999999"], "tile is a number of pixels"),
        (["--no-wait"], "--no-wait says something of batches only"),
        (["--batch-size", "3"], "--batch-size says something of batches only"),
        (["--retry-lost"], "--retry-lost says something of batches only"),
        (["--price", "0.1"], "is no price"),
    ],
)
def test_flags_that_cannot_work(
    command: str, flags: list[str], message: str, data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]
) -> None:
    where = ["--run", tmp_path / "run"] if command == "label" else []
    refused(guerdon(command, data, *where, *flags), message, status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe\x00", "is not in UTF-8. Save it as CSV in UTF-8"),
        (b"episode;step;value\n1;2;3\n", "is no header of corrections"),
        (b"episode,step,value\n0,0,1e9\n", "line 2: 'value' is a number, not '1e9'"),
        (b"episode,step,value\n0,0,nan\n", "line 2: 'value' is a number, not 'nan'"),
        (b'episode,step,value,note\n0,0,3,"a\n', "line 2: is no CSV"),
        (b"episode,step,value\n0,999999999999999,3\n", "line 2: episode 0 has"),
    ],
)
def test_corrections_that_cannot_be_read(
    content: bytes | None, message: str, run: Path, tmp_path: Path, guerdon: Callable[..., Outcome]
) -> None:
    table = tmp_path / "table.csv"
    if content is not None:
        table.write_bytes(content)
    before = (run / "labels" / "rg_vlm.parquet").read_bytes()
    refused(guerdon("labels", "import", run, "rg_vlm", table), message, status=2)
    assert (run / "labels" / "rg_vlm.parquet").read_bytes() == before


def test_a_file_of_settings_that_is_not_there(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    refused(guerdon("label", data, "--config", tmp_path / "none.yaml"), "none.yaml: cannot be read: No such file", status=2)


def test_a_password_with_an_at_sign_is_not_shown(guerdon: Callable[..., Outcome]) -> None:
    outcome = guerdon("store", "list", "--store", "postgresql://somebody:half@otherhalf@127.0.0.1:1/store")
    refused(outcome, "write %40 for @")
    assert "half" not in outcome.out + outcome.err


def test_what_can_be_done_about_missing_labels_fits_their_states(data: Path, tmp_path: Path, guerdon: Callable[..., Outcome]) -> None:
    scripted = ["--vlm", "scripted", "--scripted.malformed", "1", "--scripted.refusal", "0"]
    unreadable = guerdon("label", data, "--run", tmp_path / "run", *scripted, "--quiet")
    assert unreadable.status == 1
    assert "Answers that cannot be read stay so" in unreadable.out
    assert "--retry-failed" not in unreadable.out
    assert f"store: {os.environ['GUERDON_STORE']}" in guerdon("store", "list").out


@pytest.mark.parametrize("command", [["labels"], ["store"], ["labels", "set", "--help"], ["store", "export", "--help"]])
def test_help_fits_into_80_columns(command: list[str], monkeypatch: pytest.MonkeyPatch, guerdon: Callable[..., Outcome]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = guerdon(*command).out.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith(("usage:", "Every command"))] == []
