"""One event loop in one thread for the whole process, so that asynchronous code can be called from ordinary code anywhere.

A rater's connections belong to the event loop they were opened in and die with it; a notebook already runs a loop of its own, in which
`asyncio.run` is refused. Both problems vanish when all asking happens in one loop that lives as long as the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
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


def run_sync(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs `coroutine` in the process's event loop and returns what it returns, or raises what it raises.

    Works in scripts, in threads and in notebooks. Ctrl-C cancels the coroutine and waits until it has ended, so that it can save what is in
    flight; each further Ctrl-C cancels it again.

    Raises:
        KeyboardInterrupt: after an interrupted coroutine has ended.
        RuntimeError: if called from within that loop, which would wait for itself for ever.
    """
    loop = _the_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("run_sync was called from a coroutine that run_sync runs; await the coroutine instead")
    call = _Call(coroutine)
    step, interrupted = call.begin, False
    while True:
        try:
            loop.call_soon_threadsafe(step)
            result = call.ended.result()
        except KeyboardInterrupt:
            step, interrupted = call.cancel, True
        except concurrent.futures.CancelledError:
            raise (KeyboardInterrupt if interrupted else asyncio.CancelledError) from None
        else:
            if interrupted:
                raise KeyboardInterrupt
            return result


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
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # Ctrl-C came before the beginning
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
