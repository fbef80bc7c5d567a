"""One event loop in one thread for the whole process, so that asynchronous code can be called from ordinary code anywhere.

A rater's connections belong to the event loop they were opened in and die with it; a notebook already runs a loop of its own, in which
`asyncio.run` is refused. Both problems vanish when all asking happens in one loop that lives as long as the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

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
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise RuntimeError("run_sync was called from a coroutine that run_sync runs; await the coroutine instead")
    done: concurrent.futures.Future[Result] = concurrent.futures.Future()
    started: concurrent.futures.Future[asyncio.Task[None]] = concurrent.futures.Future()
    loop.call_soon_threadsafe(lambda: started.set_result(loop.create_task(_report_to(done, coroutine))))
    interrupted = False
    while True:
        try:
            result = done.result()
        except KeyboardInterrupt:
            interrupted = True
            loop.call_soon_threadsafe(started.result().cancel)
        except concurrent.futures.CancelledError:
            raise (KeyboardInterrupt if interrupted else asyncio.CancelledError) from None
        else:
            if interrupted:
                raise KeyboardInterrupt
            return result


async def _report_to(done: concurrent.futures.Future[Result], coroutine: Coroutine[Any, Any, Result]) -> None:
    """Awaits `coroutine` and passes on how it ended."""
    try:
        result = await coroutine
    except asyncio.CancelledError:
        done.cancel()
        raise
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(result)
