"""Run folders: bound to one dataset, whole or absent."""

import errno
import json
from pathlib import Path

import pytest

from guerdon.errors import RunError, StaleInput, WriteFailed
from guerdon.runs import Manifest, Run, read_json, without_password, write_json, writing


def begin(path: Path, fingerprint: str = "s256:one") -> Run:
    return Run.open_or_create(path, dataset_path=Path("data"), fingerprint=fingerprint)


def test_a_run_remembers_its_dataset(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.dataset_fingerprint == "s256:one"
    assert run.dataset_path.is_absolute()
    assert begin(tmp_path / "run").path == tmp_path / "run"


def test_a_run_of_another_dataset_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(RunError, match="belongs to another dataset"):
        begin(tmp_path / "run", "s256:two")


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists and is not a run folder"):
        begin(tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(tmp_path / "nowhere")


def test_damaged_and_future_run_files_are_refused(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    (run.path / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="format 99"):
        Run.open(run.path)
    (run.path / "run.json").write_text('{"for')
    with pytest.raises(RunError, match="cannot be read as JSON"):
        Run.open(run.path)


def test_a_part_needs_its_manifest_and_its_inputs(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    part = run.part("labels", "rg_vlm").with_suffix(".parquet")
    assert run.manifest(part) is None
    with pytest.raises(RunError, match="not there or not finished"):
        run.require(part, {})
    run.finish(part, Manifest({"window": 8}, {"dataset": "s256:one"}, {"requests": 2}))
    manifest = run.require(part, {"dataset": "s256:one"})
    assert manifest["config"] == {"window": 8}
    assert manifest["results"] == {"requests": 2}
    assert manifest["provenance"]["python"]
    with pytest.raises(StaleInput, match="was made from another dataset"):
        run.require(part, {"dataset": "s256:two"})


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), writing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    with pytest.raises(WriteFailed, match="No space left on device") as caught, writing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(path) in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with writing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["second"]


def test_manifests_refuse_numbers_that_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(Manifest({}, {}).to_record()))["format"] == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("guerdon label d --store postgresql://ann:s3cret@host:5432/db", "guerdon label d --store postgresql://ann:***@host:5432/db"),
        ("--store=postgres://ann:p@ss:word@host/db --run r", "--store=postgres://ann:***@host/db --run r"),
        ("'postgresql://host/db?user=ann&password=s3cret&x=1'", "'postgresql://host/db?user=ann&password=***&x=1'"),
        ("openai-compatible:m@http://host:8000/v1", "openai-compatible:m@http://host:8000/v1"),
    ],
)
def test_no_password_of_a_url_is_kept(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_a_run_keeps_its_id_wherever_it_is_moved(tmp_path: Path) -> None:
    begun = begin(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert Run.open(tmp_path / "moved").id == begun.id
    assert begin(tmp_path / "other").id != begun.id
