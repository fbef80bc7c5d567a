"""Starts labelling processes that a test may kill, without the time of the imports. A process of its own, told what to do by lines:

start {"lease": 1.0, "arguments": {...}}   forks a child that calls guerdon.label(**arguments); prints its pid
wait PID                                   prints how it ended: its exit status, or minus the signal
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import guerdon
from guerdon import discover
from guerdon.asking import scheduler
from guerdon.errors import GuerdonError
from guerdon.recipes import label as _label


def _label_and_exit(lease: float, arguments: dict[str, Any]) -> None:
    scheduler.LEASE = lease
    try:
        status = 0 if guerdon.label(**arguments).complete else 1
    except KeyboardInterrupt:
        status = 130
    except GuerdonError as error:
        print(error, file=sys.stderr, flush=True)
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 3
    os._exit(status)


def main() -> None:
    for kind, name in (("providers", "openai-compatible"), ("methods", "rg-vlm")):
        discover.load(kind, name)
    assert _label is not None
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "start":
            given = json.loads(rest)
            child = os.fork()
            if child == 0:
                _label_and_exit(given["lease"], given["arguments"])
            print(child, flush=True)
        else:
            _, status = os.waitpid(int(rest), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
