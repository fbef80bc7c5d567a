"""What a person and a program see of a run of asking."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from guerdon.asking.progress import Progress
from guerdon.errors import UsageError, WriteFailed
from guerdon.recipes import watch as module
from guerdon.recipes.watch import Moment, duration, money, watching


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_rate_projection_and_time_to_go(clock: Clock) -> None:
    with watching("asking", 100, quiet=True) as watch:
        for second in range(1, 11):
            clock.now = float(second)
            watch(Progress(done=2 * second, asked=4 * second, dollars=0.01 * second))
        moment = watch.moment()
    assert moment.per_second == pytest.approx(2.0)
    assert moment.left == 80
    assert moment.seconds_to_go == pytest.approx(40.0)
    assert moment.projected_dollars == pytest.approx(0.5)  # 20 of 100 cost 0.10


def test_the_rate_follows_a_vendor_that_slows_down(clock: Clock) -> None:
    with watching("asking", 10_000, quiet=True) as watch:
        for second in range(1, 101):
            clock.now = float(second)
            watch(Progress(done=10 * second if second <= 50 else 500 + (second - 50)))
        assert watch.moment().per_second == pytest.approx(1.0, rel=0.05)


def test_the_line_names_failures_money_and_what_is_waited_for() -> None:
    state = Progress(done=10, asked=25, failures={"rate_limit": 3, "timeout": 1}, dollars=0.5, waiting="retry-after")
    assert Moment(state, 40, 5.0, 2.0).text == (
        "2/s, $0.50 of about $2.00, 3 rate limit, 1 timeout, 15 s to go, waiting: the vendor asked for a pause"
    )
    unknown = Progress(done=10, asked=20, price_unknown=20)
    assert "no price known" in Moment(unknown, 40, 5.0, 2.0).text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (200, "3 min"), (7500, "2 h 05 min"), (None, "?")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_log_is_json_lines_and_is_added_to(tmp_path: Path, clock: Clock) -> None:
    log = tmp_path / "new" / "log.jsonl"
    with watching("asking", 4, quiet=True, log=log, begin={"planned": 8}) as watch:
        for second in range(1, 5):
            clock.now = second * 0.6  # a line a second, not one an event
            watch(Progress(done=second, failures={"timeout": 1}))
    with pytest.raises(UsageError), watching("asking", 4, quiet=True, log=log):
        raise UsageError("no such thing")
    found = lines(log)
    assert [line["event"] for line in found] == ["start", "progress", "progress", "end", "start", "stopped"]
    assert (found[0]["planned"], found[0]["total"]) == (8, 4)
    assert (found[3]["done"], found[3]["left"], found[3]["failures"]) == (4, 0, {"timeout": 1})
    assert found[5]["reason"] == "no such thing"
    assert all(str(line["time"]).endswith("+00:00") for line in found)


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match="log cannot be written"), watching("asking", 4, quiet=True, log=tmp_path / "file" / "log"):
        pass


def test_without_a_terminal_there_is_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with watching("asking", 100) as watch:
        for second in range(1, 26):
            clock.now = float(second)
            watch(Progress(done=second))
        clock.now = 30.0
        watch(Progress(done=100))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in shown] == ["asking: 10 of 100", "asking: 20 of 100", "asking: 100 of 100"]


def test_a_run_that_is_stopping_says_what_it_waits_for() -> None:
    state = Progress(done=10, asked=25, in_flight=3, waiting="stopping", dollars=0.5)
    assert Moment(state, 40, 5.0, 0.0).text.endswith("stopping when 3 in flight are answered; Ctrl-C again does not wait")


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.5, "$0.50"),
        (0.0612, "$0.061"),
        (0.001, "$0.0010"),
        (1e-5, "$0.000010"),
    ],
)
def test_small_sums_are_not_shown_as_nothing(dollars: float, text: str) -> None:
    assert money(dollars) == text


def test_without_a_terminal_a_long_wait_is_said_at_once_and_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with watching("asking", 100) as watch:
        for second in range(1, 9):
            clock.now = float(second)
            watch(Progress(in_flight=4, waiting="vendor"))
    assert [line.partition(" waiting: ")[2] for line in capsys.readouterr().err.splitlines()] == ["the vendor's queue"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT TESTED: this system has no device that is always full")
def test_a_log_on_a_full_disk_is_said_once_with_its_place() -> None:
    with (
        pytest.raises(WriteFailed, match=r"^/dev/full: the log cannot be written: No space left"),
        watching("asking", 4, log=Path("/dev/full")),
    ):
        pass


@pytest.mark.parametrize("columns", [40, 80])
def test_in_a_terminal_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    name = "asking openai-compatible:Qwen/Qwen2.5-VL-7B-Instruct@http://localhost:8000/v1"
    with watching(name, 40) as watch:
        watch(Progress(done=10, asked=25, failures={"rate_limit": 3}, dollars=0.5))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", capsys.readouterr().err)
    assert name.replace(" ", "") in shown
    assert "10of40" in shown
    assert "$0.50ofabout$2.00,3ratelimit" in shown
    assert "…" not in shown
