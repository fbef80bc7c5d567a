"""Jobs side by side: results in order, errors whole, progress complete."""

import os

import pytest

from guerdon.errors import DatasetError, UnknownName
from guerdon.recipes.parallel import run_jobs, usable_cores
from guerdon.recipes.progress import Progress, progress_bar


def square(job: int, progress: Progress) -> int:
    progress(1, 2)
    return job * job


def threads(_job: int, _progress: Progress) -> str:
    return os.environ["OMP_NUM_THREADS"]


def fail_on_two(job: int, _progress: Progress) -> int:
    if job == 2:
        raise UnknownName("job", "two", ["one", "three"], cure="Choose another.")
    return job


@pytest.mark.parametrize("workers", [1, 2, 0])
def test_results_come_in_order_and_progress_ends_full(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    assert run_jobs(square, [3, 1, 2], workers=workers, progress=lambda done, total: seen.append((done, total))) == [9, 1, 4]
    assert seen[-1] == (3000, 3000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_crosses_the_process_with_all_it_says(workers: int) -> None:
    with pytest.raises(UnknownName) as caught:
        run_jobs(fail_on_two, [1, 2, 3, 4], workers=workers, progress=lambda _done, _total: None)
    assert str(caught.value) == "no job 'two'; there are: one, three. Choose another."
    assert caught.value.cure == "Choose another."


def test_workers_have_one_thread_each_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_jobs(threads, [1, 2], workers=2, progress=lambda _done, _total: None) == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_no_jobs_give_no_results() -> None:
    assert run_jobs(square, [], workers=2, progress=lambda _done, _total: None) == []
    assert usable_cores() >= 1


def test_progress_without_a_terminal_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("counting") as progress:
        for done in range(1, 4):
            progress(done, 3)
    assert capsys.readouterr().err == "counting: 3 of 3 (0 s)\n"
    with progress_bar("counting", quiet=True) as progress:
        progress(1, 1)
    assert capsys.readouterr().err == ""


def test_errors_say_what_where_and_what_next() -> None:
    assert str(DatasetError("is damaged", where="a.hdf5, episode 3", cure="Record it again.")) == (
        "a.hdf5, episode 3: is damaged. Record it again."
    )
