"""One event loop in one thread for the whole process, so that asynchronous code can be called from ordinary code anywhere.

A rater's connections belong to the event loop they were opened in and die with it; a notebook already runs a loop of its own, in which
`asyncio.run` is refused. Both problems vanish when all asking happens in one loop that lives as long as the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _the_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="guerdon loop", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)  # its thread stays with the parent: a child would wait for it for ever


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), and what was in flight is saved. A shell expects the exit status 143."""


def run_sync(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs `coroutine` in the process's event loop and returns what it returns, or raises what it raises.

    Works in scripts, in threads and in notebooks. Ctrl-C and SIGTERM cancel the coroutine and wait until it has ended, so that it can save
    what is in flight; each further one cancels it again. (Python gives signals to the main thread only: a call in another thread learns of
    none. A handler for Ctrl-C other than Python's own is left in place; SIGTERM that is ignored stays so.)

    Raises:
        KeyboardInterrupt: after a coroutine interrupted by Ctrl-C has ended.
        Terminated: after one interrupted by SIGTERM has ended.
        RuntimeError: if called from within that loop, which would wait for itself for ever.
    """
    loop = _the_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("run_sync was called from a coroutine that run_sync runs; await the coroutine instead")
    call = _Call(coroutine)
    interruption: type[KeyboardInterrupt] | None = None

    def interrupt(kind: type[KeyboardInterrupt]) -> None:
        nonlocal interruption
        interruption = interruption or kind
        loop.call_soon_threadsafe(call.cancel)

    with _interrupted_by_signals(interrupt):
        loop.call_soon_threadsafe(call.begin)
        while True:
            try:
                result = call.ended.result()
            except KeyboardInterrupt:  # from a handler that is not ours
                interrupt(KeyboardInterrupt)
            except concurrent.futures.CancelledError:
                raise (interruption or asyncio.CancelledError) from None
            else:
                break
    if interruption is not None:
        raise interruption
    return result


@contextmanager
def _interrupted_by_signals(interrupt: Callable[[type[KeyboardInterrupt]], None]) -> Iterator[None]:
    """Lets signals call `interrupt` instead of raising something wherever the main thread happens to be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        interrupt(KeyboardInterrupt if number == signal.SIGINT else Terminated)

    before: dict[int, Any] = {}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, handler)
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None):  # None: set by something that is not Python
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Call(Generic[Result]):
    """A coroutine on its way. `begin` and `cancel` run in the loop, in the order in which they are called."""

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.ended: concurrent.futures.Future[Result] = concurrent.futures.Future()
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self.ended.cancelled():
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # the signal came before the beginning
            self._coroutine.close()
            self.ended.cancel()

    async def _run(self) -> None:
        try:
            result = await self._coroutine
        except asyncio.CancelledError:
            self.ended.cancel()
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(result)
