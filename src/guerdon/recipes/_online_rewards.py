"""Rewards that are learned from judgements, session after session: between `guerdon.training.online`, which learns from rewards, and
`guerdon.recipes.feedback`, which asks and fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from guerdon.datasets.minari import RecordedEpisode
from guerdon.envs.metaworld import provenance
from guerdon.errors import UsageError
from guerdon.interfaces import Observation, Step
from guerdon.recipes import feedback
from guerdon.replay_buffer import ReplayBuffer, Stretch
from guerdon.rewards.steps import Look, StepArrays
from guerdon.seeding import generator
from guerdon.training.online import Rewards, Spent

if TYPE_CHECKING:
    from guerdon.recipes.online import Config


class JudgedReward(Rewards):
    """The rewards of a model that is fitted on in sessions (see `guerdon.recipes.feedback`)."""

    asks = True

    def __init__(self, config: Config, out: Path) -> None:
        """Args: config: with everything decided; out: the folder of the run. Raises as `guerdon.recipes.feedback.Sessions` does."""
        self._config, self._out = config, out
        self._asked = feedback_config(config)
        self._look = look_of(config)
        self._sessions = feedback.Sessions(out, self._asked, **self._about())

    def _about(self) -> dict[str, Any]:
        return {"look": self._look, "seed": self._config.seed, "environment": provenance([self._config.task])}

    def of(self, before: Observation, action: npt.NDArray[np.float32], step: Step, *, success: bool, instruction: str) -> float:
        del success
        if self._sessions.model is None:
            return float("nan")
        return float(self._sessions.score(arrays_of_one(self._look, before, action, step.observation, instruction))[0])

    def hold(self, buffer: ReplayBuffer) -> bool:
        config, number = self._config, self.sessions + 1
        assert config.queries is not None
        pieces = 2 if self._asked.method == "preference" else 1
        count = min(config.queries, len(buffer.starts(config.segment)) // pieces) * pieces
        if not count:
            return False
        segments = buffer.segments(generator(config.seed, "online", "session", number), count, config.segment)
        episodes = [RecordedEpisode(**vars(excerpt)) for excerpt in buffer.recorded(segments)]
        return self._sessions.hold(number, episodes).fitted is not None

    def relabel(self, buffer: ReplayBuffer, *, batch: int) -> None:
        buffer.relabel(lambda stretch: self._sessions.score(arrays_of(self._look, stretch)), batch=batch)

    @property
    def sessions(self) -> int:
        return len(self._sessions.results)

    @property
    def exhausted(self) -> bool:
        return self._sessions.ended

    @property
    def spent(self) -> Spent:
        return Spent(self._sessions.obtained, self._sessions.requests, self._sessions.dollars)

    def go_back(self, sessions: int) -> None:
        about = self._about()
        if sessions:
            self._sessions = feedback.Sessions.resume(self._out, self._asked, last=sessions, **about)
        else:
            self._sessions = feedback.Sessions(self._out, self._asked, **about)


def feedback_config(config: Config) -> feedback.Config:
    """What sessions are to be like. Raises UsageError or UnknownName for settings that cannot be."""
    from guerdon.recipes.online import SCRIPTED, source_of

    preferences = source_of(config.method).kind == "preferences"
    asked = config.vlm != SCRIPTED
    return feedback.Config(
        method="preference" if preferences else "rating",
        levels=config.levels or feedback.Config.levels,
        vlm=config.vlm if asked else (),
        teacher="" if config.teacher == "perfect" else config.teacher,
        rate=config.error_rate,
        temperature=config.temperature,
        edges=config.edges,
        max_labels=config.budget,
        max_dollars=config.max_cost,
        pessimism=config.pessimism,
        transform=config.transform,
        views=(config.rater_view,) if asked else (),
        price=config.price,
        concurrency=config.concurrency,
        store=config.store,
        yes=config.yes,
        quiet=config.quiet,
        rater_settings=config.rater_settings,
        fitting=config.fitting,
    )


def look_of(config: Config) -> Look:
    """What the reward model takes in. Raises UsageError for a vector that there is not."""
    from guerdon.recipes.online import vector_sizes

    sizes = vector_sizes(config.task)
    for name in config.vectors:
        if name not in sizes:
            raise UsageError(f"there is no vector '{name}'; there are: {', '.join(sizes)}")
    views = dict.fromkeys(config.views, (config.size, config.size))
    return Look(views=views, vectors={name: sizes[name] for name in config.vectors})


def arrays_of(look: Look, stretch: Stretch) -> StepArrays:
    """What a model looks at of transitions in a buffer."""
    after = stretch.before + 1
    shown = (stretch.before, after) if look.pictures == 2 else (after,)
    return _arrays(look, stretch.frames, stretch.vectors, shown, stretch.action, stretch.instruction, stretch.instructions)


def arrays_of_one(look: Look, before: Observation, action: npt.NDArray[np.float32], after: Observation, instruction: str) -> StepArrays:
    """What a model looks at of a transition that happens."""
    seen = (before, after)
    frames = {view: np.stack([one.frames[view] for one in seen]) for view in look.views}
    vectors = {name: np.stack([one.vectors[name] for one in seen]) for name in look.vectors}
    shown = (np.zeros(1, np.int64), np.ones(1, np.int64)) if look.pictures == 2 else (np.ones(1, np.int64),)
    return _arrays(look, frames, vectors, shown, action[None], np.zeros(1, np.int64), (instruction,))


def _arrays(
    look: Look,
    frames: Mapping[str, npt.NDArray[np.uint8]],
    vectors: Mapping[str, npt.NDArray[np.float32]],
    shown: tuple[npt.NDArray[np.int64], ...],
    action: npt.NDArray[np.float32],
    instruction: npt.NDArray[np.int64],
    instructions: tuple[str, ...],
) -> StepArrays:
    """Transitions whose observations are `shown`, in order of time: rows of the observations in `frames` and `vectors`."""
    count = len(action)
    parts = [vectors[name][rows] for rows in shown for name in look.vectors]
    return StepArrays(
        frames={view: frames[view] for view in look.views},
        picture=np.stack(shown, 1),
        vector=np.concatenate(parts, 1) if parts else np.zeros((count, 0), np.float32),
        action=action if look.action_size else np.zeros((count, 0), np.float32),
        instruction=instruction,
        instructions=instructions,
        words=look.words,
    )
