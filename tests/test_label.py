"""Labelling as a user sees it: pilots, ceilings, repeats, parts of a dataset, what was planned beside what was billed."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon.asking.store import Store
from guerdon.cli import main
from guerdon.errors import BadPilot, UsageError
from guerdon.labels import LabelSet
from guerdon.records import Annotation
from guerdon.rewards.column import RewardColumn
from tests.batch_servers import serve as serve_batches
from tests.data.episodes import episode, write
from tests.test_crash import Server, dataset, serving


@pytest.fixture(scope="module")
def scripted_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes of two windows; half of the actions serve."""
    recorded = []
    for number in range(8):
        truth = {"contribution": np.tile([1.0, 0.0], 8).astype(np.float32)}
        recorded.append(episode(16, number, annotations=(Annotation(f"find ball {number}"),), privileged=truth))
    return write(tmp_path_factory.mktemp("scripted") / "data", recorded)


def label(data: Path, tmp_path: Path, **settings: Any) -> Any:
    given: dict[str, Any] = {
        "dataset": data,
        "run": tmp_path / "run",
        "store": str(tmp_path / "s.sqlite"),
        "vlm": ("scripted",),
        "quiet": True,
    }
    return guerdon.label(**(given | settings))


# --- the ceiling --------------------------------------------------------------------------------------------------------------------

PRICE = "2,10"
"""A request of the server costs 1000 tokens in and 50 out: 0.25 cents."""


def billed(server: Server) -> float:
    return float(server.log()["received"] * (1000 * 2 + 50 * 10) / 1e6)


def test_a_ceiling_is_kept_over_restarts_and_what_there_is_becomes_labels(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 12)  # 48 requests, 12 cents
    with serving() as server:
        settings = {"vlm": (server.rater,), "price": (PRICE,), "concurrency": 4, "rater_settings": small_allowance()}
        first = label(data, tmp_path, max_cost=0.06, **settings)
        assert not first.complete
        assert "0.06" in first.stopped
        assert 0.03 < billed(server) <= 0.06
        counts = first.labels.counts()
        assert counts["labelled"] > 0
        assert counts["skipped"] > 0
        assert set(counts) == {"labelled", "skipped"}
        again = label(data, tmp_path, max_cost=0.06, **settings)
        assert billed(server) <= 0.06
        assert again.labels.counts()["labelled"] >= counts["labelled"]
        whole = label(data, tmp_path, max_cost=1.0, **settings)
        assert whole.complete
        assert server.log()["received"] == 48  # nothing was asked twice
        assert whole.results["dollars"] == pytest.approx(billed(server))
        assert whole.results["planned"]["requests"] == 48
        with Store.open(tmp_path / "s.sqlite") as store:
            assert store.spent(guerdon.runs.Run.open(tmp_path / "run").id) == pytest.approx(billed(server))


def small_allowance() -> dict[str, Any]:
    from guerdon.providers._settings import ChatConfig

    return {"openai-compatible": ChatConfig(max_output_tokens=100)}


def test_a_ceiling_needs_a_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path / "data", 2)
    with pytest.raises(UsageError, match="price"):
        label(data, tmp_path, vlm=("openai-compatible:m@https://gateway.invalid/v1",), max_cost=1.0, yes=True)


# --- the pilot ----------------------------------------------------------------------------------------------------------------------


def test_a_good_pilot_goes_on_and_is_not_paid_for_again(scripted_data: Path, tmp_path: Path) -> None:
    done = label(scripted_data, tmp_path, vlm=("scripted:perfect",), pilot=6)
    pilot = done.results["pilot"]
    assert pilot["windows"] == 6
    assert pilot["contrast"]["right"] == pytest.approx(6.0)  # half of the actions serve (9), half do not matter (3)
    assert pilot["contrast"]["wrong"] == pytest.approx(3.0)
    assert pilot["problems"] == []
    assert done.complete
    assert done.results["requests"] == 2 * (16 + 6)  # all windows once, and six with wrong words
    assert {value.annotation for value in done.labels.labels} == {0}


def test_a_rater_that_does_not_read_the_instruction_fails_the_pilot(tmp_path: Path) -> None:
    """The server's scores depend on the words, but are no lower by wrong ones."""
    data = dataset(tmp_path / "data", 20)
    with serving() as server:
        with pytest.raises(BadPilot, match="no lower by a wrong instruction"):
            label(data, tmp_path, vlm=(server.rater,), pilot=20)
        assert server.log()["received"] == 2 * 40
        assert not (tmp_path / "run/labels/rg_vlm.parquet").exists()
        forced = label(data, tmp_path, vlm=(server.rater,), pilot=20, force=True)
        assert forced.complete
        assert len(forced.results["pilot"]["problems"]) == 1


def test_an_unreliable_rater_fails_the_pilot(scripted_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadPilot, match=r"\d+% of the windows were (unreadable|refused)"):
        label(scripted_data, tmp_path, vlm=("scripted",), pilot=16, rater_settings={"scripted": scripted(refusal=0.3, malformed=0.6)})


def scripted(**settings: Any) -> Any:
    from guerdon.providers.scripted import Scripted

    return Scripted.Config(**settings)


# --- repeats ------------------------------------------------------------------------------------------------------------------------


def test_repeats_become_a_median_with_a_spread_that_rewards_can_use(scripted_data: Path, tmp_path: Path) -> None:
    settings = {"vlm": ("scripted",), "rater_settings": {"scripted": scripted(refusal=0, malformed=0, failure=0)}}
    alone = [label(scripted_data, tmp_path / str(n), repeats=n, **settings) for n in (1, 3)]
    assert alone[0].results["requests"] == 32
    assert alone[1].results["requests"] == 96
    assert all(found.spread is None for found in alone[0].labels.labels)
    spreads = [found.spread for found in alone[1].labels.labels]
    assert None not in spreads
    assert max(spreads) > 0
    truth = np.tile([1.0, 0.0], 8 * 8)
    errors = [np.mean((np.array([found.value for found in each.labels.labels]) > 5) != (truth > 0)) for each in alone]
    assert errors[1] < errors[0]  # a median of three errs less often
    run = tmp_path / "3" / "run"
    guerdon.reward(run=run, compose="rg_vlm - rg_vlm.spread", name="careful")
    values = RewardColumn.read(run / "rewards/careful.parquet").values[0, 0]
    first = [found for found in alone[1].labels.labels if found.episode == 0]
    np.testing.assert_allclose(values, [(found.value - found.spread) / 10 for found in first], rtol=1e-5)


# --- parts, corrections, logs ---------------------------------------------------------------------------------------------------------


def test_a_part_is_part_of_the_whole(scripted_data: Path, tmp_path: Path) -> None:
    part = label(scripted_data, tmp_path, sampling=guerdon.samples.Config(fraction=0.25))
    assert (part.results["windows"], len(part.labels.labels)) == (4, 32)
    whole = label(scripted_data, tmp_path)
    assert whole.results["found"] >= 8  # the four windows of the part, two turns each


def test_corrections_survive_labelling_again(scripted_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label(scripted_data, tmp_path)
    assert main(["labels", "set", str(tmp_path / "run"), "rg_vlm", "--episode", "3", "--step", "5", "--value", "10"]) == 0
    again = label(scripted_data, tmp_path)
    corrected = [found for found in again.labels.labels if found.state == "human"]
    assert [(found.episode, found.start, found.value) for found in corrected] == [(3, 5, 10.0)]
    assert len(again.labels.labels) == 8 * 16
    assert LabelSet.read(tmp_path / "run/labels/rg_vlm.parquet").fingerprint == again.labels.fingerprint


def test_the_command_prints_what_was_planned_beside_what_was_billed(
    scripted_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    words = [
        "label",
        str(scripted_data),
        "--run",
        str(tmp_path / "run"),
        "--vlm",
        "scripted:perfect",
        "--pilot",
        "8",
        "--log-json",
        str(log),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "planned" in out
    assert "billed" in out
    assert "by the right words" in out
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["start", "end", "start", "end"]
    assert events[-1]["done"] == 16
    # The pilot is part of what is planned: 8 windows by wrong words.
    assert events[-1]["total"] == 16


def test_a_queue_that_is_not_there_is_named(scripted_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scripted"):
        label(scripted_data, tmp_path, batch=True)


@pytest.mark.parametrize(
    "settings",
    [{"repeats": 0}, {"max_cost": -1.0}, {"max_cost": float("nan")}, {"pilot": -1}, {"price": ("1,2", "3,4")}, {"price": ("x",)}],
)
def test_settings_that_cannot_be_are_refused(scripted_data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        label(scripted_data, tmp_path, **settings)


# --- secrets ------------------------------------------------------------------------------------------------------------------------


def test_a_key_is_written_and_printed_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-planted-7f3a9c2e51d8"
    monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", key)
    data = dataset(tmp_path / "data", 6)
    caplog.set_level("DEBUG")
    with serving("--faults", "0.3", "--key", key) as server:
        words = ["label", str(data), "--run", str(tmp_path / "run"), "--vlm", server.rater, "--store", str(tmp_path / "s.sqlite")]
        main([*words, "--log-json", str(tmp_path / "log.jsonl"), "--min-coverage", "0"])
        monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", key[:-1] + "9")  # refused, with the key in the error's text
        assert main([*words, "--run", str(tmp_path / "other"), "--retry-failed", "--name", "again", "--repeats", "2"]) != 0
        main(["store", "list", "--store", str(tmp_path / "s.sqlite")])
        main(["store", "export", str(tmp_path / "run"), str(tmp_path / "bundle.guerdon"), "--store", str(tmp_path / "s.sqlite")])
        received = server.log()["authorised"]
    assert received > 0, "the server never saw the key: nothing was tested"
    printed = "".join(capfd.readouterr()) + caplog.text
    part = key[:-1]
    assert part not in printed
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            assert part.encode() not in (Path(folder) / name).read_bytes(), name


def test_a_rater_is_measured_without_the_corrections_of_its_mistakes(scripted_data: Path, tmp_path: Path) -> None:
    from guerdon.report.build import RaterSection
    from guerdon.report.contents import read_contents

    label(scripted_data, tmp_path, vlm=("scripted:noisy",))
    dataset_ = guerdon.open_dataset(scripted_data)
    before = RaterSection.all_of(read_contents(tmp_path / "run"), dataset_)[0].quality
    for step in range(16):
        value = str(9 if step % 2 == 0 else 1)
        assert main(["labels", "set", str(tmp_path / "run"), "rg_vlm", "--episode", "0", "--step", str(step), "--value", value]) == 0
    after = RaterSection.all_of(read_contents(tmp_path / "run"), dataset_)[0].quality
    assert before is not None
    assert after == before


# --- batches --------------------------------------------------------------------------------------------------------------------------


def test_batches_are_handed_in_and_collected_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data", 3)
    with serve_batches("openai") as server:
        server.provider(monkeypatch)  # sets the address and a key
        server.actions = 4
        words = ["label", str(data), "--run", str(tmp_path / "run"), "--vlm", "openai:gpt-5-mini", "--store", str(tmp_path / "s.sqlite")]
        words += ["--quiet", "--yes", "--batch", "--no-wait", "--window", "4"]
        server.switches.polls = 3
        statuses = [main(words)]  # hands in the first turns
        assert main([word for word in words if word not in ("--batch", "--no-wait")]) == 1  # without --batch: they are not asked twice
        assert "lies in a batch" in capsys.readouterr().out
        assert server.live == 0
        while statuses[-1] and len(statuses) < 10:  # collects them, hands in the second turns, collects those
            statuses.append(main(words))
        assert len(statuses) > 2
        assert statuses[-1] == 0
        out = capsys.readouterr().out
        assert "lie with the vendor" in out
        assert main(words) == 0
        assert "0 requests sent now" in capsys.readouterr().out
        assert len(server.jobs) == 2


def test_what_is_told_of_several_answers_does_not_depend_on_when_they_came(
    scripted_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer comes last, and the labels are those of a run in which all of them lay in the store."""
    from guerdon.providers.scripted import Scripted

    usual = Scripted.ask

    async def late(self: Scripted, request: Any, *, repeat: int = 0) -> Any:
        await asyncio.sleep(0.02 * (2 - repeat))
        return await usual(self, request, repeat=repeat)

    monkeypatch.setattr(Scripted, "ask", late)
    settings: dict[str, Any] = {"repeats": 3, "keep_votes": True, "vlm": ("scripted:noisy",), "min_coverage": 0.0, "concurrency": 100}
    live, stored = (label(scripted_data, tmp_path, run=tmp_path / run, **settings) for run in ("live", "stored"))
    assert stored.results["found"] > 0
    assert live.labels.labels == stored.labels.labels
    assert list(live.votes) == [0, 1, 2]
    assert [list(found) for found in live.votes.values()] == [list(found) for found in stored.votes.values()]
