"""Learning while acting: the loop with a world worked out by hand, and whole runs in Meta-World with a scripted rater."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT TESTED: torch is not installed; install 'guerdon[train]'")
pytest.importorskip("metaworld", reason="NOT TESTED: metaworld is not installed; install 'guerdon[metaworld]'")

from guerdon.algorithms.sac import SAC  # noqa: E402
from guerdon.cli import main  # noqa: E402
from guerdon.envs.metaworld import MetaWorld, new_task  # noqa: E402
from guerdon.errors import ConsentNeeded, EnvironmentFailed, RewardError, RunError, UnknownName, UsageError  # noqa: E402
from guerdon.interfaces import Environment, Observation, OnlineAlgorithm, Step  # noqa: E402
from guerdon.recipes import online as recipe  # noqa: E402
from guerdon.records import Task  # noqa: E402
from guerdon.replay_buffer import ReplayBuffer  # noqa: E402
from guerdon.rewards.fitting import Config as Fitting  # noqa: E402
from guerdon.training import online_records as records  # noqa: E402
from guerdon.training.online import Config, Episode, OnlineRun, Rewards, SparseReward, Spent, TrueReward, World, evaluate  # noqa: E402
from guerdon.training.policy import load_policy  # noqa: E402
from tests.curves import curves, points  # noqa: E402

# --- schedules ----------------------------------------------------------------------------------------------------------------------


def test_a_million_steps_have_the_published_schedule_and_fewer_steps_a_shorter_one() -> None:
    published = Config(steps=1_000_000).schedule(pictures=True)
    assert (published.random_steps, published.first_session, published.every, published.first_updates) == (1_000, 10_000, 5_000, 100)
    assert (published.evaluate_every, published.capacity, published.neighbours) == (10_000, 200_000, 5)
    assert sum(published.is_session(step) for step in range(1, 1_000_001)) == 198  # 9,900 labels of 50 each
    short = Config(steps=25_000).schedule()
    assert (short.random_steps, short.first_session, short.every, short.evaluate_every) == (1_000, 5_000, 1_250, 2_500)
    assert short.capacity == 25_052  # 25,000 transitions, and the first observations of 50 episodes
    assert [step for step in range(301) if Config(steps=300).schedule().is_session(step)] == list(range(60, 300, 15))
    assert Config(steps=50_000).schedule(published_every=2_000).every == 2_000


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"random_steps": -1}, {"random_steps": 20, "first_session": 10}, {"log_every": 0}])
def test_schedules_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Config(**wrong)


# --- the loop in a world worked out by hand -----------------------------------------------------------------------------------------


class Line(Environment):
    """A point on a line that an action moves. Worth its place; a success between 0.5 and 0.6."""

    views = ()
    action_names = ()
    action_size = 1

    def reset(self, task: Task) -> Observation:
        self.place = float(task.spec["begin"])
        return self._seen()

    def step(self, action: Any) -> Step:
        self.place += float(action[0])
        return Step(self._seen(), 0.0, self.place > 2.0, self.place)

    @property
    def success(self) -> bool:
        return 0.5 <= self.place <= 0.6

    def _seen(self) -> Observation:
        return Observation({}, {"state": np.array([self.place, 1.0], np.float32)})


def line_task(number: int, *, limit: int = 4) -> Task:
    return Task(f"line/{number}", "line", "go right", 1, "fixed", limit, spec={"begin": number % 3 / 4})


def line_world(**changes: Any) -> World:
    def succeeded(environment: Environment) -> bool:
        assert isinstance(environment, Line)
        return environment.success

    world = World(lambda _views: Line(), line_task, (line_task(0),), succeeded, lambda step: min(max(step.reward, 0.0), 1.0), "state")
    return replace(world, **changes)


class Watched(OnlineAlgorithm):
    """Goes a quarter to the right, and writes down what it is asked."""

    name = "watched"

    def __init__(self) -> None:
        self.events: list[Any] = []

    def act(self, states: Any, *, explore: bool) -> Any:
        if explore:
            self.events.append("act")
        return np.full((len(states), 1), 0.25, np.float32)

    def update(self, experience: Any) -> dict[str, Any]:
        self.events.append(experience)
        return {"loss": experience.reward.mean()}

    def forget_values(self) -> None:
        self.events.append("forget")

    def state(self) -> dict[str, Any]:
        return {"weights": torch.ones(2)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        assert state["weights"].tolist() == [1, 1]

    @property
    def words(self) -> list[str]:
        return [event if isinstance(event, str) else "update" for event in self.events]


class Judged(Rewards):
    """Twice the place, known from the session of number `known` on."""

    asks = True

    def __init__(self, known: int = 1, most: int = 100) -> None:
        self.known, self.most, self.held = known, most, 0
        self.sizes: list[int] = []

    def of(self, before: Observation, action: Any, step: Step, *, success: bool, instruction: str) -> float:
        assert instruction == "go right"
        return 2 * step.reward if self.held >= self.known else float("nan")

    def hold(self, buffer: ReplayBuffer) -> bool:
        self.held += 1
        self.sizes.append(len(buffer))
        return self.held >= self.known

    def relabel(self, buffer: ReplayBuffer, *, batch: int) -> None:
        buffer.relabel(lambda stretch: 2 * stretch.true_reward, batch=batch)

    @property
    def sessions(self) -> int:
        return self.held

    @property
    def exhausted(self) -> bool:
        return self.held >= self.most

    @property
    def spent(self) -> Spent:
        return Spent(3 * self.held, 4 * self.held, 0.5 * self.held)

    def go_back(self, sessions: int) -> None:
        self.held = sessions


SHORT = Config(
    steps=20, random_steps=6, first_session=10, every=4, first_updates=3, log_every=5, evaluate_every=10, checkpoint_every=7, capacity=99
)


def line_run(
    out: Path, rewards: Rewards, algorithm: OnlineAlgorithm | None = None, config: Config = SHORT, *, show: bool = False, **changes: Any
) -> OnlineRun:
    out.mkdir(exist_ok=True)
    world, schedule = line_world(**changes), config.schedule()
    return OnlineRun(algorithm or Watched(), world, rewards, schedule, batch=8, seed=3, out=out, log_to_tensorboard=show)


def test_random_steps_then_exploring_then_sessions_with_all_rewards_anew(tmp_path: Path) -> None:
    algorithm, rewards = Watched(), Judged()
    run = line_run(tmp_path, rewards, algorithm)
    run.learn()
    assert rewards.sizes == [10, 14, 18]  # at the end nothing is asked any more
    assert algorithm.words.count("act") == 20 - 6
    assert algorithm.words.count("forget") == 1
    updates = [event for event in algorithm.events if not isinstance(event, str)]
    before = [event for event in algorithm.events[: algorithm.events.index("forget")] if not isinstance(event, str)]
    assert len(before) == 4  # after steps 6 to 9
    assert all((event.reward >= 0).all() for event in before)  # distances
    assert len(updates) - len(before) == 3 + 11  # three at once, then after steps 10 to 20
    for event in updates[len(before) :]:
        assert torch.allclose(event.reward, 2 * event.next_state[:, 0])  # the true reward is the place
        assert not torch.isnan(event.reward).any()
    lines = records.read_lines(tmp_path / records.METRICS)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [line["labels"] for line in lines] == [0, 3, 6, 9]
    assert [line["exploring"] for line in lines] == [True, False, False, False]
    assert [line["dollars"] for line in lines] == [0.0, 0.5, 1.0, 1.5]
    assert [line["step"] for line in records.read_lines(tmp_path / records.EVALUATIONS)] == [0, 10, 20]


def test_it_goes_on_exploring_until_a_session_gives_a_model_and_gives_up_without_a_budget(tmp_path: Path) -> None:
    algorithm, rewards = Watched(), Judged(known=2)
    line_run(tmp_path / "a", rewards, algorithm).learn()
    assert rewards.sizes == [10, 14, 18]
    assert algorithm.words[: algorithm.words.index("forget")].count("update") == 8  # after steps 6 to 13
    with pytest.raises(RewardError, match="budget is used up after 6 labels"):
        line_run(tmp_path / "b", Judged(known=3, most=2)).learn()


def test_rewards_that_are_known_at_once_need_neither_exploring_nor_sessions(tmp_path: Path) -> None:
    for rewards, expected in (
        (TrueReward(), lambda place: place),
        (SparseReward(), lambda place: ((place >= 0.5) & (place <= 0.6)).float()),
    ):
        algorithm = Watched()
        line_run(tmp_path / type(rewards).__name__, rewards, algorithm).learn()
        assert "forget" not in algorithm.words
        updates = [event for event in algorithm.events if not isinstance(event, str)]
        assert len(updates) == 15  # after steps 6 to 20
        assert all(torch.allclose(event.reward, expected(event.next_state[:, 0])) for event in updates)


def test_a_time_limit_is_no_end_and_a_completed_task_is_one(tmp_path: Path) -> None:
    algorithm = Watched()
    line_run(tmp_path, TrueReward(), algorithm, config=replace(SHORT, steps=60), task=lambda number: line_task(number, limit=12)).learn()
    updates = [event for event in algorithm.events if not isinstance(event, str)]
    ends = torch.cat([event.terminal for event in updates])
    places = torch.cat([event.next_state[:, 0] for event in updates])
    assert ends.any()
    assert torch.equal(ends, places > 2.0)  # and never at the twelfth step alone


def test_success_is_what_holds_at_any_step_and_an_evaluation_runs_to_the_step_limit() -> None:
    world = line_world()
    tasks = [line_task(0), line_task(1, limit=3), line_task(2, limit=0 + 5)]
    outcomes = evaluate(Watched(), world, Line(), tasks)
    assert [one.success for one in outcomes] == [True, True, False]  # 0.5 is passed; 0.5 is passed; begins at 0.5
    assert [one.steps for one in outcomes] == [4, 3, 5]
    assert [one.total for one in outcomes] == [0.25 + 0.5 + 0.75 + 1.0, 0.5 + 0.75 + 1.0, 0.75 + 1.0 + 1.25 + 1.5 + 1.75]
    line = records.evaluation_line(7, outcomes)
    assert (line["step"], line["tasks"], line["success"], line["return"], line["steps"]) == (7, 3, 2 / 3, (2.5 + 2.25 + 6.25) / 3, 4.0)


@pytest.mark.parametrize("rewards", [Judged, TrueReward])
@pytest.mark.parametrize("stops", [(1,), (8, 9, 10), (13, 17, 20)])
def test_a_run_that_stops_anywhere_goes_on_with_equal_numbers(tmp_path: Path, rewards: Any, stops: Sequence[int]) -> None:
    config = replace(SHORT, log_every=1)

    def algorithm() -> SAC:
        return SAC(2, 1, SAC.Config(hidden=(8,), batch=8), seed=1)

    whole = line_run(tmp_path / "whole", rewards(), algorithm(), config)
    whole.learn()
    for stop in stops:
        run = line_run(tmp_path / "parts", rewards(), algorithm(), config)
        with pytest.raises(KeyboardInterrupt):
            run.learn(lambda made, _steps, stop=stop: _interrupt(made >= stop))  # type: ignore[misc]
    run = line_run(tmp_path / "parts", rewards(), algorithm(), config)
    run.learn()
    assert same_lines(tmp_path / "parts") == same_lines(tmp_path / "whole")
    one, other = (each.algorithm.state() for each in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in ("policy", "critics", "target", "log_temperature"))


def test_tensorboard_shows_what_the_lines_say_also_of_a_run_that_stopped(tmp_path: Path) -> None:
    config = replace(SHORT, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        line_run(tmp_path, TrueReward(), config=config, show=True).learn(lambda made, _steps: _interrupt(made >= 12))
    run = line_run(tmp_path, TrueReward(), config=config, show=True)  # from step 7 on
    run.learn()
    run.close()
    lines = points(records.read_lines(tmp_path / records.METRICS), "learning/")
    assert curves(tmp_path / "tensorboard") == lines | points(records.read_lines(tmp_path / records.EVALUATIONS), "evaluation/")


def _interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def same_lines(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything written but how long it took."""
    names = (records.METRICS, records.EVALUATIONS)
    found = {name: records.read_lines(out / name) for name in names}
    return {
        name: [{key: value for key, value in line.items() if key not in ("seconds", "steps_per_second")} for line in lines]
        for name, lines in found.items()
    }


# --- episodes in Meta-World ---------------------------------------------------------------------------------------------------------


def test_repeating_the_actions_of_an_episode_brings_the_world_back_to_the_bit() -> None:
    environment = MetaWorld(())
    task = new_task("drawer-open-v3", 5, step_limit=40, hold=41)
    drawn = np.random.default_rng(1).uniform(-1, 1, (30, 4)).astype(np.float32)
    episode = Episode(environment, 2, task)
    for action in drawn[:20]:
        episode.act(action, lambda world: world.success)  # type: ignore[attr-defined]
    state = episode.state()
    other = MetaWorld(())
    Episode(other, 0, new_task("drawer-open-v3", 6, step_limit=40)).act(drawn[0], lambda _world: False)
    again = Episode.again(state, other, lambda world: world.success)  # type: ignore[attr-defined]
    assert (again.number, again.total, again.success, len(again.actions)) == (2, episode.total, episode.success, 20)
    for action in drawn[20:]:
        ours, theirs = (each.act(action, lambda world: world.success)[0] for each in (episode, again))  # type: ignore[attr-defined]
        assert np.array_equal(ours.observation.vectors["state"], theirs.observation.vectors["state"])
        assert ours.reward == theirs.reward
    state["seen"]["state"] = state["seen"]["state"] + 1e-6
    with pytest.raises(EnvironmentFailed, match="something else than before"):
        Episode.again(state, other, lambda _world: False)
    environment.close()
    other.close()


def test_learning_and_evaluation_share_no_task_and_episodes_never_end_early() -> None:
    config = recipe.decided(recipe.Config(method="true", out=Path("unused"), episode_steps=30, evaluation_tasks=5))
    world = recipe.world_of(config)
    again = recipe.world_of(replace(config, seed=9))
    assert world.evaluation == again.evaluation  # the same for every run
    learned = [world.task(number) for number in range(20)]
    assert len({task.spec["seed"] for task in learned}) == 20
    assert max(task.spec["seed"] for task in learned) < 2**31 <= min(task.spec["seed"] for task in world.evaluation)
    assert all(task.spec["hold"] > task.step_limit == 30 for task in (*learned, *world.evaluation))
    assert world.views == ()


# --- records ------------------------------------------------------------------------------------------------------------------------


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    state = {
        "random": np.random.default_rng(1).bit_generator.state,
        "none": None,
        "tuple": (1, 2.5, "three", True),
        3: [torch.arange(3), np.ones((2, 2), np.float32)],
        "empty": {},
        "nan": float("nan"),
    }
    records.write_state(tmp_path, state)
    found = records.read_state(tmp_path)
    assert found["random"] == state["random"]  # whole numbers of 128 bits
    assert found["tuple"] == (1, 2.5, "three", True)
    assert found["empty"] == {}
    assert found["none"] is None
    assert torch.equal(found[3][0], torch.arange(3))
    assert found[3][1].dtype == np.float32
    assert np.isnan(found["nan"])
    with pytest.raises(TypeError):
        records.write_state(tmp_path, {"what": object()})


def test_lines_after_the_checkpoint_and_lines_cut_off_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    records.Lines(path, until=2).append({"step": 3, "new": True})
    assert records.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "new": True}]


def test_there_is_always_a_whole_checkpoint(tmp_path: Path) -> None:
    checkpoints = records.Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.write(5, lambda folder: (folder / "a").touch())

    def fails(folder: Path) -> None:
        (folder / "a").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        checkpoints.write(10, fails)
    assert checkpoints.latest() == tmp_path / "checkpoint" / "5"
    left = tmp_path / "checkpoint" / ".12.abc.part"
    left.mkdir()
    checkpoints = records.Checkpoints(tmp_path)
    assert not left.exists()
    checkpoints.write(12, lambda folder: (folder / "b").touch())
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["12"]


# --- whole runs ---------------------------------------------------------------------------------------------------------------------

EDGES = (0.124, 0.135)  # so little is achieved in a few steps


LOOP = Config(steps=60, random_steps=10, first_session=30, every=15, first_updates=5, evaluate_every=30, log_every=5, checkpoint_every=12)


def tiny(out: Path, method: str = "erl-vlm", **changes: Any) -> recipe.Config:
    asks = recipe.source_of(method).kind is not None
    fitting = recipe.fitting_config(method)(width=8, members=1, epochs=2) if asks else None
    config = recipe.Config(
        method=method,
        out=out,
        episode_steps=25,
        evaluation_tasks=1,
        queries=12,
        quiet=True,
        edges=EDGES if recipe.source_of(method).kind == "ratings" else (),
        loop=LOOP,
        fitting=fitting,
        algorithm_settings=SAC.Config(hidden=(8, 8), batch=16),
    )
    return replace(config, **changes)


@pytest.mark.parametrize("method", ["erl-vlm", "vanilla", "rl-vlm-f", "true", "sparse"])
def test_every_method_learns_from_beginning_to_end(tmp_path: Path, method: str) -> None:
    learned = recipe.online.of(tiny(tmp_path / "out", method))
    asks = recipe.source_of(method).kind is not None
    assert learned.results["steps"] == 60
    assert learned.results["episodes"] == 3
    assert (learned.results["sessions"], learned.results["labels"]) == ((2, 24) if asks else (0, 0))
    lines = records.read_lines(tmp_path / "out" / records.METRICS)
    assert [line["step"] for line in lines] == list(range(5, 65, 5))
    assert all(np.isfinite(line["critic_loss"]) for line in lines[2:])
    assert lines[-1]["exploring"] is False
    if method == "true":
        ended = [line for line in lines if line["episodes"]]
        assert all(line["episode_return"] == pytest.approx(line["episode_learned_return"]) for line in ended)
    policy = load_policy(learned.path / recipe.POLICY)
    policy.start("")
    assert policy.step(np.zeros(39, np.float32)).shape == (4,)
    manifest = json.loads((learned.path / recipe.MANIFEST).read_text())
    assert manifest["config"]["method"] == method
    again = recipe.online.of(tiny(tmp_path / "out", method))
    assert again.kept
    assert again.results == learned.results


def test_a_run_in_the_world_that_stops_goes_on_with_equal_numbers_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe.online.of(tiny(tmp_path / "whole"))
    for stop in (20, 50):
        run_and_stop(tiny(tmp_path / "parts"), stop, monkeypatch)
    parts = recipe.online.of(tiny(tmp_path / "parts"))
    assert not parts.kept
    assert {**parts.results, "seconds": 0} == {**whole.results, "seconds": 0}
    assert same_lines(parts.path) == same_lines(whole.path)
    one, other = (json.loads((path / recipe.POLICY / "policy.json").read_text())["weights"] for path in (whole.path, parts.path))
    assert one == other
    assert (parts.path / "sessions.jsonl").read_text() == (whole.path / "sessions.jsonl").read_text()


def run_and_stop(config: recipe.Config, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises in the middle of a run, after the step's line and before its checkpoint."""
    log = OnlineRun._log

    def log_and_stop(run: OnlineRun) -> None:
        log(run)
        _interrupt(run.made >= stop)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(OnlineRun, "_log", log_and_stop)
        recipe.online.of(config)


@pytest.mark.slow
def test_pictures_are_kept_where_the_reward_model_looks_at_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = Fitting(width=8, members=1, epochs=1, channels=8)
    config = tiny(tmp_path / "parts", views=("close-no-robot",), size=16, fitting=fitting, videos=1, edges=EDGES)
    run_and_stop(config, 50, monkeypatch)
    parts = recipe.online.of(config)
    whole = recipe.online.of(replace(config, out=tmp_path / "whole"))
    assert same_lines(parts.path) == same_lines(whole.path)
    buffer = ReplayBuffer.load(parts.path / "checkpoint" / "60" / "buffer", pictures=parts.path / "pictures")
    stretch = buffer.columns(buffer.held)
    assert stretch.frames["close-no-robot"].shape == (63, 16, 16, 3)
    assert len(np.unique(stretch.frames["close-no-robot"])) > 10
    assert buffer.unknown == 0
    videos = sorted(path.parent.name for path in (parts.path / recipe.VIDEOS).glob("*/*.webp"))
    assert videos == ["step-00000000", "step-00000030", "step-00000060"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": "soccer-v3", "levels": 3}, "task"),
        ({"seed": 1}, "seed"),
        ({"levels": 2, "edges": (0.2,)}, "levels"),
        ({"teacher": "mistake"}, "teacher"),
        ({"vlm": ("scripted:noisy",)}, "vlm"),
        ({"algorithm_settings": SAC.Config(hidden=(8, 8), batch=16, discount=0.9)}, "algorithm_settings.discount was 0.99, is 0.9"),
        ({"loop": replace(LOOP, every=16)}, r"settings \(loop.every was 15, is 16\)"),
    ],
)
def test_a_folder_of_other_settings_is_refused_with_their_names(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    config = tiny(tmp_path / "out")
    records.begin_or_go_on(config.out, recipe.settings_of(recipe.decided(config)))
    with pytest.raises(RunError, match=named):
        recipe.online.of(replace(config, **changes))


def test_folders_of_others_and_folders_at_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds no such run"):
        recipe.online.of(tiny(tmp_path))
    with records.alone(tmp_path), pytest.raises(RunError, match="another process"), records.alone(tmp_path):
        pass


def test_the_budget_ends_the_sessions(tmp_path: Path) -> None:
    learned = recipe.online.of(tiny(tmp_path / "out", budget=17))
    assert (learned.results["labels"], learned.results["sessions"]) == (17, 2)
    with pytest.raises(RewardError, match="no reward model"):
        recipe.online.of(tiny(tmp_path / "same", budget=12, edges=(0.98, 0.99)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["erl-vlm", "rl-vlm-f"])
def test_a_rater_of_pictures_is_asked_through_the_store(tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {"vlm": ("scripted:perfect",), "edges": (), "queries": 3, "size": 32, "store": str(tmp_path / "store.sqlite")}
    if method == "erl-vlm":  # by equal widths nothing is better than "bad" so early
        with pytest.raises(RewardError, match="used up after 5 labels"):
            recipe.online.of(tiny(tmp_path / "out", method, budget=5, **changes))
        return
    learned = recipe.online.of(tiny(tmp_path / "out", method, **changes))
    assert 4 <= learned.results["labels"] == learned.results["requests"] <= 6  # of two pictures that look the same nothing is asked
    assert records.read_lines(learned.path / records.METRICS)[-1]["exploring"] is False
    again = recipe.online.of(tiny(tmp_path / "again", method, **changes))
    assert same_lines(again.path) == same_lines(learned.path)
    assert json.loads((again.path / "sessions.jsonl").read_text().splitlines()[0])["calls"] == 0  # nothing is asked twice


def test_a_source_of_rewards_is_added_with_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nearness(Rewards):
        def of(self, before: Observation, action: Any, step: Step, *, success: bool, instruction: str) -> float:
            return float(step.observation.frames["close"].mean()) / 255

    monkeypatch.setitem(recipe.SOURCES, "nearness", recipe.Source(lambda _config, _out: Nearness(), looks=lambda _config: ("close",)))
    assert "nearness" in recipe.sources()
    learned = recipe.online.of(tiny(tmp_path / "out", "nearness", size=16, loop=Config(steps=12, random_steps=6, log_every=6)))
    assert learned.results["steps"] == 12


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def config(**changes: Any) -> recipe.Config:
        return recipe.Config(**{"out": tmp_path, **changes})

    with pytest.raises(UnknownName, match=r"erl-vlm, rl-vlm-f, sparse, true, vanilla"):
        config(method="magic")
    for wrong in ({"error_rate": 2.0}, {"segment": 501}, {"teacher": "mistake", "vlm": ("google:x",)}, {"levels": 1}, {"max_cost": -1.0}):
        with pytest.raises(UsageError):
            config(**wrong)
    for wrong in (
        {"task": "open-sesame"},
        {"views": ("moon",)},
        {"episode_steps": 501},
        {"episode_steps": 126, "repeat": 4},
        {"algorithm": "bc"},
    ):
        with pytest.raises(UsageError):
            recipe.decided(config(**wrong))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"vlm": ("nobody:x",)}, UnknownName),
        ({"vlm": ("scripted:angry",)}, UnknownName),
        ({"vlm": ("embedded",)}, UsageError),
        ({"teacher": "myopic"}, UnknownName),
        ({"edges": (0.5,), "levels": 3}, UsageError),
        ({"vectors": ("mood",)}, UsageError),
        ({"vlm": ("openai-compatible:m@http://example.invalid/v1",)}, ConsentNeeded),
        ({"vlm": ("scripted:perfect",), "price": ("cheap",)}, UsageError),
    ],
)
def test_what_would_fail_in_the_first_session_is_refused_before_the_run_begins(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        recipe.online.of(tiny(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_methods_have_their_published_defaults() -> None:
    def decided(method: str, task: str = "drawer-open-v3") -> recipe.Config:
        return recipe.decided(recipe.Config(method=method, out=Path("unused"), task=task, loop=Config(steps=1_000_000)))

    ours, soccer, vanilla, pairs = decided("erl-vlm"), decided("erl-vlm", "soccer-v3"), decided("vanilla"), decided("rl-vlm-f")
    assert (ours.levels, soccer.levels, pairs.levels) == (3, 2, None)
    assert (ours.queries, ours.budget, ours.loop.every) == (50, 10_000, 5_000)
    assert (pairs.queries, pairs.budget, pairs.loop.every) == (40, 20_000, 4_000)
    assert (ours.fitting.loss, ours.fitting.sampler) == ("mae", "balanced")
    assert (vanilla.fitting.loss, vanilla.fitting.sampler, vanilla.fitting.weights, vanilla.fitting.boundary) == (
        "ce", "uniform", "none", "lower",
    )  # fmt: skip
    assert ours.vectors == ("state",)
    assert recipe.source_of("erl-vlm").views(ours) == ()
    assert recipe.source_of("erl-vlm").views(replace(ours, vlm=("google:some-model",))) == ("close-no-robot",)
    known = decided("true")
    assert known.loop.first_session == known.loop.random_steps == 1_000


COMMAND = [
    "--task",
    "drawer-open-v3",
    "--steps",
    "60",
    "--random-steps",
    "10",
    "--first-session",
    "30",
    "--every",
    "15",
    "--episode-steps",
    "25",
    "--evaluation-tasks",
    "1",
    "--queries",
    "12",
    "--evaluate-every",
    "30",
    "--log-every",
    "5",
    "--checkpoint-every",
    "12",
    "--sac.hidden",
    "8",
    "--sac.batch",
    "16",
    "--edges",
    "0.15",
    "0.18",
    "--quiet",
    "--fitting.width",
    "8",
    "--fitting.members",
    "1",
    "--fitting.epochs",
    "2",
]


def test_the_command_tells_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["online", "vanilla", "--out", str(tmp_path / "out"), *COMMAND]) == 0
    assert "written" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / records.CONFIG).read_text())["settings"]
    assert settings["fitting"]["loss"] == "ce"
    assert settings["algorithm_settings"]["hidden"] == [8]
    assert main(["online", "vanilla", "--out", str(tmp_path / "out"), *COMMAND]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["online", "vanilla", "--out", str(tmp_path / "out"), *COMMAND, "--seed", "4"]) == 1
    assert "seed was 0, is 4" in capsys.readouterr().err
    assert main(["online", "magic", "--out", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_killed_at_any_moment_goes_on_with_equal_numbers(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "guerdon", "online", "erl-vlm", "--out", str(out), *COMMAND]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    whole = time.monotonic() - began
    moments = random.Random(2)
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path / "parts"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.6, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run(command(tmp_path / "parts"), check=True, env=environment, capture_output=True)
    assert killed
    assert same_lines(tmp_path / "parts") == same_lines(tmp_path / "whole")
    one, other = (json.loads((tmp_path / name / recipe.MANIFEST).read_text())["results"] for name in ("whole", "parts"))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert (tmp_path / "parts" / "sessions.jsonl").read_text() == (tmp_path / "whole" / "sessions.jsonl").read_text()
