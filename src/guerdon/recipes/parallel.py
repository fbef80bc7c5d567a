"""Independent jobs side by side: one process each, one thread each, one progress bar for all.

Several one-thread processes are faster than one process with several threads for networks as small as ours, and they do not disturb each
other when something else keeps a core busy. An interruption reaches all of them, whoever was interrupted: a worker ends at its next report
of progress when the caller was interrupted or is gone.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.sharedctypes import SynchronizedArray
from typing import TypeVar

from guerdon.recipes.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Progress], Result]
"""Carries out a job and reports (done, total)."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SECONDS_BETWEEN_LOOKS = 0.5
_PARTS = 1000

_shared: SynchronizedArray[int] | None = None
"""In a worker process: thousandths done of each job, and at the end whether to stop."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(work: Work[Job, Result], jobs: Sequence[Job], *, workers: int, progress: Progress) -> list[Result]:
    """Results of `work` in the order of `jobs`; the first error stops the rest and is raised.

    Args:
        work: a function at the top level of a module; it runs in processes of its own if there are several jobs and workers.
        workers: processes at a time; 0 for as many as there are cores.
    """
    workers = min(workers or usable_cores(), len(jobs))
    total = _PARTS * len(jobs)
    if workers <= 1:
        results = []
        for number, job in enumerate(jobs):
            results.append(work(job, lambda done, of, n=number: progress(n * _PARTS + _PARTS * done // max(of, 1), total)))  # type: ignore[misc]
        progress(total, total)
        return results
    return _run_in_processes(work, jobs, workers, lambda done: progress(done, total), {})


def run_apart(work: Work[Job, Result], job: Job, *, progress: Progress, variables: Mapping[str, str] | None = None) -> Result:
    """The result of one job in a process of its own, which is over when it returns.

    Args:
        variables: environment variables that must be set before the process starts.
    """
    return _run_in_processes(work, [job], 1, lambda done: progress(done, _PARTS), variables or {})[0]


def _run_in_processes(
    work: Work[Job, Result], jobs: Sequence[Job], workers: int, report: Callable[[int], None], variables: Mapping[str, str]
) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", len(jobs) + 1)
    settings = {**dict.fromkeys(_THREAD_VARIABLES, "1"), **variables}  # read by the libraries when a child starts
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(shared,))
        with pool, _stopping_early(pool, shared):
            futures: list[Future[Result]] = [pool.submit(_work_one, work, number, job) for number, job in enumerate(jobs)]
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()  # raises the error of a job that failed
                report(sum(shared[:-1]))
        return [future.result() for future in futures]
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _stopping_early(pool: ProcessPoolExecutor, shared: SynchronizedArray[int]) -> Iterator[None]:
    """Stops the workers when the block is left by an error or by Ctrl-C; the pool waits for them afterwards."""
    try:
        yield
    except BaseException:
        shared[-1] = 1
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _begin_worker(shared: SynchronizedArray[int]) -> None:
    global _shared
    _shared = shared


def _work_one(work: Work[Job, Result], number: int, job: Job) -> Result:
    shared = _shared
    assert shared is not None

    caller = multiprocessing.parent_process()

    def report(done: int, of: int) -> None:
        if caller is not None and not caller.is_alive():
            os._exit(1)  # nobody is left to raise anything to
        if shared[-1]:
            raise KeyboardInterrupt
        shared[number] = _PARTS * done // max(of, 1)

    result = work(job, report)
    shared[number] = _PARTS
    return result
