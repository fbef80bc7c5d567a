"""The command line: help that costs nothing, errors in one line, settings from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import guerdon
from guerdon import cli
from guerdon.cli._parse import parse, value_of_flag, values_of_flag
from guerdon.errors import UsageError


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("--help", capsys=capsys)
    assert status == 0
    for name in ("demo", "collect", "check", "label", "fit", "relabel", "reward", "export", "train", "evaluate", "report"):
        assert f"\n  {name} " in out
    assert run(capsys=capsys)[:2] == (0, out)


@pytest.mark.parametrize("command", [*cli.commands(), "collect babyai"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main([*command.split(), "--help"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 0
    assert f"usage: guerdon {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["labell"], 2, "error: no command 'labell'; there are: check, collect"),
        (["collect", "mars"], 2, "error: no world to collect in 'mars'; there are: babyai, metaworld"),
        (["label", "data", "--run", "r", "--method", "guess"], 2, "error: no method 'guess'; there are: preference, rating, rg-vlm"),
        (["label", "no-such-folder", "--run", "r"], 1, "error: no-such-folder"),
        (["report", "no-such-run"], 1, "error: no-such-run: is not a run folder"),
        (["check", "no-such-folder"], 1, "error: no-such-folder"),
        (["train", "no-such-run"], 1, "error: no-such-run: is not a run folder"),
        (["evaluate", "no-such-run"], 1, "error: no-such-run: is not a run folder"),
        (["reward", "no-such-run", "--name", "a-b"], 2, "error: a reward's name is made of letters"),
        (["fit", "no-such-run"], 1, "error: no-such-run: is not a run folder"),
        (["fit", "no-such-run", "--name", "a-b"], 2, "error: a model's name is made of letters"),
        (["relabel", "no-such-run"], 1, "error: no-such-run: is not a run folder"),
        (["relabel", "no-such-run", "--name", "sparse"], 2, "error: 'sparse' means something else already"),
    ],
)
def test_mistakes_get_one_line_and_a_status(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments, capsys=capsys)
    assert found == status
    assert message in err
    assert "Traceback" not in out + err
    assert err.count("\n") == 1


LIGHT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "minigrid", "pygame"):
            raise ImportError(f"{{name}} was imported")

sys.meta_path.insert(0, Refuse())
{code}
heavy = [name for name in ("torch", "minigrid", "pygame", "matplotlib") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "code",
    [
        "import guerdon",
        "from guerdon import cli; assert cli.main(['--help']) == 0",
        *(
            f"from guerdon import cli\ntry: cli.main(['{command}', '--help'])\nexcept SystemExit as stopped: assert not stopped.code"
            for command in ("label", "reward", "relabel")
        ),
    ],
    ids=["import", "help", "label help", "reward help", "relabel help"],
)
def test_what_is_light_loads_neither_torch_nor_a_simulator(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT.format(code=code)], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_public_names_are_pinned() -> None:
    assert sorted(guerdon.__all__) == [
        "GuerdonError", "check", "collect_babyai", "collect_metaworld", "demo", "evaluate", "export", "fit", "label", "load_policy",
        "online", "online_babyai", "open_dataset", "plan", "raters_consistency", "relabel", "report", "reward", "train", "train_embedded",
    ]  # fmt: skip
    for name in guerdon.__all__:
        assert getattr(guerdon, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'labell'"):
        guerdon.labell  # noqa: B018


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    rate: float = 0.5
    """A rate."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings."""

    data: Path
    """The data."""
    names: tuple[str, ...] = ("a",)
    """Names."""
    count: int = 3
    """A count."""
    hidden: dict[str, int] = field(default_factory=dict)
    """Not of interest."""


SECTIONS = {"_settings": Settings, "inner": Inner}


def parsed(*arguments: str) -> tuple[Settings, Inner]:
    found = parse("test", "A test.", SECTIONS, arguments)
    return found["_settings"], found["inner"]


def test_flags_and_prefixes() -> None:
    settings, inner = parsed("--data", "d", "--names", "x", "y", "--inner.rate", "0.25")
    assert settings == Settings(data=Path("d"), names=("x", "y"))
    assert inner == Inner(rate=0.25)


def test_a_file_gives_defaults_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("data: from-file\nnames: [p, q]\ncount: 7\ninner:\n  rate: 0.125\n")
    settings, inner = parsed("--config", str(path), "--count", "8")
    assert settings == Settings(data=Path("from-file"), names=("p", "q"), count=8)
    assert inner == Inner(rate=0.125)
    assert type(settings) is Settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont: 7", "no setting is called 'cuont'"),
        ("inner:\n  rat: 1", "no setting is called 'inner.rat'"),
        ("inner: 3", "'inner' must hold settings of its own"),
        ("count: many", "'count' cannot be 'many'"),
        ("- a\n- b", "must hold settings as 'name: value' lines"),
        ("count: [", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parsed("--data", "d", "--config", str(path))


def test_a_missing_file_or_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        parsed("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="--config needs a value"):
        parsed("--data", "d", "--config")


def test_looking_ahead_at_flags() -> None:
    assert value_of_flag("--method", ["d", "--method", "x", "--run", "r"]) == ("x", ["d", "--run", "r"])
    assert value_of_flag("--method", ["--method=x"]) == ("x", [])
    assert values_of_flag("--vlm", ["d", "--vlm", "a", "b", "--run", "r"], ("s",)) == ["a", "b"]
    assert values_of_flag("--vlm", ["--vlm=a:b", "d"], ("s",)) == ["a:b"]
    assert values_of_flag("--vlm", ["d"], ("s",)) == ["s"]


def test_python_and_command_line_take_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guerdon.collect_babyai(out=tmp_path / "python", tasks=2, demonstrations=1, lengths=(1, 1))
    status, _, _ = run("collect", "babyai", "--out", str(tmp_path / "line"), "--tasks", "2", "--demonstrations", "1", "--lengths", "1", "1",
                       capsys=capsys)  # fmt: skip
    assert status == 0
    files = sorted(path.relative_to(tmp_path / "python") for path in (tmp_path / "python").rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (tmp_path / "python" / file).read_bytes() == (tmp_path / "line" / file).read_bytes(), file


def test_label_reward_and_their_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = str(tmp_path / "data"), str(tmp_path / "run")
    assert run("collect", "babyai", "--out", data, "--tasks", "2", "--demonstrations", "1", capsys=capsys)[0] == 0
    assert run("check", data, capsys=capsys)[0] == 0
    status, out, _ = run("label", data, "--run", folder, "--vlm", "scripted:perfect", "--quiet", capsys=capsys)
    assert status == 0, out
    manifest = json.loads((tmp_path / "run" / "labels" / "rg_vlm.json").read_text())
    assert manifest["results"]["coverage"] == 1.0
    sent = manifest["results"]["requests"]
    assert run("label", data, "--run", folder, "--vlm", "scripted:perfect", "--quiet", capsys=capsys)[0] == 0
    again = json.loads((tmp_path / "run" / "labels" / "rg_vlm.json").read_text())["results"]
    assert again["requests"] == sent, "a second run sends nothing"
    assert again["found"] >= sent
    status, out, _ = run("reward", folder, "--name", "both", "--controls", capsys=capsys)
    assert status == 0
    assert {path.stem for path in (tmp_path / "run" / "rewards").glob("*.parquet")} == {"both", "constant_both", "shuffled_both"}
    flags = ["--vlm", "scripted", "--scripted.refusal", "1", "--name", "refused", "--quiet"]
    status, out, _ = run("label", data, "--run", folder, *flags, capsys=capsys)
    assert status == 1
    assert "coverage 0.0% is below --min-coverage 100.0%" in out
    other = str(tmp_path / "other")
    assert run("collect", "babyai", "--out", other, "--tasks", "2", "--demonstrations", "1", "--seed", "9", capsys=capsys)[0] == 0
    status, _, err = run("label", other, "--run", folder, "--quiet", capsys=capsys)
    assert status == 1
    assert "belongs to another dataset" in err
