"""A rater that repeats what was answered before: reads a reply store and serves any answer recorded for the same question.

For re-running an experiment without money or network, and for publishing one: hand over the store file, and anyone gets the same replies.
Opens the SQLite file read-only and never asks anybody. A question that is not recorded gives the final failure "unsupported" with the code
"not_recorded".
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guerdon.errors import ProviderError, UsageError
from guerdon.interfaces import Provider
from guerdon.records import Failure, Quote, Rater, Reply, Request, Usage, digest

FILE_NAME = "replies.sqlite"
"""Name of the store file looked for in a folder."""

_FREE = Usage(input_tokens=0, output_tokens=0, dollars=0.0)
_RECORDED = "FROM answer LEFT JOIN rater USING (rater) WHERE (:name = '' OR json_extract(CAST(identity AS TEXT), '$.name') = :name)"
_FIND = f"SELECT body, model {_RECORDED} AND question = :question AND repeat = :repeat ORDER BY answer.rowid LIMIT 1"
_CONTENT = f"SELECT question, rater, repeat, body {_RECORDED} ORDER BY question, rater, repeat"


class Replay(Provider):
    """Serves recorded replies."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the replaying rater."""

        rater: str = ""
        """Serve only replies of this rater, e.g. "google:gemini-2.5-flash"; of the one that answered first if not given."""

    def __init__(self, path: Path, config: Config | None = None) -> None:
        """`path`: a store file, or a folder that holds one called replies.sqlite.

        Raises:
            ProviderError: if there is no readable store, or it holds no reply (of the rater named).
        """
        self.config = config or self.Config()
        self.path = path / FILE_NAME if path.is_dir() else path
        self._connection = _open(self.path)
        try:
            content = self._fingerprint()
        except ProviderError:
            self._connection.close()
            raise
        self.rater = Rater("replay", path.name, settings={"rater": self.config.rater, "replies": content})

    @classmethod
    def build(cls, argument: str = "", *, config: Config | None = None) -> Replay:
        """The rater called `replay:ARGUMENT`. Raises UsageError without an argument, ProviderError if there is no store."""
        if not argument:
            raise UsageError("which replies to replay is not said", where="replay", cure="Write replay:FOLDER or replay:STORE_FILE.")
        return cls(Path(argument).expanduser(), config)

    def quote(self, request: Request) -> Quote:
        """Nothing: it costs nothing."""
        del request
        return Quote(0, 0, 0.0)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """The recorded reply to the same question and repeat."""
        began = time.perf_counter()
        with _explained(self.path):
            row = self._connection.execute(_FIND, {"name": self.config.rater, "question": request.question, "repeat": repeat}).fetchone()
        if row is None:
            return Failure("unsupported", final=True, code="not_recorded", usage=_FREE)
        body, model = row
        return Reply(body.decode("utf-8", "surrogatepass"), model=model, usage=_FREE, seconds=time.perf_counter() - began)

    async def close(self) -> None:
        self._connection.close()

    def _fingerprint(self) -> str:
        """Digest of all recorded replies: with more of them, this is another rater, so that gaps that were filled are asked anew."""
        with _explained(self.path):
            recorded = self._connection.execute(_CONTENT, {"name": self.config.rater})
            rows = [digest(question, rater, str(repeat), body) for question, rater, repeat, body in recorded]
            names = [name for (name,) in self._connection.execute("SELECT json_extract(CAST(identity AS TEXT), '$.name') FROM rater")]
        if not rows:
            of_whom = f" of '{self.config.rater}'" if self.config.rater else ""
            cure = f"It has replies of: {', '.join(names) or 'nobody'}."
            raise ProviderError(f"holds no replies{of_whom}", where=str(self.path), cure=cure)
        return digest(*rows)


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        cure = f"Name a reply store, or a folder with a file {FILE_NAME}."
        raise ProviderError("there is no recording", where=str(path), cure=cure)
    # Without a log beside it the file is at rest, and may lie on a read-only disk, where SQLite could not create one.
    at_rest = not path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if at_rest else ''}"
    with _explained(path):
        return sqlite3.connect(uri, uri=True, check_same_thread=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        cure = "Name a file that guerdon has written."
        raise ProviderError(f"is no readable reply store ({name})", where=str(path), cure=cure) from error
