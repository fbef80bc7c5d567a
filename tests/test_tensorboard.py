"""What TensorBoard reads is what the lines say, whoever wrote it and however often the run was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from guerdon.errors import WriteFailed
from guerdon.training.tensorboard import TensorBoard
from tests.curves import curves


def test_one_file_holds_the_numbers_of_all_lines(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, done=-1)
    for step in range(5):
        board.write(step, {"step": step, "loss": 0.5 * step, "task": "t1", "outcomes": [1]}, "learning")
    board.write(4, {"success": 1}, "evaluation")
    board.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert curves(tmp_path / "tensorboard") == {
        "learning/loss": [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)],
        "evaluation/success": [(4, 1.0)],
    }


def test_what_a_killed_run_wrote_too_much_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for began, done, factor in ((1_000_000_000, -1, 1.0), (1_000_000_100, 10, 2.0)):
        monkeypatch.setattr("time.time", lambda began=began: float(began))  # files are read in the order of their names
        board = TensorBoard(tmp_path, done=done)
        for step in range(done + 1, done + 21, 5):
            board.write(step, {"loss": factor * step})
        board.close()
    assert curves(tmp_path / "tensorboard") == {"loss": [(0, 0.0), (5, 5.0), (10, 10.0), (11, 22.0), (16, 32.0), (21, 42.0), (26, 52.0)]}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(WriteFailed, match="tensorboard"):
        TensorBoard(tmp_path, done=-1)
