"""`guerdon plan`: what labelling would take, with no key and nothing sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import guerdon
from guerdon import cli, pricing
from guerdon.answers import Scores
from guerdon.errors import UnknownName, UsageError
from guerdon.methods.rg_vlm import RgVlm
from guerdon.recipes import label, plan, raters, reckoning
from guerdon.recipes.collect_babyai import Config as CollectConfig
from guerdon.recipes.collect_babyai import collect_babyai
from guerdon.recipes.data import open_data
from guerdon.records import Exchange, Price, Reply, Request, Sample
from guerdon.samples import Config as SamplingConfig
from guerdon.samples import select
from tests.memory import MemoryDataset, MemoryEpisode

LONG = "go to the red ball, then pick up the green key behind the door on your left"
FOUR = ("google:gemini-2.5-flash", "openai:gpt-5.4-mini", "anthropic:claude-haiku-4-5", "google:gemini-3.8-flash")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_babyai(CollectConfig(out=tmp_path_factory.mktemp("plan") / "data", tasks=3, demonstrations=1))


def windows(episodes: int = 12, **sampling: int) -> list[Sample]:
    dataset = MemoryDataset(
        [MemoryEpisode(5 + number % 9, instruction=LONG if number == 7 else "go to the red ball") for number in range(episodes)], size=30
    )
    return list(select(dataset, SamplingConfig(**sampling)))


def asked(spec: str = FOUR[0], **settings: object) -> reckoning.Asked:
    return reckoning.read_rater(spec, {}, **settings)  # type: ignore[arg-type]


def test_requests_are_those_that_the_method_would_send() -> None:
    method, samples = RgVlm(), windows()
    drawn = reckoning.draw(samples, method)
    assert drawn.windows == len(drawn.conversations) == len(samples)
    for sample, conversation in zip(samples, drawn.conversations, strict=True):
        assert [request.purpose for request in conversation.usual] == ["analyse", "score"]
        assert [request.purpose for request in conversation.worst] == ["analyse", "score", "repair"]
        first = method.next(sample, [])
        assert first is not None
        assert conversation.usual[0] == first
        assert conversation.usual[0].messages[0].pictures[0].pixels.shape == first.messages[0].pictures[0].pixels.shape
        assert isinstance(conversation.usual[1].answer, Scores)
        actions = sample.segment.length
        assert len(conversation.usual[1].messages[1].text) == 4 * 30 * actions, "the analysis is sent again in the second turn"


def test_sums_over_all_windows() -> None:
    samples = windows()
    drawn = reckoning.draw(samples, RgVlm())
    found = reckoning.planned(drawn, [asked()])
    requests = [request for each in drawn.conversations for request in each.usual]
    estimates = [pricing.estimate(each, provider="google", model="gemini-2.5-flash", thinking_tokens=1000) for each in requests]
    assert (found.requests, found.pictures) == (2 * len(samples), 2 * len(samples))
    assert found.picture_tokens == sum(each.picture_tokens or 0 for each in estimates)
    assert found.text_tokens == sum(each.text_tokens for each in estimates)
    assert found.output_tokens == sum(each.output_tokens for each in estimates)
    assert found.dollars == pytest.approx(sum(each.dollars or 0 for each in estimates))
    assert found.batch_dollars == pytest.approx(found.dollars / 2)
    assert found.unknown == ()
    assert found.to_record()["input_tokens"] == found.input_tokens == found.picture_tokens + found.text_tokens
    assert json.loads(json.dumps(found.to_record())) == found.to_record()
    thrice = reckoning.planned(drawn, [asked()], repeats=3)
    assert (thrice.requests, thrice.pictures) == (3 * found.requests, 3 * found.pictures)
    assert thrice.dollars == pytest.approx(3 * found.dollars)
    assert thrice.ceiling == pytest.approx(3 * (found.ceiling or 0))


@pytest.mark.parametrize("most", [1, 3, 8, 20])
def test_a_part_of_the_windows_stands_for_all(most: int) -> None:
    samples = windows(40)
    whole, part = (reckoning.planned(reckoning.draw(samples, RgVlm(), most=number), [asked()]) for number in (len(samples), most))
    assert len(reckoning.draw(samples, RgVlm(), most=most).conversations) <= most
    assert part.requests == whole.requests
    assert part.ceiling is not None
    assert whole.ceiling is not None
    assert part.ceiling >= whole.ceiling, "windows that were not drawn count like the dearest"
    if most >= 8:  # every length is drawn
        assert part.text_tokens == pytest.approx(whole.text_tokens, rel=0.03)
        assert part.picture_tokens == whole.picture_tokens


def test_nothing_costs_nothing() -> None:
    found = reckoning.planned(reckoning.draw([], RgVlm()), [asked()], pilot=3)
    assert (found.requests, found.dollars, found.ceiling, found.hours) == (0, 0.0, 0.0, 0.0)


def test_pictures_are_drawn_for_a_part_only() -> None:
    read = []
    samples = windows(40)
    counted = [
        Sample(each.segment, each.instruction, each.actions, each.annotation, frames=lambda each=each: read.append(each) or each.frames())
        for each in samples
    ]  # fmt: skip
    reckoning.draw(counted, RgVlm(), most=5)
    assert len(read) == 5


def test_the_ceiling_holds_for_answers_as_long_as_they_may_be() -> None:
    """Whatever is answered within the allowance, readable or not, the quotes of a conversation stay below it."""
    allowance = 400
    settings = {"chat": _chat_config(allowance)}
    method, samples = RgVlm(), windows(4)
    rater = reckoning.read_rater("google:gemini-2.5-flash", settings)
    ceiling = reckoning.planned(reckoning.draw(samples, method), [rater]).ceiling
    spent = 0.0
    for sample in samples:
        exchanges: list[Exchange] = []
        while (request := method.next(sample, exchanges)) is not None:
            quote = pricing.quote(request, provider="google", model="gemini-2.5-flash", max_output_tokens=allowance)
            spent += quote.dollars or 0.0
            exchanges.append(Exchange(request, Reply("word" * allowance)))
        assert len(exchanges) == 3
    assert ceiling is not None
    assert ceiling * 0.5 < spent <= ceiling


def _chat_config(allowance: int) -> object:
    from guerdon.providers.chat import Chat

    return Chat.Config(max_output_tokens=allowance)


def test_each_stage_is_reckoned_by_its_own_rater() -> None:
    samples = windows(5)
    drawn = reckoning.draw(samples, RgVlm(score_rater=1))
    dear, cheap = asked("anthropic:claude-opus-5-5"), asked("google:gemini-2.5-flash-lite")
    mixed, all_dear, all_cheap = (reckoning.planned(drawn, each) for each in ([dear, cheap], [dear], [cheap]))
    assert mixed.rater == "anthropic:claude-opus-5-5 then google:gemini-2.5-flash-lite"
    assert (all_cheap.dollars or 0) < (mixed.dollars or 0) < (all_dear.dollars or 0)


def test_a_pilot_asks_about_its_windows_once_more() -> None:
    drawn = reckoning.draw(windows(5), RgVlm())
    without, with_pilot, capped = (reckoning.planned(drawn, [asked()], repeats=2, pilot=number) for number in (0, 3, 1000))
    assert with_pilot.requests == without.requests + 2 * 3
    assert capped.requests == without.requests * 3 / 2
    assert with_pilot.dollars == pytest.approx((without.dollars or 0) * (1 + 3 / (2 * drawn.windows)))
    assert (with_pilot.ceiling or 0) > (without.ceiling or 0)


def test_what_label_is_expected_to_take(data: Path) -> None:
    """To be held against what was billed: two raters, each in its stage, and the settings of `label`."""
    config = label.Config(
        dataset=data, run=Path("run"), vlm=("openai-compatible:a@https://example.org/v1", "scripted"), price=("1,1",), repeats=2
    )
    dataset = open_data(data, config)
    found = label.planned_for(config, select(dataset), label.make_method(config, dataset))
    first = reckoning.planned(reckoning.draw(select(dataset), RgVlm()), [asked(config.vlm[0], price=Price(1, 1))], repeats=2)
    assert found.requests == first.requests
    assert 0 < found.text_tokens < first.text_tokens, "scripted raters read no tokens"
    assert found.rater == " then ".join(config.vlm)


def test_hours_are_those_of_the_slowest_limit() -> None:
    drawn = reckoning.draw(windows(), RgVlm())
    found = reckoning.planned(drawn, [asked()], concurrency=2, seconds_per_request=6)
    assert found.hours == pytest.approx(found.requests * 3 / 3600)
    slow = reckoning.planned(drawn, [asked()], requests_per_minute=1)
    assert slow.hours == pytest.approx(slow.requests / 60)
    tokens = (found.picture_tokens or 0) + found.text_tokens + found.output_tokens
    assert reckoning.planned(drawn, [asked()], tokens_per_minute=1).hours == pytest.approx(tokens / 60)
    assert reckoning.planned(drawn, [asked("openai:gpt-6-luna")], tokens_per_minute=1).hours is None, "unknown picture tokens, unknown time"
    assert reckoning.planned(drawn, [asked("scripted")]).hours == 0.0


def test_what_is_unknown_is_said_with_its_cure() -> None:
    drawn = reckoning.draw(windows(3), RgVlm())
    found = reckoning.planned(drawn, [asked("openai:gpt-6-luna")])
    assert (found.picture_tokens, found.dollars, found.batch_dollars) == (None, None, None)
    assert found.ceiling is not None, "a bound is known all the same: the dearest formula of the vendor"
    assert found.unknown == ("openai:gpt-6-luna: tokens of a picture are not documented. Give them with --picture-tokens.",)
    told = reckoning.planned(drawn, [asked("openai:gpt-6-luna", picture_tokens=500)])
    assert told.picture_tokens == 500 * told.pictures
    assert told.dollars is not None
    assert told.unknown == ()
    server = reckoning.planned(drawn, [asked("openai-compatible:qwen@https://example.org/v1")])
    assert (server.dollars, server.ceiling) == (None, None)
    assert [reason.rpartition(". ")[2] for reason in server.unknown] == [
        "Give them with --picture-tokens.", "Give it with --price, in dollars per million input,output tokens.",
    ]  # fmt: skip
    priced = reckoning.planned(drawn, [asked("openai-compatible:qwen@https://example.org/v1", price=Price(1, 2), picture_tokens=9)])
    assert priced.dollars == pytest.approx((priced.text_tokens + 9 * priced.pictures + 2 * priced.output_tokens) / 1e6)
    assert priced.batch_dollars is None, "a stated price says nothing of batches"


@pytest.mark.parametrize("spec", ["scripted", "replay:folder", "openai-compatible:qwen@http://localhost:8000/v1"])
def test_what_runs_here_costs_nothing(spec: str) -> None:
    found = reckoning.planned(reckoning.draw(windows(3), RgVlm()), [asked(spec)])
    assert (found.dollars, found.batch_dollars, found.ceiling, found.unknown) == (0.0, 0.0, 0.0, ())


def test_models_that_think_by_default_are_expected_to() -> None:
    thinking = {spec: asked(spec).thinking_tokens > 0 for spec in (*FOUR, "google:gemini-2.5-flash-lite", "openai:gpt-5-mini")}
    assert thinking == {
        "google:gemini-2.5-flash": True, "openai:gpt-5.4-mini": False, "anthropic:claude-haiku-4-5": False,
        "google:gemini-3.8-flash": True, "google:gemini-2.5-flash-lite": False, "openai:gpt-5-mini": True,
    }  # fmt: skip


@pytest.mark.parametrize("spec", ["nobody:x", "nobody", "chat:x"])
def test_an_unknown_rater_is_refused_in_the_words_of_label(spec: str) -> None:
    with pytest.raises(UnknownName) as building:
        raters.build(spec)
    with pytest.raises(UnknownName) as planning:
        asked(spec)
    assert str(planning.value) == str(building.value)


@pytest.mark.parametrize(
    "spec",
    [
        "google:", "openai-compatible:qwen", "openai-compatible:@http://localhost", "openai-compatible:qwen@localhost:8000/v1",
        "openai-compatible:qwen@http://me:secret@localhost/v1",
    ],
)  # fmt: skip
def test_half_a_name_is_refused_in_the_words_of_label(spec: str) -> None:
    with pytest.raises(UsageError) as building:
        raters.build(spec)
    with pytest.raises(UsageError) as planning:
        asked(spec)
    assert str(planning.value) == str(building.value)
    assert "secret" not in str(planning.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"price": ("1,2", "3,4", "5,6")}, "3 prices are given for 2 raters"),
        ({"price": ("cheap",)}, "'cheap' is no price"),
        ({"repeats": 0}, "repeats is at least 1"),
        ({"tokens_per_minute": 0}, "tokens_per_minute is a number above 0"),
        ({"picture_tokens": 0}, "picture_tokens is at least 1"),
        ({"output_tokens": -1}, "output_tokens is at least 1"),
        ({"seconds_per_request": 0.0}, "seconds_per_request is a number above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        guerdon.plan(dataset=Path("data"), vlm=FOUR[:2], **settings)  # type: ignore[arg-type]


def test_prices_go_to_the_raters_in_their_order() -> None:
    both = plan.Config(dataset=Path("data"), vlm=FOUR[:2], price=("1,2", "3,4"))
    assert [each.price for each in reckoning.asked_of(both.vlm, {}, both.price)] == [Price(1, 2), Price(3, 4)]
    one = plan.Config(dataset=Path("data"), vlm=FOUR[:2], price=("1,2",))
    assert [each.price for each in reckoning.asked_of(one.vlm, {}, one.price)] == [Price(1, 2), Price(1, 2)]


def test_python_call(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key in the environment: a rater that was built would say so."""
    monkeypatch.chdir(tmp_path)
    found = guerdon.plan(dataset=str(data), vlm=FOUR)  # type: ignore[arg-type]
    assert [each.rater for each in found.raters] == list(FOUR)
    assert all(each.requests == 2 * found.windows for each in found.raters)
    for each in found.raters:
        assert each.dollars is not None
        assert found.per_thousand_transitions(each) == pytest.approx(each.dollars * 1000 / found.transitions)
        assert each.ceiling is not None
        assert each.ceiling > each.dollars
    assert list(tmp_path.iterdir()) == [], "neither a store nor a run nor anything else is written"


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    flags = [word for spec in FOUR for word in ("--vlm", spec)]
    assert cli.main(["plan", str(data), *flags, "--requests-per-minute", "60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines}
    found = guerdon.plan(dataset=data, vlm=FOUR)
    assert table["requests"] == [f"{each.requests:,}" for each in found.raters]
    assert table["picture tokens"] == [f"{each.picture_tokens:,}" for each in found.raters]
    for row in ("dollars", "dollars in batches", "per 1,000 transitions", "dollars at most", "hours"):
        assert len(table[row]) == 4
        assert all(float(cell.replace(",", "")) > 0 for cell in table[row])
    assert "Nothing was sent." in "".join(lines)


def test_the_flags_of_label_are_taken(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users swap the word `plan` for `label` and the other way round."""
    flags = ["--vlm", "google:gemini-2.5-flash", "--run", str(tmp_path / "run"), "--yes", "--quiet", "--window", "4", "--tile", "60"]
    flags += ["--fraction", "0.5", "--chat.max-output-tokens", "300", "--chat.picture-form", "jpeg", "--store", str(tmp_path / "store")]
    assert cli.main(["plan", str(data), *flags]) == 0
    assert "hours: 3 s an answer, 16 conversations at once." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_more_raters_than_fit_get_a_table_of_their_own(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        cli.main(["plan", str(data), "--vlm", *FOUR, "openai:gpt-6-luna", "scripted:perfect", "openai-compatible:a@http://localhost/v1"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.count("what is expected") == 2
    assert max(map(len, out.splitlines())) <= 80
    assert "unknown: openai:gpt-6-luna: tokens of a picture are not documented." in out


def test_a_method_that_never_stops_is_given_up() -> None:
    class Endless(RgVlm):
        def next(self, sample: Sample, exchanges: object) -> Request | None:
            return super().next(sample, [])

    drawn = reckoning.draw(windows(1), Endless())
    assert len(drawn.conversations[0].usual) == 100
