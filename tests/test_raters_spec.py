"""From `--vlm` to a rater, and the user's consent."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from guerdon import discover
from guerdon.cli._parse import parse
from guerdon.errors import AuthenticationRefused, ConsentNeeded, ProviderError, RunError, UnknownName, UsageError
from guerdon.interfaces import Provider
from guerdon.providers._settings import ChatConfig
from guerdon.providers.chat import Chat
from guerdon.providers.scripted import Scripted
from guerdon.recipes import raters
from guerdon.recipes.raters import build, provider_names, provider_of, require_consent
from guerdon.records import Failure, Rater, Reply, Request


def test_names_are_the_files_and_the_compatible_server() -> None:
    assert {"scripted", "replay", "openai-compatible"} <= set(provider_names())
    assert "chat" not in provider_names()


def test_a_file_is_built_with_its_argument_and_what_it_needs_of_the_context() -> None:
    provider = build("scripted:noisy", truth=lambda _subject: np.zeros(1), truth_id="s256:abc", unknown_to_all=1)
    assert isinstance(provider, Scripted)
    assert provider.rater.name == "scripted:noisy"
    assert provider.rater.settings["truth"] == "s256:abc"
    configured = build("scripted", config=Scripted.Config(seed=7), truth=lambda _subject: np.zeros(1))
    assert configured.rater.settings["seed"] == 7


def test_a_vendor_is_built_by_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "secret-of-mine")
    provider = build("google:gemini-2.5-flash", config=Chat.Config(max_output_tokens=100))
    assert (provider.rater.name, provider.remote) == ("google:gemini-2.5-flash", "generativelanguage.googleapis.com")
    assert provider.rater.settings == {"temperature": 0.0, "max_tokens": 100, "schema": "native"}


def test_a_server_of_ones_own_is_built() -> None:
    provider = build("openai-compatible:org/model@v2@http://localhost:8000/v1")
    assert provider.rater.name == "openai-compatible:org/model@v2@http://localhost:8000/v1"
    assert provider.remote == ""


@pytest.mark.parametrize("spec", ["nonsense", "nonsense:model", "chat", "test:model", "gogle:gemini", ""])
def test_an_unknown_name_lists_both_kinds(spec: str) -> None:
    with pytest.raises(UnknownName, match=r"there are: .*replay, scripted.*Or a vendor's prefix.*anthropic.*google.*openai"):
        build(spec)


def test_the_known_prefixes_do_build(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC", "GOOGLE"):
        monkeypatch.setenv(f"{name}_API_KEY", "secret-of-mine")
    for spec in ("openai:gpt-4.1", "openai-chat:gpt-4.1", "anthropic:claude-sonnet-4-6", "google:gemini-2.5-pro"):
        assert build(spec).rater.provider == spec.split(":")[0]


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("google:gemini-2.5-flash", AuthenticationRefused, "no key is set.*GOOGLE_API_KEY"),
        ("openai:gpt-4.1", AuthenticationRefused, "no key is set.*OPENAI_API_KEY"),
        ("anthropic:claude-sonnet-4-6", AuthenticationRefused, "no key is set.*ANTHROPIC_API_KEY"),
        ("google:", UsageError, "names no model"),
        ("openai-compatible:model", UsageError, "MODEL@URL"),
        ("openai-compatible:model@ftp://host", UsageError, "MODEL@URL"),
        ("openai-compatible:model@http://[::1", UsageError, "MODEL@URL"),
        ("openai-compatible:model@http://host:port/v1", UsageError, "MODEL@URL"),
        ("openai-compatible:model@https://me:secret@host/v1", UsageError, "OPENAI_COMPATIBLE_API_KEY"),
        ("openai-compatible:model@https://host/v1?key=secret", UsageError, "OPENAI_COMPATIBLE_API_KEY"),
        ("groq:llama", ProviderError, r"not installed.*pip install 'pydantic-ai-slim\[groq\]'"),
    ],
)
def test_what_cannot_be_built_says_why_in_one_line(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        build(spec)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


PLUGIN = """
from guerdon.interfaces import Provider
from guerdon.records import Rater, Reply

class Mine(Provider):
    def __init__(self, config=None):
        self.rater = Rater("mine", "")
    async def ask(self, request, *, repeat=0):
        return Reply("hello")
"""


def test_another_packages_rater_is_found_and_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guerdon_plugin_for_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mine", "guerdon_plugin_for_test", "guerdon.providers")
    monkeypatch.setattr(discover, "entry_points", lambda group: [point] if group == "guerdon.providers" else [])
    assert "mine" in provider_names()
    assert build("mine").rater.name == "mine"
    with pytest.raises(UsageError, match="nothing after the colon"):
        build("mine:argument")
    sys.modules.pop("guerdon_plugin_for_test")


# --- consent ---


class Remote(Provider):
    def __init__(self, host: str) -> None:
        self.rater, self.remote = Rater("far", "model"), host

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        return Reply("x")


def test_what_stays_here_needs_no_consent(tmp_path: Path) -> None:
    require_consent(Remote(""), remembered=tmp_path / "consent.json")
    assert list(tmp_path.glob("consent.json")) == []


def test_a_flag_grants_consent_once_and_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data" / "consent.json"
    require_consent(Remote("vendor.example"), yes=True, remembered=path)
    assert "will be sent to vendor.example (far:model)" in capsys.readouterr().err
    require_consent(Remote("vendor.example"), remembered=path)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConsentNeeded, match=r"other\.example.*--yes"):
        require_consent(Remote("other.example"), remembered=path)
    assert list(json.loads(path.read_text())) == ["vendor.example"]


@pytest.mark.parametrize(("answer", "granted"), [("y", True), (" Yes ", True), ("", False), ("n", False), ("yep", False)])
def test_a_person_is_asked(tmp_path: Path, answer: str, granted: bool) -> None:
    path, questions = tmp_path / "consent.json", []

    def question(text: str) -> str:
        questions.append(text)
        return answer

    if granted:
        require_consent(Remote("vendor.example"), remembered=path, question=question)
    else:
        with pytest.raises(ConsentNeeded):
            require_consent(Remote("vendor.example"), remembered=path, question=question)
    assert len(questions) == 1
    assert path.exists() == granted


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConsentNeeded, match="nobody has agreed"):
        require_consent(Remote("vendor.example"), remembered=tmp_path / "consent.json")


def test_a_damaged_list_is_not_taken_for_consent(tmp_path: Path) -> None:
    (tmp_path / "consent.json").write_text("{")
    with pytest.raises(RunError):
        require_consent(Remote("vendor.example"), remembered=tmp_path / "consent.json")


def test_agreements_are_kept_with_the_users_data(tmp_path: Path) -> None:
    require_consent(Remote("vendor.example"), yes=True)
    assert raters.default_consent_path().is_relative_to(tmp_path)
    require_consent(Remote("vendor.example"))


def test_a_server_without_a_model_or_an_address_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="Write openai-compatible:MODEL@http"):
        build("openai-compatible")


def test_an_agreement_that_cannot_be_kept_is_an_agreement_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    require_consent(Remote("vendor.example"), yes=True, remembered=tmp_path / "file" / "consent.json")
    assert "could not be kept" in capsys.readouterr().err


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(*_: object, **__: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_data_dir", no_home)
    with pytest.raises(UsageError, match="Set the environment variable HOME"):
        raters.default_consent_path()


def test_a_server_of_ones_own_has_settings_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no model and no server"):
        build("openai-compatible", config=ChatConfig())
    settings = tmp_path / "settings.yaml"
    settings.write_text("openai-compatible:\n  max-output-tokens: 77\n  structured: instructed\n")
    spec = "openai-compatible:m@http://localhost:8000/v1"
    sections = {"openai-compatible": ChatConfig}
    parsed = parse("label", "", sections, ["--config", str(settings), "--openai-compatible.temperature", "0.5"])
    provider = build(spec, config=parsed["openai-compatible"])
    assert provider.rater.settings == {"temperature": 0.5, "max_tokens": 77, "schema": "instructed"}
    settings.write_text("openai-compatible:\n  max-output-token: 77\n")
    with pytest.raises(UsageError, match=r"no setting is called 'openai-compatible\.max_output_token'"):
        parse("label", "", sections, ["--config", str(settings)])
    assert provider_of(spec) == "openai-compatible"
