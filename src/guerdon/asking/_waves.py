"""A thread that carries out everything queued since it last looked at once, so that a wave of callers shares one commit or one query."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from guerdon.asking._backends import Unavailable
from guerdon.errors import StoreError

_LARGEST_WAVE = 512


@dataclass
class _Job:
    """Something that waits to be carried out; then its result, or the error that it met."""

    work: Any
    done: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Tells the caller. One that was cancelled no longer waits; its work counts all the same."""
        if self.done.done():
            return
        if self.error is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(self.error)


class Waves:
    """One thread that carries out jobs in the order they come, all that wait at once.

    Args:
        carry_out: takes the jobs of a wave and returns their results in order, or raises, and then none of them has been done.
        where: for messages.
        gathering: seconds for which a job waits for others to share its wave.
    """

    def __init__(self, carry_out: Callable[[Sequence[Any]], list[Any]], where: str, *, gathering: float = 0.0) -> None:
        self._carry_out, self._where, self._gathering = carry_out, where, gathering
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="guerdon store", daemon=True)
        self._thread.start()

    def submit(self, work: Any) -> asyncio.Future[Any]:
        """Queues a job. The future ends when its wave has been carried out, or with a StoreError."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._queue(_Job(work, done, loop))
        return done

    def wait_for(self, work: Any) -> Any:
        """Queues a job and waits until its wave has been carried out."""
        done: Future[Any] = Future()
        self._queue(_Job(work, done, None))
        return done.result()

    def _queue(self, job: _Job) -> None:
        self.refuse_if_forked()
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed", where=self._where)
            self._jobs.put(job)

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that the thread runs in."""
        return os.getpid() != self._process

    def refuse_if_forked(self) -> None:
        """Raises StoreError in a fork: the thread is not there, and a connection must not be shared."""
        if self.forked:
            raise StoreError("the store was opened before this process was forked", where=self._where, cure="Open it anew in each process.")

    def close(self) -> None:
        """Carries out what is queued, then ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while wave := self._next_wave():
            error = self._try(wave)
            if error is not None and len(wave) > 1 and not isinstance(error, Unavailable):
                # One job cannot be carried out and took the others down with it: let each stand alone.
                for job in wave:
                    self._try([job])
            _settle(wave)

    def _next_wave(self) -> list[_Job]:
        """The jobs that wait, at least one; none when the store was closed and nothing is left."""
        wave: list[_Job] = []
        job = self._jobs.get()
        if job is not None and self._gathering:
            time.sleep(self._gathering)
        while job is not None:
            wave.append(job)
            if len(wave) == _LARGEST_WAVE or self._jobs.empty():
                return wave
            job = self._jobs.get()
        if wave:
            self._jobs.put(None)  # seen too early: these come first
        return wave

    def _try(self, wave: list[_Job]) -> BaseException | None:
        """Carries out all jobs, or, on an error, none of them, and each learns of it."""
        try:
            results = self._carry_out([job.work for job in wave])
        except BaseException as error:
            for job in wave:
                job.error = error
            return error
        for job, result in zip(wave, results, strict=True):
            job.result, job.error = result, None
        return None


def _settle(wave: list[_Job]) -> None:
    """Wakes the callers, each event loop once for all of its jobs."""
    for loop in {job.loop for job in wave}:
        jobs = [job for job in wave if job.loop is loop]
        if loop is None:
            _settle_all(jobs)
            continue
        try:
            loop.call_soon_threadsafe(_settle_all, jobs)
        except RuntimeError:
            continue  # that loop has ended, and its callers with it


def _settle_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()
