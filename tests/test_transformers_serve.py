"""A real server of the user's own, `transformers serve`, asked as `openai-compatible:MODEL@URL`.

It speaks the protocol, and takes no notice of the form in which an answer is wanted."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon.answers import AnswerSpec, Scores, Text, Unreadable
from guerdon.errors import ProviderError
from guerdon.interfaces import Provider
from guerdon.providers.hf import Hf
from guerdon.recipes import raters
from guerdon.records import Evidence, Failure, Message, Picture, Reply, Request, Subject, array_digest
from tests import tiny_vlm
from tests.data import episodes

NEEDED = ("torch", "transformers", "fastapi", "uvicorn", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install 'transformers[serving]'"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def spec(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's name for `--vlm`."""
    home = tmp_path_factory.mktemp("hub")
    (home / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", home / "log")
        yield f"openai-compatible:{model}@http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 100
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"the server ended with status {server.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the server did not begin to answer")


def request(answer: AnswerSpec, *earlier: Message) -> Request:
    pixels = np.random.default_rng(4).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    begun = earlier or (Message("user", "What do you see?", (Picture(array_digest(pixels), pixels),)),)
    return Request(Evidence("x", (), ()), begun, answer, "analyse", Subject(0, 0, 1), system="You judge recorded behaviour.")


def ask(provider: Provider, *requests: Request) -> list[Reply | Failure]:
    async def asking() -> list[Reply | Failure]:
        try:
            return [await provider.ask(one) for one in requests]
        finally:
            await provider.close()

    return asyncio.run(asking())


def test_no_consent_is_needed_for_this_machine(spec: str) -> None:
    provider = raters.build(spec)
    assert provider.remote == ""
    raters.require_consent(provider)


def test_two_turns_about_a_picture(spec: str, model: Path) -> None:
    first = request(Text())
    (analysis,) = ask(raters.build(spec), first)
    assert isinstance(analysis, Reply)
    assert analysis.usage.input_tokens
    assert analysis.usage.input_tokens > 16, "the picture was looked at"
    (here,) = ask(Hf.build(str(model), config=Hf.Config(device="cpu")), first)
    assert isinstance(here, Reply)
    assert (analysis.text, analysis.usage.input_tokens) == (here.text, here.usage.input_tokens), "the same prompt as from our own hand"
    second = request(Scores(4), *first.messages, Message("assistant", analysis.text), Message("user", "Now score."))
    (scores,) = ask(raters.build(spec), second)
    assert isinstance(scores, Reply)
    with pytest.raises(Unreadable):
        second.answer.read(scores.text)


def test_a_model_that_is_not_served_is_an_error_of_the_request(spec: str) -> None:
    url = spec.partition("@")[2]
    try:
        (outcome,) = ask(raters.build(f"openai-compatible:another-model@{url}"), request(Text()))
    except ProviderError:
        return
    assert isinstance(outcome, Failure)
    assert outcome.cause in ("bad_request", "unsupported")


def test_labelling_gives_no_number_that_was_not_said(spec: str, tmp_path: Path) -> None:
    data = episodes.write(tmp_path / "data")
    labelled: Any = guerdon.label(dataset=data, run=tmp_path / "run", vlm=(spec,), quiet=True)
    states = {label.state for label in labelled.labels.labels}
    assert "unreadable" in states
    assert states <= {"unreadable", "failed"}, "the random model writes no JSON"
    assert all(label.value is None for label in labelled.labels.labels)
    assert labelled.results["coverage"] == 0.0
