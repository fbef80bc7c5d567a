"""The replaying rater: the same bytes, or an honest gap."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from guerdon.answers import Text
from guerdon.asking.store import Store
from guerdon.errors import ProviderError, UsageError
from guerdon.providers.replay import Replay
from guerdon.records import Evidence, Failure, Message, Rater, Reply, Request, Subject, Usage

GOOGLE, OPENAI = Rater("google", "gemini"), Rater("openai", "gpt")


def request(text: str) -> Request:
    return Request(Evidence("go", ("left",), ()), (Message("user", text),), Text(), "analyse", Subject(0, 0, 1))


def record(path: Path, *answers: tuple[str, Rater, int, str]) -> None:
    async def write(store: Store) -> None:
        for text, rater, repeat, reply in answers:
            await store.record(request(text), rater, repeat, Reply(reply, "model-1", Usage(10, 5, 0.1)), run="a")

    with Store.open(path) as store:
        asyncio.run(write(store))


def ask(provider: Replay, text: str, repeat: int = 0) -> str:
    outcome = asyncio.run(provider.ask(request(text), repeat=repeat))
    return outcome.text if isinstance(outcome, Reply) else f"{outcome.cause} {outcome.code} {outcome.final}"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recorded" / "replies.sqlite"
    record(path, ("a", OPENAI, 0, "openai \ud800"), ("a", GOOGLE, 0, "google"), ("b", GOOGLE, 0, "b"), ("b", GOOGLE, 1, "b again"))
    return path


def test_what_was_answered_is_answered_again(recording: Path) -> None:
    for path in (recording, recording.parent):
        provider = Replay.build(str(path))
        assert ask(provider, "a") == "openai \ud800"  # the one who answered first
        assert ask(provider, "b") == "b"
        assert ask(provider, "b", repeat=1) == "b again"
        asyncio.run(provider.close())


def test_a_named_rater_only(recording: Path) -> None:
    provider = Replay(recording, Replay.Config(rater="google:gemini"))
    assert ask(provider, "a") == "google"
    asyncio.run(provider.close())


def test_a_gap_is_a_gap(recording: Path) -> None:
    provider = Replay(recording)
    for text, repeat in (("never asked", 0), ("a", 1)):
        assert ask(provider, text, repeat) == "unsupported not_recorded True"
    asyncio.run(provider.close())


def test_replaying_costs_nothing_and_asks_nobody(recording: Path) -> None:
    provider = Replay(recording)
    outcome = asyncio.run(provider.ask(request("a")))
    assert (outcome.usage, provider.remote) == (Usage(0, 0, 0.0), "")
    assert isinstance(outcome, Reply)
    assert outcome.model == "model-1"
    asyncio.run(provider.close())


def test_more_recordings_are_another_rater(recording: Path) -> None:
    before, again = Replay(recording), Replay(recording)
    record(recording, ("c", GOOGLE, 0, "c"))
    after = Replay(recording)
    assert before.rater.key == again.rater.key != after.rater.key
    assert ask(after, "c") == "c"
    for provider in (before, again, after):
        asyncio.run(provider.close())


def test_a_store_that_is_being_written_can_be_replayed(recording: Path) -> None:
    with Store.open(recording) as store:
        asyncio.run(store.record(request("fresh"), GOOGLE, 0, Reply("just now"), run="a"))
        provider = Replay(recording)
        assert ask(provider, "fresh") == "just now"
        asyncio.run(provider.close())


def test_a_recording_on_a_read_only_disk_can_be_replayed(recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(recording.parent, folder)
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    provider = Replay(folder)
    assert ask(provider, "b") == "b"
    asyncio.run(provider.close())
    folder.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["replies.sqlite"]


def test_what_is_no_recording_is_refused(tmp_path: Path, recording: Path) -> None:
    with pytest.raises(UsageError, match="Write replay:FOLDER"):
        Replay.build("")
    with pytest.raises(ProviderError, match="there is no recording"):
        Replay(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no database " * 100)
    with pytest.raises(ProviderError, match="no readable reply store"):
        Replay(tmp_path / "notes.txt")
    with pytest.raises(ProviderError, match=r"no replies of 'me'.*It has replies of: openai:gpt, google:gemini"):
        Replay(recording, Replay.Config(rater="me"))


def test_failures_are_not_replayed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        asyncio.run(store.record(request("a"), GOOGLE, 0, Failure("blocked", final=True), run="a"))
        asyncio.run(store.record(request("b"), GOOGLE, 0, Reply("b"), run="a"))
    provider = Replay(tmp_path / "s.sqlite")
    assert ask(provider, "a") == "unsupported not_recorded True"
    asyncio.run(provider.close())
