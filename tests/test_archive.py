"""Looking at a whole store: overview, costs, verification, and handing on what a run used."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from guerdon import cli
from guerdon.answers import Scores, Text
from guerdon.asking import archive
from guerdon.asking.store import Key, Store
from guerdon.errors import RunError, StoreError, UsageError
from guerdon.labels import LabelSet
from guerdon.providers.replay import Replay
from guerdon.recipes import store as recipe
from guerdon.records import Evidence, Failure, Label, Message, Rater, Reply, Request, Subject, Usage
from guerdon.runs import Run

RATER = Rater("scripted", "perfect", settings={"seed": 0})
OTHER = Rater("openai-compatible", "qwen", "http://127.0.0.1:1/v1", {"temperature": 0})


def first_turn(window: int) -> Request:
    evidence = Evidence("go to the ball", ("left",), ())
    return Request(evidence, (Message("user", f"What changed in window {window}?"),), Text(), "analyse", Subject(0, window, window + 1))


def second_turn(window: int, earlier: str = "it turned") -> Request:
    asked = first_turn(window)
    messages = (*asked.messages, Message("assistant", earlier), Message("user", "Score it."))
    return replace(asked, messages=messages, answer=Scores(1), purpose="score")


async def converse(store: Store, window: int, run: str, *, rater: Rater = RATER, found: bool = False, repeat: int = 0) -> None:
    """Both turns about a window; with `found`, the first one is in the store already."""
    if not found:
        await store.record(
            first_turn(window), rater, repeat, Reply("it turned", usage=Usage(100, 10, 0.25), seconds=1.0), run=run, started=50.0
        )
    reply = Reply('{"scores": [7]}', "model-1", Usage(200, 20, 0.5, thinking_tokens=5, cached_tokens=100), 2.0)
    await store.record(second_turn(window), rater, repeat, reply, run=run, started=100.0 + window)


async def fill(store: Store) -> None:
    store.begin_run("run-a", "/home/somebody/runs/a")
    await converse(store, 0, "run-a")
    await converse(store, 1, "run-a")
    await store.record(second_turn(2), RATER, 0, Failure("rate_limit", final=False, seconds=0.5), run="run-a", started=300.0)
    await store.record(second_turn(2), RATER, 0, Failure("timeout", final=False, seconds=9.0), run="run-a", started=301.0)
    await store.record(second_turn(2), RATER, 0, Failure("blocked", final=True, code="SAFETY", status=200), run="run-a", started=311.0)
    await converse(store, 0, "run-b", rater=OTHER)
    await converse(store, 1, "old/home/somebody/labels", repeat=1)
    key = Key(first_turn(9).question, RATER.key, 0)
    await store.claim(key, "dead", 60.0, run="run-a", dollars=0.125)
    await store.abandon("dead")
    await store.claim(key, "alive", 60.0, run="run-a", dollars=0.0625)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "replies.sqlite"
    with Store.open(path) as store:
        asyncio.run(fill(store))
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path / "replies.sqlite"))


def alter(path: Path, statement: str, *parameters: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, parameters)


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows but claims, without their numbers."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT {', '.join(columns)} FROM {table}"), key=repr)
            for table, columns in archive._COLUMNS.items()
        }


# --- looking ------------------------------------------------------------------------------------------------------------------------


def test_an_overview_counts_everything(path: Path) -> None:
    found = recipe.list_(store=str(path))
    assert (found.requests, found.attempts, found.answers) == (5, 12, 8)
    assert [(rater.name, rater.attempts, rater.answers) for rater in found.raters] == [
        ("openai-compatible:qwen@http://127.0.0.1:1/v1", 2, 2),
        ("scripted:perfect", 10, 6),
    ]
    runs = {run.id: run for run in found.runs}
    assert runs.keys() == {"run-a", "run-b", "old/home/somebody/labels"}
    costs = runs["run-a"].costs
    assert (costs.requests, costs.answered, costs.lost, costs.dollars) == (7, 4, 1, 1.5)
    assert costs.failures == {"timeout": 1, "rate_limit": 1, "blocked": 1}
    assert (costs.charged, costs.reserved) == (1.625, 0.0625)
    assert runs["run-a"].name == "/home/somebody/runs/a"
    assert found.size >= path.stat().st_size > 0


def test_costs_are_told_by_rater_and_purpose(path: Path) -> None:
    shares = {(share.rater, share.purpose): share.costs for share in recipe.costs(store=str(path), run="run-a")}
    assert shares.keys() == {("scripted:perfect", "analyse"), ("scripted:perfect", "score"), ("scripted:perfect", "unknown")}
    first, second, lost = (shares["scripted:perfect", purpose] for purpose in ("analyse", "score", "unknown"))
    assert (first.requests, first.answered, first.input_tokens, first.dollars) == (2, 2, 200, 0.5)
    assert (second.requests, second.answered, second.input_tokens, second.dollars) == (5, 2, 400, 1.0)
    assert (second.thinking_tokens, second.cached_tokens, second.seconds) == (10, 200, 13.5)
    assert second.failures == {"timeout": 1, "rate_limit": 1, "blocked": 1}
    assert second.dollars_unknown == 2, "a timeout and a block may have cost something, a rate limit did not"
    assert (lost.requests, lost.lost, lost.charged, lost.dollars_unknown) == (0, 1, 0.125, 1), "what was asked is not known"


def test_the_shares_add_up_to_the_runs(path: Path) -> None:
    found = recipe.list_(store=str(path))
    shares = recipe.costs(store=str(path))
    for name in ("requests", "answered", "input_tokens", "output_tokens", "dollars_unknown", "lost"):
        assert sum(getattr(share.costs, name) for share in shares) == sum(getattr(run.costs, name) for run in found.runs), name
    assert sum(share.costs.charged for share in shares) == pytest.approx(sum(run.costs.charged for run in found.runs))


def test_a_run_may_be_named_in_several_ways(path: Path) -> None:
    whole = recipe.costs(store=str(path), run="run-a")
    assert recipe.costs(store=str(path), run="/home/somebody/runs/a") == whole
    with Store.open(path) as store:
        store.begin_run("0123456789", "same")
        store.begin_run("0123459999", "same")
    assert recipe.costs(store=str(path), run="0123456") == []
    for ambiguous in ("012345", "same"):
        with pytest.raises(RunError, match="2 runs go by"):
            recipe.costs(store=str(path), run=ambiguous)
    with pytest.raises(RunError, match="knows no run '01234'"):
        recipe.costs(store=str(path), run="01234")


def test_looking_begins_no_store(tmp_path: Path) -> None:
    for action in (recipe.list_, recipe.costs, recipe.verify):
        with pytest.raises(StoreError, match="there is no reply store"):
            action(store=str(tmp_path / "none.sqlite"))
    with pytest.raises(StoreError, match="there is no reply store"):
        recipe.export(store=str(tmp_path / "none.sqlite"), run="a", file=tmp_path / "a.guerdon")
    with pytest.raises(StoreError, match=r"replies\.sqlite: there is no reply store"):
        recipe.list_()
    assert list(tmp_path.glob("*")) == []


# --- verifying ----------------------------------------------------------------------------------------------------------------------


def test_a_sound_store_has_no_faults(path: Path) -> None:
    assert recipe.verify(store=str(path)) == []


ONE = "(SELECT question FROM request ORDER BY question LIMIT 1)"


@pytest.mark.parametrize(
    ("statement", "where", "what"),
    [
        (f"UPDATE request SET record = CAST(replace(CAST(record AS TEXT), 'window', 'widow') AS BLOB) WHERE question = {ONE}",
         "request s256:", "another question than its key says"),
        (f"UPDATE request SET record = x'7b' WHERE question = {ONE}", "request s256:", "cannot be read"),
        (f"UPDATE request SET record = CAST('[]' AS BLOB) WHERE question = {ONE}", "request s256:", "cannot be read"),
        (f"UPDATE request SET record = x'ff' WHERE question = {ONE}", "request s256:", "cannot be read"),
        ("UPDATE rater SET identity = CAST(replace(CAST(identity AS TEXT), '0', '1') AS BLOB)",
         "rater s256:", "another rater than its key says"),
        ("UPDATE rater SET identity = CAST('3' AS BLOB)", "rater s256:", "cannot be read"),
        ("DELETE FROM rater", "answer (s256:", "its rater is not there"),
        (f"DELETE FROM request WHERE question = {ONE}", "attempt (s256:", "its request is not there"),
        ("UPDATE answer SET repeat = 5 WHERE repeat = 1", "answer (s256:", "no attempt got it"),
        ("UPDATE answer SET body = x'ff' WHERE repeat = 1", "answer (s256:", "its body is no text"),
        ("UPDATE answer SET body = CAST('other' AS BLOB) WHERE repeat = 1", "answer (s256:", "its body is not the one that came"),
        ("UPDATE attempt SET charged = charged + 1 WHERE run = 'run-b'", "run run-b", "charged 750000000 and reserved 0 nano-dollars"),
        ("UPDATE run SET reserved = 0 WHERE run = 'run-a'", "run run-a", "1625000000 and 62500000 by its attempts and claims"),
        ("DELETE FROM run WHERE run = 'run-b'", "run run-b", "charged 0"),
    ],
)  # fmt: skip
def test_a_fault_is_named(path: Path, statement: str, where: str, what: str) -> None:
    alter(path, statement)
    found = [str(fault) for fault in recipe.verify(store=str(path))]
    assert any(fault.startswith(where) and what in fault for fault in found), found


def test_damage_to_the_file_is_named(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'attempt_run'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[page * size - 60 : page * size - 40] = b"x" * 20  # within the keys of an index
    path.write_bytes(content)
    faults = recipe.verify(store=str(path))
    assert faults
    assert faults[0].where == "file"
    assert all("\n" not in str(fault) for fault in faults)


# --- bundles ------------------------------------------------------------------------------------------------------------------------


def export(path: Path, run: str, file: Path, **settings: object) -> archive.Counts:
    return recipe.export(store=str(path), run=run, file=file, **settings)  # type: ignore[arg-type]


def test_a_bundle_holds_what_a_run_used_and_nothing_else(path: Path, tmp_path: Path) -> None:
    counts = export(path, "run-b", tmp_path / "b.guerdon")
    assert counts == archive.Counts(requests=2, raters=1, attempts=2, answers=2)
    content = (tmp_path / "b.guerdon").read_bytes()
    for private in (b"somebody", b"window 1", b"perfect"):
        assert private not in content
    assert [row[:2] for row in dump(tmp_path / "b.guerdon")["run"]] == [("run-b", "")]
    assert recipe.verify(store=str(tmp_path / "b.guerdon")) == []


def test_names_and_paths_leave_only_when_wanted(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "quiet.guerdon")
    assert b"somebody" not in (tmp_path / "quiet.guerdon").read_bytes()
    export(path, "run-a", tmp_path / "named.guerdon", names=True)
    assert [row[:2] for row in dump(tmp_path / "named.guerdon")["run"]] == [
        ("old/home/somebody/labels", ""), ("run-a", "/home/somebody/runs/a"),
    ]  # fmt: skip


def test_equal_content_gives_an_equal_file(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "one.guerdon")
    with Store.open(tmp_path / "else.sqlite") as store:
        archive.import_bundle(store, tmp_path / "one.guerdon")
    export(tmp_path / "else.sqlite", "run-a", tmp_path / "two.guerdon")
    assert (tmp_path / "one.guerdon").read_bytes() == (tmp_path / "two.guerdon").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["else.sqlite", "one.guerdon", "replies.sqlite", "two.guerdon"]


def test_a_bundle_is_a_recording(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "a.guerdon")
    (tmp_path / "a.guerdon").chmod(0o444)

    async def ask() -> None:
        rater = Replay.build(str(tmp_path / "a.guerdon"))
        for window in (0, 1):
            replies = [await rater.ask(request) for request in (first_turn(window), second_turn(window))]
            assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["it turned", '{"scores": [7]}']
        assert isinstance(await rater.ask(first_turn(7)), Failure)
        await rater.close()

    asyncio.run(ask())


def test_what_a_run_found_belongs_to_it(tmp_path: Path) -> None:
    """Run c asked a second turn only; the first was paid for by run a, under another rater's eyes also by run b."""

    async def ask(store: Store) -> None:
        await fill(store)
        await store.record(second_turn(0, "moved"), RATER, 0, Reply('{"scores": [3]}'), run="run-c")

    with Store.open(tmp_path / "s.sqlite") as store:
        asyncio.run(ask(store))
        keys = archive.used(store, ["run-c"])
    assert keys == {Key(request.question, RATER.key, 0) for request in (first_turn(0), second_turn(0), second_turn(0, "moved"))}


def run_folder(tmp_path: Path, raters: list[Rater], windows: list[int]) -> Path:
    run = Run.open_or_create(tmp_path / "run", dataset_path=tmp_path / "data", fingerprint="s256:data")
    labels = [
        Label("transition", 0, window, window + 1, "go", "labelled", value=7.0, question=second_turn(window).question) for window in windows
    ]
    meaning = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "dataset": "s256:data",
               "rater": " then ".join(rater.name for rater in raters),
               "rater_settings": [dict(rater.settings) for rater in raters]}  # fmt: skip
    LabelSet(labels, meaning).write(run.part("labels", "rg_vlm.parquet"))
    return tmp_path / "run"


def test_a_run_folder_that_asked_nothing_is_exported_by_its_labels(path: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [OTHER], [0])
    counts = export(path, str(folder), tmp_path / "c.guerdon")
    assert counts == archive.Counts(requests=2, raters=1, attempts=2, answers=2)
    both = run_folder(tmp_path / "both", [RATER, OTHER], [0, 1])
    assert export(path, str(both), tmp_path / "d.guerdon") == archive.Counts(requests=4, raters=2, attempts=8, answers=8)
    none = run_folder(tmp_path / "none", [replace(OTHER, settings={"temperature": 1})], [0])
    with pytest.raises(RunError, match="used nothing of the store"):
        export(path, str(none), tmp_path / "e.guerdon")


def test_importing_adds_once_and_never_overwrites(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "a.guerdon")
    found = archive.Counts(requests=5, raters=1, attempts=10, answers=6)
    with Store.open(tmp_path / "new.sqlite") as store:
        asyncio.run(store.record(second_turn(0), RATER, 0, Reply('{"scores": [1]}', usage=Usage(1, 1, 0.125)), run="mine"))
        imported = archive.import_bundle(store, tmp_path / "a.guerdon")
        assert imported == archive.Imported(found, archive.Counts(requests=4, raters=0, attempts=10, answers=5), differing=1)
        again = archive.import_bundle(store, tmp_path / "a.guerdon")
        assert again == archive.Imported(found, archive.Counts(0, 0, 0, 0), differing=1)
        kept = asyncio.run(store.find(second_turn(0).question, RATER.key, 0))
        assert isinstance(kept, Reply)
        assert kept.text == '{"scores": [1]}'
        assert store.costs("run-a").charged == 1.625
        assert (store.costs("mine").requests, store.costs("mine").charged) == (1, 0.125)
        assert archive.verify(store) == []


def test_a_stores_own_bundle_adds_nothing_to_it(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "a.guerdon")
    before = dump(path)
    with Store.open(path) as store:
        assert archive.import_bundle(store, tmp_path / "a.guerdon").new == archive.Counts(0, 0, 0, 0)
        assert archive.verify(store) == []
    assert dump(path) == before


def test_parts_of_a_run_add_up(path: Path, tmp_path: Path) -> None:
    """A bundle with more of a run than the store has adds the rest, and its money."""
    with Store.open(path) as store:
        archive.export(store, [Key(first_turn(0).question, RATER.key, 0)], tmp_path / "part.guerdon")
        archive.export(store, archive.used(store, ["run-a"]), tmp_path / "whole.guerdon")
    with Store.open(tmp_path / "new.sqlite") as store:
        assert archive.import_bundle(store, tmp_path / "part.guerdon").new.attempts == 1
        assert store.costs("run-a").charged == 0.25
        assert archive.import_bundle(store, tmp_path / "whole.guerdon").new.attempts == 9
        assert store.costs("run-a").charged == 1.625
        assert archive.verify(store) == []


def refused(path: Path, tmp_path: Path) -> str:
    """What importing `path` says; nothing may have been added by it."""
    with Store.open(tmp_path / "target.sqlite") as store:
        with pytest.raises(StoreError) as caught:
            archive.import_bundle(store, path)
        assert archive.overview(store).requests == archive.overview(store).attempts == 0
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE answer SET body = CAST('{\"scores\": [10]}' AS BLOB) WHERE model = 'model-1'",
            "was changed or damaged since it was exported",
        ),
        ("DELETE FROM attempt WHERE outcome = 'final'", "was changed or damaged"),
        ("UPDATE run SET charged = 0", "is damaged: run"),
        ("DELETE FROM rater", "is damaged: answer"),
        ("UPDATE bundle SET value = 's256:0'", "was changed or damaged"),
        ("DELETE FROM bundle", "is no bundle of guerdon"),
        ("DROP TABLE answer", "is no bundle of guerdon"),
        ("CREATE TRIGGER t AFTER DELETE ON claim BEGIN DELETE FROM answer; END", "is no bundle of guerdon"),
        ("PRAGMA user_version = 99", "was written by a newer guerdon"),
        ("PRAGMA application_id = 1", "not a reply store"),
    ],
)
def test_a_changed_bundle_is_refused(path: Path, tmp_path: Path, statement: str, message: str) -> None:
    export(path, "run-a", tmp_path / "a.guerdon")
    alter(tmp_path / "a.guerdon", statement)
    assert message in refused(tmp_path / "a.guerdon", tmp_path)


def test_a_bundle_cut_off_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    export(path, "run-a", tmp_path / "a.guerdon")
    whole = (tmp_path / "a.guerdon").read_bytes()
    for length in (0, 10, 100, 4096, len(whole) // 2, len(whole) - 4096):
        (tmp_path / "cut.guerdon").write_bytes(whole[:length])
        refused(tmp_path / "cut.guerdon", tmp_path)


def test_no_flipped_byte_gets_in(path: Path, tmp_path: Path) -> None:
    """A byte of text that is changed anywhere is noticed, or it was not content."""
    export(path, "run-b", tmp_path / "b.guerdon")
    whole = (tmp_path / "b.guerdon").read_bytes()
    for number, words in enumerate((b"it turned", b'"scores": [7]', b"analyse", b"qwen", b"model-1", b"go to the ball", b"run-b")):
        changed = bytearray(whole)
        changed[whole.rindex(words)] ^= 1
        (tmp_path / f"{number}.guerdon").write_bytes(changed)
        refused(tmp_path / f"{number}.guerdon", tmp_path)


def test_files_of_other_kinds_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.guerdon").write_text("no database at all " * 100)
    assert "no bundle" in refused(tmp_path / "text.guerdon", tmp_path)
    assert "is no bundle of guerdon" in refused(path, tmp_path)
    assert "cannot be read" in refused(tmp_path, tmp_path)
    with pytest.raises(UsageError, match="there is no such bundle"):
        recipe.import_(store=str(path), file=tmp_path / "none.guerdon")


def test_a_file_is_replaced_only_when_told_so(path: Path, tmp_path: Path) -> None:
    export(path, "run-b", tmp_path / "b.guerdon")
    with pytest.raises(UsageError, match="is there already"):
        export(path, "run-b", tmp_path / "b.guerdon")
    export(path, "run-a", tmp_path / "b.guerdon", overwrite=True)
    with pytest.raises(UsageError, match="is the store itself"):
        export(path, "run-b", path, overwrite=True)


def test_texts_of_every_kind_survive(tmp_path: Path) -> None:
    text = "half \ud83d of a pair, \x00, and \u2028"
    asked = second_turn(0, text)
    with Store.open(tmp_path / "s.sqlite") as store:
        asyncio.run(store.record(asked, RATER, 0, Reply(text, usage=Usage(1, 1, 1e-9)), run="a"))
    with Store.open(tmp_path / "s.sqlite") as store, Store.open(tmp_path / "t.sqlite") as other:
        archive.export(store, archive.used(store, ["a"]), tmp_path / "a.guerdon")
        archive.import_bundle(other, tmp_path / "a.guerdon")
        found = asyncio.run(other.find(asked.question, RATER.key, 0))
        assert isinstance(found, Reply)
        assert found.text == text
        assert archive.verify(other) == []


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------------------


def test_all_of_it_works_on_postgresql(path: Path, tmp_path: Path, postgresql_url: str) -> None:
    with Store.open(postgresql_url) as store:
        asyncio.run(fill(store))
    found = recipe.list_(store=postgresql_url)
    assert (found.requests, found.attempts, found.answers) == (5, 12, 8)
    assert [(rater.attempts, rater.answers) for rater in found.raters] == [(2, 2), (10, 6)]
    assert found.size > 0
    assert recipe.costs(store=postgresql_url) == recipe.costs(store=str(path))
    assert recipe.verify(store=postgresql_url) == []
    recipe.export(store=postgresql_url, run="run-b", file=tmp_path / "from-postgresql.guerdon")
    recipe.export(store=str(path), run="run-b", file=tmp_path / "from-sqlite.guerdon")
    assert (tmp_path / "from-postgresql.guerdon").read_bytes() == (tmp_path / "from-sqlite.guerdon").read_bytes()


def test_a_bundle_goes_into_postgresql_once(path: Path, tmp_path: Path, postgresql_url: str) -> None:
    recipe.export(store=str(path), run="run-a", file=tmp_path / "a.guerdon")
    first = recipe.import_(store=postgresql_url, file=tmp_path / "a.guerdon")
    assert first.new == first.found
    assert recipe.import_(store=postgresql_url, file=tmp_path / "a.guerdon").new == archive.Counts(0, 0, 0, 0)
    assert recipe.verify(store=postgresql_url) == []
    recipe.export(store=postgresql_url, run="run-a", file=tmp_path / "back.guerdon")
    assert (tmp_path / "back.guerdon").read_bytes() == (tmp_path / "a.guerdon").read_bytes()


def test_faults_on_postgresql_are_named(postgresql_url: str) -> None:
    with Store.open(postgresql_url) as store:
        asyncio.run(fill(store))
        store.backend.write(lambda connection, _now: connection.exec_driver_sql("UPDATE run SET charged = charged + 1 WHERE run = 'run-b'"))
        store.backend.write(lambda connection, _now: connection.exec_driver_sql("DELETE FROM request"))
    faults = [str(fault) for fault in recipe.verify(store=postgresql_url)]
    assert any("its request is not there" in fault for fault in faults)
    assert faults[-1].startswith("run run-b: charged 750000001 and reserved 0 nano-dollars by its own row, 750000000 and 0 by")


# --- the command line ---------------------------------------------------------------------------------------------------------------


def test_the_commands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")

    def told(*arguments: str, status: int = 0) -> str:
        assert cli.main(["store", *arguments]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    store = ("--store", str(path))
    listed = told("list", *store)
    for words in ("/home/somebody/runs/a", "run-b", "rate_limit", "scripted:perfect", "5 requests, 12 attempts, 8 answers"):
        assert words in listed
    assert "analyse" in told("costs", *store)
    assert "openai-compatible" in told("costs", "run-b", *store)
    assert told("verify", *store) == "the store is sound\n"
    bundle = str(tmp_path / "b.guerdon")
    assert "2 requests, 1 raters, 2 attempts, 2 answers" in told("export", "run-b", bundle, *store)
    assert "new here:      2 requests, 1 raters, 2 attempts, 2 answers" in told("import", bundle, "--store", str(tmp_path / "x.sqlite"))
    assert "new here:      0 requests" in told("import", bundle, "--store", str(tmp_path / "x.sqlite"))
    alter(path, "DELETE FROM rater")
    assert "its rater is not there" in told("verify", *store, status=1)
    assert "knows no run 'c'" in told("costs", "c", *store, status=1)
    assert "there is no reply store" in told("list", "--store", str(tmp_path / "none"), status=1)
    assert "no action on the store 'burn'" in told("burn", status=2)


@pytest.mark.parametrize("action", ["", "list", "costs", "verify", "export", "import"])
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["store", *action.split(), "--help"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 0
    assert f"usage: guerdon store {action}".rstrip() in capsys.readouterr().out


def test_a_record_is_json_that_others_can_read(path: Path, tmp_path: Path) -> None:
    export(path, "run-b", tmp_path / "b.guerdon")
    with closing(sqlite3.connect(tmp_path / "b.guerdon")) as connection:
        records = [json.loads(record) for (record,) in connection.execute("SELECT record FROM request")]
    assert sorted(record["purpose"] for record in records) == ["analyse", "score"]
