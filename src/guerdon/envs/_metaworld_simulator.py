"""Meta-World's simulator, made reproducible, and its pictures, made fast and upright.

What the stock environments do and this module does not:

- the seed of `reset` is ignored there; here the positions that a seed gives are drawn first, and the world is then reset to them;
- what is seen first shows some objects where they were before the reset; here everything is put in its place before it is looked at;
- an episode depends a little on those before it; here all that a reset leaves behind is put back;
- pictures of the corner cameras are upside down, and take ten times as long for shadows, reflections and smooth edges.

Pictures of all worlds of one task are drawn by one drawing context, since each holds about 70 MB.
"""

from __future__ import annotations

import atexit
import copy
import importlib
import os
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.errors import EnvironmentFailed
from guerdon.records import Frames

LONGEST = 500
"""Steps after which the simulator refuses to go on."""

CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""The simulator's own cameras."""
CLOSE = "close"
"""A camera of ours: near the middle of the table, on the side where the arm hides little."""
WITHOUT_ROBOT = "-no-robot"
"""What follows a camera's name in a view without the robot."""
VIEWS = tuple(camera + ending for camera in (CLOSE, *CAMERAS) for ending in ("", WITHOUT_ROBOT))

_LOOK_AT, _DISTANCE, _AZIMUTH, _ELEVATION = (0.0, 0.72, 0.05), 0.9, 150.0, -45.0
"""Where the close camera looks: metres from the robot's foot, and degrees."""
_UPSIDE_DOWN = -0.1
"""A camera whose upward axis points further down than this hangs upside down."""
_HIDDEN = 5
"""Group of geometries and sites that the robot is moved to; the models use the groups 0 to 4."""
_KEPT_DRAWINGS = 3
"""Drawing contexts kept for later worlds; the least recently used one is given back."""

Floats = npt.NDArray[np.float64]


def _libraries() -> tuple[Any, Any, Any]:
    """The libraries: `mujoco`, the environment classes, the scripted experts' classes. Raises EnvironmentFailed."""
    try:
        mujoco = importlib.import_module("mujoco")
        environments = importlib.import_module("metaworld.env_dict").ENV_CLS_MAP
        experts = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
    except (AttributeError, RuntimeError) as error:  # how mujoco fails when MUJOCO_GL names what is not there
        what = f"mujoco cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({type(error).__name__}: {error})"
        raise EnvironmentFailed(what, cure="Unset MUJOCO_GL, or install the library that it names.") from error
    return mujoco, environments, experts


mujoco, ENVIRONMENTS, EXPERTS = _libraries()


@dataclass(frozen=True)
class Outcome:
    """What one step led to."""

    state: npt.NDArray[np.float32]
    """(39,)"""
    reward: float
    """The simulator's own, 0 to 10."""
    success: bool


class World:
    """The simulated world of one task; one object is reset as often as wanted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._environment = environment = ENVIRONMENTS[name]()
        environment._partially_observable = False  # the goal's position is part of the state
        environment.__dict__.pop("sawyer_observation_space", None)
        environment._set_task_called = True
        environment.seeded_rand_vec = True
        self._model, self.data = environment.model, environment.data
        values = environment.__dict__.items()
        self._attributes = copy.deepcopy({key: value for key, value in values if isinstance(value, _PLAIN)})
        self._placed = {part: getattr(self._model, part).copy() for part in _PLACES}
        self.positions: tuple[float, ...] = ()

    def reset(self, seed: int) -> npt.NDArray[np.float32]:
        """Begins an episode from the positions that `seed` gives, which `positions` then holds. Returns the first state, (39,)."""
        self._undo()
        environment = self._environment
        environment.seed(seed)
        environment._freeze_rand_vec = False
        environment.reset()
        drawn = environment._last_rand_vec.copy()
        self._undo()
        environment._freeze_rand_vec, environment._last_rand_vec = True, drawn
        environment.reset()
        self.positions = tuple(drawn.tolist())
        mujoco.mj_forward(self._model, self.data)
        for name, place in environment._target_site_config:
            self.data.site(name).xpos = place[:3]
        now = environment._get_curr_obs_combined_no_goal()
        environment._prev_obs = now
        return self._state(np.hstack((now, now, environment._get_pos_goal())))

    def _undo(self) -> None:
        """Puts back whatever resets and steps leave behind, besides what every reset sets."""
        for key, value in copy.deepcopy(self._attributes).items():
            setattr(self._environment, key, value)
        for part, values in self._placed.items():
            getattr(self._model, part)[:] = values
        mujoco.mj_resetData(self._model, self.data)
        mujoco.mj_forward(self._model, self.data)

    def step(self, action: Floats) -> Outcome:
        """Carries out one action, (4,) in [-1, 1]. Raises EnvironmentFailed if the simulation became unstable."""
        state, reward, _, _, info = self._environment.step(action)
        if self._environment._did_see_sim_exception or not np.isfinite(state).all():
            raise EnvironmentFailed(f"the simulation of '{self.name}' became unstable", cure="Use other actions or another seed.")
        return Outcome(self._state(state), float(reward), bool(info["success"]))

    def _state(self, state: Floats) -> npt.NDArray[np.float32]:
        space = self._environment.sawyer_observation_space
        return np.clip(state, space.low, space.high).astype(np.float32)

    def draw(self, views: tuple[str, ...], size: int) -> dict[str, Frames]:
        """View -> (size, size, 3), upright. Raises EnvironmentFailed if this machine cannot draw."""
        if not views:
            return {}
        drawing = _drawing(self.name, size)
        return {view: drawing.draw(self.data, view) for view in views}

    def close(self) -> None:
        """Gives the simulator back."""
        self._environment.close()


_PLAIN = (np.ndarray, int, float, bool, str, list, tuple, type(None))
"""Types of the environment's attributes that an episode may change and that are put back."""
_PLACES = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat", "qpos0", "eq_data")
"""Parts of a model that environments change when they reset."""


class _Drawing:
    """A drawing context for the worlds of one task. It has a model of its own, in which the robot can be hidden; where things are it reads
    from the data of the world to be drawn."""

    def __init__(self, name: str, size: int) -> None:
        environment = ENVIRONMENTS[name]()
        self._model = model = environment.model
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), np.uint8)
        self._robot_into_a_group_of_its_own()
        model.vis.quality.offsamples = 0  # before the context is made: smooth edges halve the speed
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        try:
            self._context = _opengl(size)
            self._buffers = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:  # EGL's, OpenGL's and mujoco's errors have no common class
            what = f"pictures cannot be drawn on this machine ({type(error).__name__}: {str(error)[:200]})"
            cure = (
                "On Debian or Ubuntu install libegl1, libegl-mesa0 and libgl1-mesa-dri, and leave MUJOCO_GL unset; "
                "or draw no pictures (--views none)."
            )
            raise EnvironmentFailed(what, cure=cure) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffers)
        self._options = {hidden: self._option(hidden) for hidden in (False, True)}
        self._cameras = {camera: self._camera(camera) for camera in (CLOSE, *CAMERAS)}

    def _camera(self, name: str) -> Any:
        camera = mujoco.MjvCamera()
        if name == CLOSE:
            camera.type = mujoco.mjtCamera.mjCAMERA_FREE
            camera.lookat[:] = _LOOK_AT
            camera.distance, camera.azimuth, camera.elevation = _DISTANCE, _AZIMUTH, _ELEVATION
        else:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(name).id
        return camera

    def _robot_into_a_group_of_its_own(self) -> None:
        model = self._model
        roots = {model.body("base").id, model.body("mocap").id}
        robot = np.zeros(model.nbody, bool)
        for body in range(model.nbody):  # a parent's number is below its children's
            robot[body] = body in roots or robot[model.body_parentid[body]]
        for bodies, groups in ((model.geom_bodyid, model.geom_group), (model.site_bodyid, model.site_group)):
            groups[robot[bodies] & (groups < 3)] = _HIDDEN  # groups from 3 on are not drawn as it is

    @staticmethod
    def _option(hidden: bool) -> Any:
        option = mujoco.MjvOption()
        option.geomgroup[_HIDDEN] = option.sitegroup[_HIDDEN] = not hidden
        return option

    def draw(self, data: Any, view: str) -> Frames:
        """(size, size, 3)"""
        camera = view.removesuffix(WITHOUT_ROBOT)
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options[camera != view], None, self._cameras[camera], everything, self._scene)
        flags = self._scene.flags  # reset by every update of the scene
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        mujoco.mjr_render(self._rectangle, self._scene, self._buffers)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._buffers)
        picture = self._pixels[::-1]  # OpenGL counts rows from below
        if camera != CLOSE and data.camera(camera).xmat[7] < _UPSIDE_DOWN:  # the vertical part of the camera's upward axis
            picture = picture[::-1, ::-1]  # turned by half; turning over one axis only would swap left and right
        return np.array(picture, order="C")

    def close(self) -> None:
        self._context.make_current()
        self._buffers.free()
        self._context.free()


def _opengl(size: int) -> Any:
    """An OpenGL context to draw in, made current: what MUJOCO_GL names, else on Linux EGL, which needs no display."""
    own_choice = sys.platform == "linux" and not os.environ.get("MUJOCO_GL")
    context_class = importlib.import_module("mujoco.egl" if own_choice else "mujoco.gl_context").GLContext
    context = context_class.__new__(context_class)
    context._context = None  # without it, a context that cannot be made complains again when it is forgotten
    context.__init__(size, size)
    context.make_current()
    return context


_drawings: OrderedDict[tuple[str, int], _Drawing] = OrderedDict()


def _drawing(name: str, size: int) -> _Drawing:
    """The drawing context for worlds of a task at a size, made when it is first needed."""
    if (name, size) not in _drawings:
        first = not _drawings
        _drawings[name, size] = _Drawing(name, size)
        if first:
            atexit.register(close_drawings)  # after mujoco's own, so that it comes before: later is too late for EGL
    _drawings.move_to_end((name, size))
    while len(_drawings) > _KEPT_DRAWINGS:
        _drawings.popitem(last=False)[1].close()
    return _drawings[name, size]


def close_drawings() -> None:
    """Gives all drawing contexts back; they are made anew when they are needed."""
    while _drawings:
        _drawings.popitem()[1].close()
