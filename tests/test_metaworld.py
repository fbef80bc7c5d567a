"""Meta-World: a spec decides everything, success has to last, and pictures are upright, not mirrored and without the robot if asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("metaworld", reason="NOT TESTED: metaworld is not installed; install 'guerdon[metaworld]'")

from guerdon.envs._metaworld_simulator import CAMERAS, CLOSE, ENVIRONMENTS, EXPERTS, VIEWS
from guerdon.envs._metaworld_words import WORDINGS, recorded_wordings
from guerdon.envs.metaworld import NAMES, STATE, MetaWorld, new_task, provenance
from guerdon.errors import EnvironmentFailed, UnknownName
from guerdon.interfaces import Observation, Step
from guerdon.records import Task

THREE = ("drawer-open-v3", "sweep-into-v3", "soccer-v3")
STILL = np.zeros(4)


def task_of(name: str = "drawer-open-v3", seed: int = 3, **changes: Any) -> Task:
    return new_task(name, seed, step_limit=150, **changes)


@pytest.fixture(scope="module")
def _drawing() -> None:
    """Skips where this machine cannot draw."""
    try:
        MetaWorld(("close",)).reset(task_of(size=16))
    except EnvironmentFailed as error:
        pytest.skip(f"NOT TESTED: {error}")


def walk(environment: MetaWorld, task: Task, actions: Sequence[Any]) -> list[Observation]:
    return [environment.reset(task), *(environment.step(action).observation for action in actions)]


def demonstrate(environment: MetaWorld, task: Task) -> list[Step]:
    """What the scripted expert does until the task ends."""
    expert = EXPERTS[task.spec["name"]]()
    seen, steps = environment.reset(task), list[Step]()
    while len(steps) < task.step_limit and not (steps and steps[-1].terminated):
        steps.append(environment.step(expert.get_action(seen.vectors[STATE].astype(np.float64))))
        seen = steps[-1].observation
    return steps


def random_actions(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4))


# --- words --------------------------------------------------------------------------------------------------------------------------


def test_every_task_of_the_simulator_has_words_of_its_own() -> None:
    assert set(NAMES) == set(ENVIRONMENTS) == set(EXPERTS)
    texts = [text for wordings in WORDINGS.values() for text in wordings]
    assert len(set(texts)) == len(texts)
    assert all(recorded_wordings(name) >= 2 for name in NAMES)
    assert all(text == text.strip() and text[0].islower() and not text.endswith(".") for text in texts)


def test_held_out_words_are_never_recorded() -> None:
    task = MetaWorld.hold_out_wording(task_of())
    assert (task.wording, task.id) == ("held-out", "drawer-open-v3/3/held-out")
    assert task.instruction == WORDINGS["drawer-open-v3"][-1]
    assert task.instruction not in WORDINGS["drawer-open-v3"][: recorded_wordings("drawer-open-v3")]
    MetaWorld(()).reset(task)


# --- places -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THREE)
def test_a_spec_decides_everything_bit_by_bit_whatever_happened_before(name: str) -> None:
    actions = random_actions(20)
    used = MetaWorld(())
    walk(used, task_of(name, 8), random_actions(60, 1))
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    again = walk(used, task_of(name), actions)
    first = walk(MetaWorld(()), task_of(name), actions)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for one, other in zip(first, again, strict=True):
        assert one.frames == {}
        assert one.vectors.keys() == {STATE}
        assert (one.vectors[STATE].dtype, one.vectors[STATE].shape) == (np.float32, (39,))
        np.testing.assert_array_equal(one.vectors[STATE], other.vectors[STATE])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_repeated_bit_by_bit(name: str) -> None:
    actions = random_actions(10)
    used = MetaWorld(())
    task, other = task_of(name, hold=200), task_of(name, 8, hold=200)  # some tasks are easy to do by chance
    walk(used, other, random_actions(100, 1))
    first, again = walk(MetaWorld(()), task, actions), walk(used, task, actions)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.vectors[STATE], two.vectors[STATE])


@pytest.mark.parametrize("name", THREE)
def test_other_seeds_put_things_elsewhere(name: str) -> None:
    starts = [MetaWorld(()).reset(task_of(name, seed)).vectors[STATE][4:7].tolist() for seed in range(4)]
    assert len({tuple(start) for start in starts}) == 4
    assert np.ptp([start[0] for start in starts]) > 0.03  # metres


@pytest.mark.parametrize("name", THREE)
def test_what_is_seen_first_is_where_things_are(name: str) -> None:
    environment = MetaWorld(())
    task = task_of(name)
    first, second = (seen.vectors[STATE] for seen in walk(environment, task, [STILL]))
    np.testing.assert_allclose(first[4:6], second[4:6], atol=2e-3)  # the object, to 2 mm (a cube may still settle in height)
    np.testing.assert_allclose(first[4], task.spec["positions"][0], atol=1e-6)
    np.testing.assert_array_equal(first[18:36], first[:18])  # one step ago was the same
    np.testing.assert_array_equal(first[36:], second[36:])
    assert first[36:].any()  # the goal is known


def test_a_randomised_start_is_the_same_task_elsewhere() -> None:
    task = task_of()
    moved = MetaWorld.randomise_start(task, np.random.default_rng(0))
    assert (moved.id, moved.start, moved.instruction) == ("drawer-open-v3/3/randomised", "randomised", task.instruction)
    assert moved.step_limit == task.step_limit
    assert moved == MetaWorld.randomise_start(task, np.random.default_rng(0))
    assert moved.spec["seed"] >= 2**31 > task.spec["seed"]
    assert moved.spec["positions"] != task.spec["positions"]
    MetaWorld(()).reset(moved)
    with pytest.raises(EnvironmentFailed, match="has a randomised start already"):
        MetaWorld.randomise_start(moved, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": [0.5, 0.9, 0.0]}, "draws other positions from this task's seed"),
        ({"seed": -1}, "damaged"),
        ({"seed": "3"}, "damaged"),
        ({"name": "no-such-v3"}, "damaged"),
        ({"wording": 99}, "damaged"),
        ({"hold": 0}, "damaged"),
        ({"repeat": 0}, "damaged"),
        ({"repeat": 1.5}, "damaged"),
        ({"size": None}, "damaged"),
        ({"positions": None}, "damaged"),
        ({"wording": 1}, "its instruction"),
    ],
)
def test_a_damaged_spec_is_refused(changes: dict[str, Any], message: str) -> None:
    task = task_of()
    with pytest.raises(EnvironmentFailed, match=message):
        MetaWorld(()).reset(replace(task, spec={**task.spec, **changes}))


def test_tasks_of_other_worlds_and_unknown_names_are_refused() -> None:
    with pytest.raises(EnvironmentFailed, match="belongs to the environment 'babyai'"):
        MetaWorld(()).reset(replace(task_of(), environment="babyai"))
    with pytest.raises(UnknownName, match="no Meta-World task 'reach-v9'"):
        task_of("reach-v9")
    with pytest.raises(UnknownName, match="no Meta-World view 'front'"):
        MetaWorld(("front",))


# --- steps --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Constant")
def test_success_has_to_last_and_ends_the_task() -> None:
    environment = MetaWorld(())
    steps, at_once = demonstrate(environment, task_of()), demonstrate(MetaWorld(()), task_of(hold=1))
    assert len(steps) == len(at_once) + 4
    for walked in (steps, at_once):
        assert [step.terminated for step in walked] == [False] * (len(walked) - 1) + [True]
        assert [step.progress for step in walked] == [0.0] * (len(walked) - 1) + [1.0]
    assert environment.success
    with pytest.raises(EnvironmentFailed, match="the task is completed"):
        environment.step(STILL)
    rewards = [step.reward for step in steps]
    assert 0 <= min(rewards) < 2 < 7 < rewards[-1] <= 10
    environment.reset(task_of())
    assert not environment.success


@pytest.mark.filterwarnings("ignore:Constant")
def test_exactly_so_many_successful_steps_end_a_task() -> None:
    environment, flags = MetaWorld(()), list[bool]()
    expert, seen = EXPERTS["sweep-into-v3"](), environment.reset(task_of("sweep-into-v3", hold=7))
    for _ in range(150):
        step = environment.step(expert.get_action(seen.vectors[STATE].astype(np.float64)))
        seen = step.observation
        flags.append(environment.success)
        if step.terminated:
            break
    assert flags[-8:] == [False] + [True] * 7


def test_an_action_that_lasts_is_that_action_again_and_again() -> None:
    chosen, lasting, single = random_actions(4), MetaWorld(()), MetaWorld(())
    lasting.reset(task_of(repeat=3))
    single.reset(task_of())
    for action in chosen:
        step, singles = lasting.step(action), [single.step(action) for _ in range(3)]
        np.testing.assert_array_equal(step.observation.vectors[STATE], singles[-1].observation.vectors[STATE])
        assert step.reward == pytest.approx(sum(each.reward for each in singles) / 3)
    for _ in range(162):  # with the four above: 498 steps of the simulator
        lasting.step(STILL)
    with pytest.raises(EnvironmentFailed, match="ends after 500 steps") as refused:
        lasting.step(STILL)
    assert "at most 166" in str(refused.value)


@pytest.mark.filterwarnings("ignore:Constant")
def test_an_action_that_lasts_ends_with_its_task() -> None:
    once = demonstrate(MetaWorld(()), task_of())
    thrice = demonstrate(MetaWorld(()), task_of(repeat=3))
    assert thrice[-1].terminated
    assert len(thrice) < len(once) / 2


def test_a_task_of_single_steps_is_written_down_as_ever() -> None:
    assert "repeat" not in task_of().spec
    assert task_of(repeat=1) == task_of()
    assert task_of(repeat=2).spec["repeat"] == 2


def test_actions_are_clipped() -> None:
    large = walk(MetaWorld(()), task_of(), [np.array([7.0, -3.0, 1.5, -9.0])] * 3)
    whole = walk(MetaWorld(()), task_of(), [np.array([1, -1, 1, -1], np.int64)] * 3)
    for one, other in zip(large, whole, strict=True):
        np.testing.assert_array_equal(one.vectors[STATE], other.vectors[STATE])


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 4)), np.array([0, np.nan, 0, 0]), "left", 2, None])
def test_what_is_no_action_is_refused(action: Any) -> None:
    environment = MetaWorld(())
    environment.reset(task_of())
    with pytest.raises(EnvironmentFailed, match="is no action; it has 4 finite components"):
        environment.step(action)


def test_nothing_steps_before_a_reset_or_beyond_the_simulator_s_end() -> None:
    environment = MetaWorld(())
    with pytest.raises(EnvironmentFailed, match="no task has begun"):
        environment.step(STILL)
    environment.reset(task_of())
    for _ in range(500):
        environment.step(STILL)
    with pytest.raises(EnvironmentFailed, match="ends after 500 steps"):
        environment.step(STILL)
    environment.close()
    with pytest.raises(EnvironmentFailed, match="no task has begun"):
        environment.step(STILL)


# --- pictures -----------------------------------------------------------------------------------------------------------------------


def _red(picture: npt.NDArray[np.uint8]) -> int:
    """Number of pixels in the colour of the arm."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return int(((red > 100) & (green < 60) & (blue < 60)).sum())


def _green(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean (column, row) of the pixels of the goal's marker."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    rows, columns = np.nonzero((green > 150) & (red < 80) & (blue < 80))
    assert len(rows) > 0
    return np.array([columns.mean(), rows.mean()])


def _seen_upright(environment: MetaWorld, camera: str, place: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Where a camera that hangs neither upside down nor in a mirror shows a place: (column, row)."""
    assert environment._world is not None
    model, data = environment._world._model, environment._world.data
    number = model.camera(camera).id
    backward = data.cam_xmat[number].reshape(3, 3)[:, 2]
    up = data.cam_xmat[number].reshape(3, 3)[:, 1]
    up = up if up[2] > -0.01 else -up
    right = np.cross(up, backward)
    offset = place - data.cam_xpos[number]
    reach = -(offset @ backward) * np.tan(np.radians(model.cam_fovy[number]) / 2)
    return size / 2 * np.array([1 + offset @ right / reach, 1 - offset @ up / reach])


@pytest.mark.usefixtures("_drawing")
@pytest.mark.parametrize("camera", ["corner", "corner2", "corner3", "corner4", "topview"])
def test_pictures_are_upright_and_not_mirrored(camera: str) -> None:
    view = f"{camera}-no-robot"
    environment = MetaWorld((view,))
    seen = environment.reset(task_of(seed=1, size=192))
    goal = seen.vectors[STATE][36:].astype(np.float64)
    np.testing.assert_allclose(_green(seen.frames[view]), _seen_upright(environment, camera, goal, 192), atol=2)


@pytest.mark.usefixtures("_drawing")
def test_the_close_camera_is_upright_and_looks_from_the_robot_s_right() -> None:
    environment = MetaWorld(("close-no-robot",))
    places = {}
    for seed in range(6):
        seen = environment.reset(task_of(seed=seed, size=192))
        places[float(seen.vectors[STATE][36])] = _green(seen.frames["close-no-robot"])
    left, right = places[min(places)], places[max(places)]
    assert right[1] > left[1] + 5  # what lies further to the robot's right is nearer, so lower in the picture
    assert right[0] > left[0] + 5  # and further to the right; a mirror would show it further to the left


@pytest.mark.usefixtures("_drawing")
def test_the_robot_is_hidden_where_asked_and_nothing_else() -> None:
    environment = MetaWorld(("corner2", "corner2-no-robot", "close", "close-no-robot"))
    frames = environment.reset(task_of()).frames
    assert tuple(frames) == environment.views
    assert {(frame.shape, frame.dtype.name) for frame in frames.values()} == {((128, 128, 3), "uint8")}
    for camera in ("corner2", "close"):
        assert _red(frames[camera]) > 100
        assert _red(frames[f"{camera}-no-robot"]) == 0
        np.testing.assert_allclose(_green(frames[camera]), _green(frames[f"{camera}-no-robot"]), atol=1)


@pytest.mark.usefixtures("_drawing")
def test_pictures_show_what_happens_and_repeat_bit_by_bit() -> None:
    environment = MetaWorld(("close-no-robot", "close"))
    task = task_of("soccer-v3", 3, size=48)
    first, again = (walk(environment, task, random_actions(6)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for view in environment.views:
            np.testing.assert_array_equal(one.frames[view], other.frames[view])
    assert (first[0].frames["close"] != first[-1].frames["close"]).any()
    environment.close()
    environment.close()


@pytest.mark.usefixtures("_drawing")
@pytest.mark.slow
def test_every_view_of_every_tenth_task_can_be_drawn() -> None:
    for name in NAMES[::10]:
        environment = MetaWorld(VIEWS)
        frames = environment.reset(task_of(name, size=32)).frames
        assert len(frames) == len(VIEWS) == 2 * len((CLOSE, *CAMERAS))
        assert all(frame.std() > 3 for view, frame in frames.items() if not view.startswith("gripperPOV")), name
        environment.close()


WITHOUT_EGL = """
import ctypes

class Without(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name and "libEGL" in name:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = Without
ctypes.cdll._dlltype = Without
from guerdon.envs.metaworld import MetaWorld, new_task
from guerdon.errors import EnvironmentFailed
task = new_task("drawer-open-v3", 3, step_limit=9)
print(MetaWorld(()).reset(task).vectors["state"].shape)
try:
    MetaWorld(("close",)).reset(task)
except EnvironmentFailed as error:
    print(error)
"""


def test_without_a_library_to_draw_with_states_are_there_and_pictures_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if sys.platform != "linux":
        pytest.skip("other systems draw without a library of their own")
    done = subprocess.run([sys.executable, "-c", WITHOUT_EGL], capture_output=True, text=True, check=True)
    shape, message = done.stdout.splitlines()
    assert shape == "(39,)"
    assert message.startswith("pictures cannot be drawn on this machine (")
    assert "install libegl1, libegl-mesa0 and libgl1-mesa-dri" in message
    assert "--views none" in message


@pytest.mark.usefixtures("_drawing")
def test_nothing_is_printed_when_a_program_ends_without_closing() -> None:
    program = (
        "from guerdon.envs.metaworld import MetaWorld, new_task\n"
        "environment = MetaWorld(('close',))\n"
        "environment.reset(new_task('drawer-open-v3', 3, step_limit=9, size=16))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_dataset_says_which_versions_gave_its_positions() -> None:
    said = provenance(("soccer-v3",))
    assert (said["name"], said["tasks"]) == ("metaworld", ["soccer-v3"])
    assert said.keys() >= {"pictures", "metaworld", "mujoco", "gymnasium", "numpy"}
