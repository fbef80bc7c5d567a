"""The command line: `guerdon COMMAND ...`.

One file a sub-command. Help and the choice of the sub-command read file names and docstrings only; a command's file, and the methods and
providers named on its command line, are imported when it runs.
"""

from __future__ import annotations

import ast
import importlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from guerdon.errors import GuerdonError, UnknownName, UsageError
from guerdon.runs import package_version

_ORDER = (
    "demo", "collect", "check", "plan", "raters", "label", "labels", "store", "fit", "relabel", "reward", "export", "train", "online",
    "evaluate", "report", "reproduce", "train-embedded",
)  # fmt: skip
_STATUS_FAILED, _STATUS_USAGE, _STATUS_INTERRUPTED, _STATUS_TERMINATED = 1, 2, 130, 143
_NARROWEST = 20
"""Columns that help and tables are laid out for at least; in a few columns the layout of help would never end."""


def commands() -> dict[str, str]:
    """Name of each sub-command and the first line of its file's docstring, in the order in which they are used."""
    found = {path.stem.replace("_", "-"): path for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    order = [name for name in _ORDER if name in found] + sorted(set(found) - set(_ORDER))
    return {name: (ast.get_docstring(ast.parse(found[name].read_text(encoding="utf-8"))) or "").split("\n")[0] for name in order}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 success, 1 failure, 2 wrong use, 130 interrupted, 143 terminated)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_output()
    if arguments is None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_orderly)
    try:
        status = _run(words)
        print(end="", flush=True)
        return status
    except UsageError as error:
        return _complain(error, _STATUS_USAGE)
    except GuerdonError as error:
        return _complain(error, _STATUS_FAILED)
    except KeyboardInterrupt as stopped:
        if arguments is None:  # an impatient Ctrl-C from here on ends the program at once, and shows nothing of its insides
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from guerdon.asking.loop import Terminated

        print("\ninterrupted; what was finished is saved, the same command goes on from there", file=sys.stderr)
        return _STATUS_TERMINATED if isinstance(stopped, Terminated) else _STATUS_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _STATUS_FAILED
    except OSError as error:  # a disk that is full or gone, a file that may not be read
        if error.filename is None:
            _discard_output()
        what = os.strerror(error.errno) if error.errno else str(error)
        return _complain(GuerdonError(what, where=str(error.filename or "")), _STATUS_FAILED)


def _end_orderly(_number: int, _frame: object) -> NoReturn:
    """Ends like a Ctrl-C, so that half-written files are taken away and workers stop."""
    from guerdon.asking.loop import Terminated

    raise Terminated


def _prepare_output() -> None:
    """Makes sure that no text fails to be printed: characters that the output cannot hold are replaced."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)


def _discard_output() -> None:
    """Lets what is still to be printed go nowhere, so that Python does not stumble over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"guerdon {package_version()}")
        return 0
    name, rest = words[0], words[1:]
    if name not in commands():
        raise UnknownName("command", name, commands(), cure="See: guerdon --help")
    module = importlib.import_module(f"guerdon.cli.{name.replace('-', '_')}")
    status = module.main(rest)
    return int(status or 0)


def _help() -> str:
    listing = commands()
    width = max(map(len, listing))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in listing.items())
    return (
        "usage: guerdon COMMAND [OPTIONS]\n\n"
        "Rewards for recorded behaviour from vision-language models: label, learn a policy, measure it.\n\n"
        f"commands:\n{lines}\n\n"
        "Try `guerdon demo` first. `guerdon COMMAND --help` lists a command's options."
    )


def _complain(error: GuerdonError, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
