"""The study of reward learning from ratings: what is rated is what was meant, numbers are paired, a killed study goes on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from guerdon import cli
from guerdon.errors import RunError, StaleInput, UnknownName, UsageError
from guerdon.evaluation.statistics import Estimate
from guerdon.recipes import _study
from guerdon.recipes import reproduce_ratings as study
from guerdon.recipes.reproduce_ratings import SHEETS, Behaviour, Cell, Config, Results, cell_of

PAGE = Path(__file__).parent.parent / "docs" / "results" / "ratings.md"


def behaviour(*qualities: list[float]) -> Behaviour:
    quality = tuple(np.array(values) for values in qualities)
    return Behaviour(tuple(values[:, None].astype(np.float32) for values in quality), quality)


ROLLING = behaviour(*[np.random.default_rng(number).random(30).tolist() for number in range(40)])


# --- cells --------------------------------------------------------------------------------------------------------------------------


def test_a_cell_is_named_by_what_differs_and_found_again_by_its_name() -> None:
    assert Cell().name == "base"
    assert Cell(loss="ce", rate=0.4).name == "rate=0.4 loss=ce"
    for cell in Config().cells():
        assert Cell.named(cell.name) == cell
    assert not Cell.named("stopping=False").stopping
    with pytest.raises(KeyError):
        Cell.named("losses=ce")


def test_a_change_of_a_column_wins_over_that_of_its_row_and_each_cell_is_fitted_once() -> None:
    assert cell_of({"rate": 0.1, "levels": 2}, {"rate": 0.3}) == Cell(rate=0.3, levels=2)
    cells = Config().cells()
    assert len(cells) == len(set(cells))
    assert {cell for sheet in SHEETS for cell in sheet.cells()} == set(cells)


def test_every_setting_of_a_fit_reaches_it() -> None:
    pytest.importorskip("torch")
    plain = study.fit_settings(Cell(), study.FULL)
    changes = {"loss": "ce", "boundaries": "lower", "sampler": "uniform", "weights": "none", "smoothing": 0.1, "members": 3}
    for name, value in (changes | {"size": "stretched", "stopping": False}).items():
        assert study.fit_settings(cell_of({name: value}), study.FULL) != plain, name


# --- ratings ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "levels", "imbalance", "expected"),
    [(240, 3, 1, [80, 80, 80]), (240, 3, 50, [207, 29, 4]), (10, 2, 4, [8, 2]), (60, 2, 1000, [59, 1]), (7, 3, 1, [3, 2, 2])],
)
def test_quotas_fall_geometrically_from_the_worst_class_to_the_best(
    number: int, levels: int, imbalance: float, expected: list[int]
) -> None:
    assert study.quotas(number, levels, imbalance) == expected
    assert sum(expected) == number


def test_edges_of_equal_shares() -> None:
    assert study.equal_shares(np.arange(9.0), 3) == (2.5, 5.5)
    assert study.equal_shares(np.array([0, 0, 0, 0, 0, 0, 1, 2]), 3) == (0.5, 1.5)  # six of eight are alike: no edge can part them
    with pytest.raises(UsageError, match="2 different qualities make no 3 classes"):
        study.equal_shares(np.array([0.0, 1.0, 1.0]), 3)


def test_items_are_all_segments_of_a_length_with_their_mean_quality() -> None:
    recorded = behaviour([0.0, 0.2, 0.7], [1.0])
    pairs = study.items_of(recorded, 2)
    assert pairs.spans.tolist() == [[0, 0, 2], [0, 1, 3]]
    assert pairs.quality == pytest.approx([0.1, 0.45])
    whole = study.items_of(recorded, 0)
    assert whole.spans.tolist() == [[0, 0, 3], [1, 0, 1]]
    assert whole.quality == pytest.approx([0.3, 1.0])
    assert study.items_of(recorded, 9).spans.shape == (0, 3)


def test_ratings_have_the_imbalance_and_the_errors_asked_for() -> None:
    judged = study.judge(Cell(imbalance=5.0), ROLLING, "room", 0, 240)
    assert judged is not None
    assert np.bincount(judged.target.astype(int)).tolist() == study.quotas(240, 3, 5.0)
    assert (judged.target == judged.true).all()
    wrong = study.judge(Cell(rate=0.3), ROLLING, "room", 0, 600)
    worse = study.judge(Cell(rate=0.4), ROLLING, "room", 0, 600)
    assert wrong is not None
    assert worse is not None
    assert (wrong.spans == worse.spans).all()
    first, more = wrong.target != wrong.true, worse.target != worse.true
    assert 0.25 < first.mean() < 0.35 < more.mean() < 0.45
    assert (more | ~first).all(), "what was wrong at a lower rate is wrong at a higher one too"
    kind = study.judge(Cell(errors="optimism", rate=0.4), ROLLING, "room", 0, 600)
    assert kind is not None
    assert set(np.unique(kind.target - kind.true)) == {0.0, 1.0}


def test_each_rating_is_that_of_its_own_transition() -> None:
    judged = study.judge(Cell(levels=4), ROLLING, "room", 1, 100)
    assert judged is not None
    quality = np.array([ROLLING.quality[episode][start] for episode, start, _ in judged.spans])
    order = quality.argsort()
    assert (np.diff(judged.target[order]) >= 0).all()
    assert study.judgements_of(Cell(levels=4), judged, ROLLING).steps.vector.shape == (100, 1)


def test_what_a_model_is_fitted_to_are_the_transitions_that_were_judged() -> None:
    for cell in (Cell(unit=5), Cell(unit=0), Cell(judged="preferences")):
        judged = study.judge(cell, ROLLING, "room", 2, 30)
        assert judged is not None
        given = study.judgements_of(cell, judged, ROLLING)
        for item, (episode, start, stop) in enumerate(judged.spans):
            rows = given.members[given.offsets[item] : given.offsets[item + 1]]
            assert (given.steps.vector[rows, 0] == ROLLING.vectors[episode][start:stop, 0]).all()
        assert len(given) == len(judged.target)


def test_preferences_show_two_pictures_and_coarse_ones_call_a_class_equal() -> None:
    fine = study.judge(Cell(judged="preferences"), ROLLING, "room", 0, 400)
    coarse = study.judge(Cell(judged="preferences", coarse=True), ROLLING, "room", 0, 400)
    assert fine is not None
    assert coarse is not None
    assert len(fine.spans) == 400
    assert len(fine.target) == 200
    worth = np.array([ROLLING.quality[episode][start] for episode, start, _ in fine.spans])
    assert (fine.target == (np.sign(worth[1::2] - worth[::2]) + 1) / 2).all()
    assert (fine.target == 0.5).mean() < 0.02, "only a picture beside itself is neither better nor worse"
    assert 0.25 < (coarse.target == 0.5).mean() < 0.42
    certain = coarse.target != 0.5
    assert (fine.target[certain] == coarse.target[certain]).all()


def test_lengths_that_no_episode_has_are_not_rated() -> None:
    assert study.judge(Cell(unit=31), ROLLING, "room", 0, 40) is None
    assert study.judge(Cell(unit=0), ROLLING, "room", 0, 100) is None


def test_block_means() -> None:
    picture = np.zeros((1, 8, 9, 3), np.uint8)
    picture[0, :4, :4, 0] = 255
    picture[0, 4:, 4:8, 2] = 51
    picture[0, 0, 4, 1] = 16 * 15  # one pixel of sixteen
    means = study.block_means(picture)
    assert means[0] == pytest.approx([1, 0, 0, 0, 15 / 255, 0, 0, 0, 0, 0, 0, 0.2])


def test_nobody_rates_what_is_held_out() -> None:
    pool, held_out = study.split(ROLLING, "room", 3)
    assert (len(pool.quality), len(held_out.quality)) == (30, 10)
    starts = [values[0] for part in (pool, held_out) for values in part.quality]
    assert sorted(starts) == sorted(values[0] for values in ROLLING.quality)
    assert study.split(ROLLING, "room", 4)[1].quality[0].tolist() != held_out.quality[0].tolist()


def test_measures_of_what_is_known() -> None:
    held_out = behaviour(np.linspace(0, 1, 20).tolist(), np.linspace(0.5, 0.6, 20).tolist())
    true = [values.copy() for values in held_out.quality]
    assert study.measure(true, held_out, "room", 0) == pytest.approx({"spearman": 1, "segments": 1, "best": 1})
    turned = [-values for values in true]
    assert study.measure(turned, held_out, "room", 0) == pytest.approx({"spearman": -1, "segments": 0, "best": 0})
    constant = study.measure([np.zeros(20)] * 2, held_out, "room", 0)
    assert math.isnan(constant["spearman"])
    assert (constant["segments"], constant["best"]) == (0.5, 0.5)


# --- lines, intervals, pages --------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_does_not_count_and_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results" / "a.jsonl"
    assert _study.read_lines(path) == []
    _study.append_line(path, {"cell": "one"})
    with path.open("ab") as stream:
        stream.write(b'{"cell": "tw')
    assert _study.read_lines(path) == [{"cell": "one"}]
    _study.append_line(path, {"cell": "three"})
    assert _study.read_lines(path) == [{"cell": "one"}, {"cell": "three"}]
    path.write_text('{"cell": "one"}\nrubbish\n{"cell": "two"}\n')
    with pytest.raises(RunError, match=r"a\.jsonl, line 2: is no JSON object"):
        _study.read_lines(path)


def test_an_estimate_weighs_problems_alike_and_resamples_seeds_within_them() -> None:
    found = {("a", 0): 0.2, ("a", 1): 0.4, ("b", 0): 0.9}
    each = _study.estimate(found)
    assert each.value == pytest.approx(0.6)  # (0.3 + 0.9) / 2
    assert (each.low, each.high) == pytest.approx((0.55, 0.65))  # a's mean is between 0.2 and 0.4, b's cannot change
    assert _study.estimate({("a", 0): 0.2}) == Estimate(0.2)
    assert math.isnan(_study.estimate({}).value)


def test_a_difference_is_that_of_the_same_problems_and_seeds() -> None:
    one = {("a", 0): 0.9, ("a", 1): 0.3, ("a", 2): 0.5}
    other = {("a", 0): 0.8, ("a", 1): 0.2}
    found = _study.difference(one, other)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert _study.shown(found, signed=True) == "**+0.100 [+0.10, +0.10]**"
    assert _study.shown(Estimate(-0.1, -0.2, 0.1), signed=True) == "−0.100 [−0.20, +0.10]"
    assert _study.shown(Estimate(math.nan)) == "–"


def test_a_page_is_filled_between_its_marks_as_often_as_one_likes() -> None:
    text = "It is <!-- fill a -->old<!-- /fill -->.\n\n<!-- fill t --><!-- /fill -->\n"
    give = {"a": "0.81", "t": "| x |\n| --- |"}.__getitem__
    once = _study.filled(text, give)
    assert once == "It is <!-- fill a -->0.81<!-- /fill -->.\n\n<!-- fill t -->\n\n| x |\n| --- |\n\n<!-- /fill -->\n"
    assert _study.filled(once, give) == once
    with pytest.raises(RunError, match="nothing to fill 'b'"):
        _study.filled("<!-- fill b --><!-- /fill -->", give)


def test_a_figure_is_an_svg_file_with_its_numbers_as_tooltips() -> None:
    drawn = [_study.Line("MAE & CE", [Estimate(0.5, 0.4, 0.61), Estimate(math.nan)]), _study.Line("none", [Estimate(0.7)] * 2)]
    root = ElementTree.fromstring(_study.lines("Noise <1>", ["0 %", "10 %"], drawn, axis="errors", measure="correlation"))
    texts = [element.text for element in root.iter() if element.text]
    assert "MAE & CE, 0 %: 0.500 [0.40, 0.61]" in texts
    assert {"0.40", "0.70"} <= set(texts), "the axis covers the intervals"
    assert sum(element.tag.endswith("circle") for element in root.iter()) == 3


RESULTS = Results(
    [
        {
            "world": "babyai",
            "problem": "one-room",
            "seed": seed,
            "cell": cell,
            "spearman": value,
            "wrong": 0.0,
            "passes": 9,
            "seconds": 36.0,
        }
        for cell, values in {"base": (0.6, 0.8), "loss=ce": (0.5, 0.6)}.items()
        for seed, value in enumerate(values)
    ]
    + [{"world": "babyai", "problem": "one-room", "seed": 0, "cell": "unit=25 pictures=120", "refused": "too few"}],
    [{"seconds": 90.0, "machine": "a machine"}],
)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("value babyai spearman: base", "0.700 [0.60, 0.80]"),
        ("value metaworld spearman: base", "–"),
        ("change babyai spearman: base | loss=ce", "+0.150 [+0.10, +0.20]"),
        ("models", "4"),
        ("hours", "0.0"),
        ("minutes", "1"),
        ("seeds", "2"),
        ("machine", "a machine"),
    ],
)
def test_marks_stand_for_numbers_of_the_results(key: str, text: str) -> None:
    assert study.value_of(key, RESULTS) == text


@pytest.mark.parametrize(
    "key",
    ["values", "value mars spearman: base", "value babyai speerman: base", "table nothing babyai", "value babyai spearman: losses=ce"],
)
def test_marks_that_mean_nothing_are_refused(key: str) -> None:
    with pytest.raises(KeyError):
        study.value_of(key, RESULTS)


def test_a_table_holds_paired_differences() -> None:
    table = study.value_of("table noise babyai", RESULTS)
    assert table.splitlines()[0] == "| BabyAI | MAE | CE | MAE − CE |"
    assert table.splitlines()[2] == "| none | 0.700 [0.60, 0.80] | 0.550 [0.50, 0.60] | **+0.150 [+0.10, +0.20]** |"


def test_results_survive_their_table(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    RESULTS.write_table(path)
    again = Results.read_table(path)
    assert again.calls == RESULTS.calls
    assert again.refused == RESULTS.refused == {("babyai", "unit=25 pictures=120"): 1}
    assert study.summary(again) == study.summary(RESULTS)
    path.write_bytes(b"rubbish")
    with pytest.raises(RunError, match="cannot be read as a table of results"):
        Results.read_table(path)


# --- the whole ----------------------------------------------------------------------------------------------------------------------

SMALL = {"worlds": ("babyai",), "sheets": ("smoothing",), "seeds": 2, "jobs": 1, "quick": True, "quiet": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("minigrid")
    out = tmp_path_factory.mktemp("study") / "out"
    page = out.parent / "page.md"
    page.write_text("<!-- fill table smoothing babyai --><!-- /fill -->")
    study.reproduce(Config(out=out, page=page, **SMALL))  # type: ignore[arg-type]
    return out


def test_a_study_leaves_lines_tables_and_a_filled_page(finished: Path) -> None:
    lines = _study.read_lines(finished / "results" / "one-room-seed-1.jsonl")
    assert [line["cell"] for line in lines] == [cell.name for cell in Config(**SMALL).cells()]  # type: ignore[arg-type]
    assert all(-1 <= line["spearman"] <= 1 and 0 <= line["segments"] <= 1 for line in lines)
    table = (finished / "tables" / "smoothing-babyai.md").read_text()
    assert "| BabyAI | CE, smoothed |" in table
    assert "| BabyAI | CE, smoothed |" in (finished.parent / "page.md").read_text()
    assert Results.read_table(finished.parent / "page.parquet").worlds() == ["babyai"]
    assert len({line["spearman"] for line in lines}) > 1, "what is varied makes a difference"


def test_a_killed_study_goes_on_and_comes_to_the_same_numbers(finished: Path) -> None:
    before = (finished / "summary.csv").read_text()
    path = finished / "results" / "one-room-seed-0.jsonl"
    whole = path.read_bytes()
    kept = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:3]) + kept[3][:20])
    study.reproduce(Config(out=finished, **SMALL))  # type: ignore[arg-type]
    assert (finished / "summary.csv").read_text() == before
    assert path.read_bytes().splitlines()[:3] == whole.splitlines()[:3]
    assert len(_study.read_lines(finished / "calls.jsonl")) == 2


def test_results_of_another_amount_of_fitting_are_refused(finished: Path) -> None:
    record = json.loads((finished / "study.json").read_text())
    (finished / "study.json").write_text(json.dumps(record | {"scale": {**record["scale"], "updates": 7}}))
    with pytest.raises(StaleInput, match="another amount of fitting"):
        study.reproduce(Config(out=finished, **SMALL))  # type: ignore[arg-type]
    (finished / "study.json").write_text(json.dumps(record))
    with pytest.raises(StaleInput, match="layouts for fewer than 3 seeds"):
        study.reproduce(Config(out=finished, **{**SMALL, "seeds": 3}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"worlds": ("mars",)}, "no world of this study 'mars'"),
        ({"sheets": ("nose",)}, "no question of this study 'nose'"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises((UnknownName, UsageError), match=message):
        Config(**settings)  # type: ignore[arg-type]


def test_the_command_lists_studies_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--help"]) == 0
    assert "ratings" in capsys.readouterr().out.split("studies: ")[1].strip().split(", ")
    assert cli.main(["reproduce", "everything"]) == 2
    assert "no study 'everything'; there are: " in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    lines = ("import sys", "from guerdon.cli import main", "try: main(['reproduce', 'ratings', '--help'])", "except SystemExit: pass")
    code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_page_says_what_its_results_say() -> None:
    results = Results.read_table(PAGE.with_suffix(".parquet"))
    text = PAGE.read_text(encoding="utf-8")
    assert _study.filled(text, lambda key: study.value_of(key, results)) == text
    for world in results.worlds():
        for name, svg in study.figures(results, world).items():
            assert PAGE.with_name(f"ratings-{name}.svg").read_text(encoding="utf-8") == svg
