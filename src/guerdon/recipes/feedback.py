"""Feedback while learning: sessions in which a rater is asked about what an agent did, and a reward model that learns from all of them.

ERL-VLM (ratings) and RL-VLM-F (preferences) let an agent learn and, every so many steps, ask a rater about segments of what it has done.
The problem: such a run takes days and may be killed at any moment, while every question costs money. So each session is archived before
anybody is asked, a question is paid for once, and a session that is there is kept: a killed run that repeats its steps finds the same
segments judged and the same model fitted.

    sessions = Sessions(out, Config(levels=3, vlm=("google:gemini-2.5-flash",), max_dollars=5), look=look, seed=0, environment=world)
    result = sessions.hold(1, episodes)         # asks, fits
    if sessions.model is not None:
        rewards = sessions.score(arrays)        # (N,) float32
    sessions = Sessions.resume(out, config, look=look, seed=0, environment=world, last=1)

Who is asked: any rater of `guerdon label`, through the reply store; or, without `vlm`, a scripted teacher that knows the true quality of
each segment (the recorded "quality") and errs in one named way. It needs no pictures.

Writes into OUT:

    feedback.json                       who is asked what, and how models are fitted; another run is refused by it
    sessions.jsonl                      a line a session: what was asked, obtained and paid, and how many labels each class has
    sessions/0003/content.json          digest of the segments, written first
    sessions/0003/data, run             the segments as a dataset, and a run folder with their labels, as `guerdon label` makes them
    sessions/0003/model                 the model after this session; absent if there was nothing new to learn from
    sessions/0003/session.json          the result, written last: the session is whole

All models are kept and not only the last two: a checkpoint of the agent may be older than the last sessions, and must find the model that
it was learning from. A model takes a megabyte or two, less than the pictures of one session.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from tyro.conf import Suppress

from guerdon import samples
from guerdon.datasets import open_dataset
from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.errors import DatasetError, RewardError, RunError, UnknownName, UsageError
from guerdon.evaluation.truth import confuse, digitise, draw_classes, equal_edges, myopic_return, prefer
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.recipes import _study, raters
from guerdon.recipes import label as labelling
from guerdon.recipes.data import label_set_of, model_fingerprint
from guerdon.recipes.settings import as_record
from guerdon.records import Label, State, canonical_json, digest
from guerdon.runs import Manifest, Run, read_json, write_json
from guerdon.seeding import generator, stream_seed

if TYPE_CHECKING:
    from guerdon.rewards._ensemble import EnsembleModel
    from guerdon.rewards.fitting import Config as Fitting
    from guerdon.rewards.steps import Judgements, Look, StepArrays

Kind = Literal["rating", "preference"]
Floats = npt.NDArray[np.float64]

FORMAT = 1
SETTINGS, LINES = "feedback.json", "sessions.jsonl"
_SESSIONS, _CONTENT, _RESULT = "sessions", "content.json", "session.json"
_QUALITY = "quality"

TEACHERS: Mapping[Kind, Mapping[str, str]] = {
    "rating": {
        "perfect": "the class of the quality",
        "mistake": "at the rate, another class, drawn evenly from all the others",
        "adjacent": "at the rate, a class more or less",
        "optimism": "at the rate, a class more",
        "stochastic": "a class drawn by how far its middle is from the quality (`temperature`)",
        "skip": "at the rate, nothing",
    },
    "preference": {
        "oracle": "the one of higher return",
        "mistake": "at the rate, the other one",
        "noisy": "the second one with the logistic function of (difference of returns) / temperature",
        "skip": "nothing if both returns are at most rate x the session's mean return",
        "myopic": "the one of higher return, in which each step counts `discount` times as much as the next",
        "equal": "neither, if the returns differ by no more than rate x the session's mean return",
    },
}
"""Error models of the scripted teacher: those of B-Pref (Lee et al. 2021, arXiv 2111.03026, section 4) for preferences, and the same
carried over to classes. A quality is a mean over a segment, a return is a sum."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Who is asked what in each session, and how the reward model learns from it.

    Raises:
        UsageError, UnknownName: for settings that cannot be.
    """

    method: Kind = "rating"
    """What is asked: which class a segment is in, or which of two segments is better."""
    levels: int = 3
    """Number of classes, 2 to 5 (ratings only)."""
    vlm: tuple[str, ...] = ()
    """Who is asked, as for `guerdon label`; the scripted teacher if not given."""
    teacher: str = ""
    """Error model of the scripted teacher. Ratings: perfect, mistake, adjacent, optimism, stochastic, skip; preferences: oracle, mistake,
    noisy, skip, myopic, equal. The one without errors if not given."""
    rate: float = 0.1
    """How often the scripted teacher makes its error; of the teachers skip and equal of preferences, the share of the mean return below
    which they say nothing, or see no difference."""
    temperature: float = 0.1
    """Of the scripted teachers stochastic and noisy, in units of quality; 0.1 is B-Pref's beta of 1 for rewards from 0 to 10."""
    discount: float = 0.9
    """Of the scripted teacher myopic."""
    edges: tuple[float, ...] = ()
    """Qualities at which the scripted teacher's next class begins, one fewer than there are classes; equal widths of [0, 1] if not
    given."""
    max_labels: int | None = None
    """Most labels that may be obtained in all sessions; a question that got no answer does not count."""
    max_dollars: float | None = None
    """Most US dollars that all sessions may cost. Nothing is sent that could break it."""
    passes: int = 10
    """Most passes over all labels in a session, as published."""
    least_updates: int = 100
    """More passes are made if so few labels are there that the passes are fewer gradient steps than this; 1 for the published behaviour,
    in which fifty labels are ten gradient steps."""
    pessimism: float = 0.0
    """c of the reward, mean - c x spread over the members."""
    transform: Literal["raw", "unit"] = "raw"
    """Rewards on the model's own scale, [-1, 1], or brought to [0, 1]."""
    threads: int = 1
    """Threads of torch while fitting and scoring; the numbers may depend on it."""
    views: tuple[str, ...] = ()
    """Cameras that the rater sees; the first one if not given."""
    repeats: int = 1
    """Independent answers to each question."""
    frames: int = 16
    """Most observations that are shown of a segment of several transitions."""
    price: tuple[str, ...] = ()
    """Dollars per million tokens, as INPUT,OUTPUT, of a model without a known price."""
    concurrency: int = 16
    """Most conversations in flight at once."""
    requests_per_minute: float | None = None
    """Most requests a minute to each rater."""
    patience: float = 600.0
    """Seconds without a single answer after which a rater that does not respond is given up."""
    store: str | None = None
    """The reply store; the user's own if not given."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider."""
    quiet: bool = False
    """Show no progress of asking."""
    rater_settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Config of each provider by the name of its file; defaults if not given."""
    fitting: Suppress[Any] = None
    """How to fit (`guerdon.rewards.fitting.Config`); those of `fitting_preset` for the method if not given. Epochs that are given there
    stand instead of `passes`."""

    def __post_init__(self) -> None:
        from guerdon.methods.rating import CLASSES

        if self.method not in TEACHERS:
            raise UnknownName("method of feedback", self.method, TEACHERS)
        if self.levels not in CLASSES:
            raise UsageError(f"levels is a number of classes from {min(CLASSES)} to {max(CLASSES)}, got {self.levels}")
        if self.teacher and self.vlm:
            raise UsageError("both a rater and a scripted teacher are given", cure="Give --vlm or --teacher.")
        if self.teacher and self.teacher not in TEACHERS[self.method]:
            raise UnknownName(f"scripted teacher of {self.method}s", self.teacher, TEACHERS[self.method])
        if not 0 <= self.rate <= 1 or not 0 < self.discount <= 1 or not 0 < self.temperature < math.inf:
            what = f"rate lies in [0, 1], discount in (0, 1], temperature is above 0, got {self.rate}, {self.discount}, {self.temperature}"
            raise UsageError(what)
        if self.edges and (len(self.edges) != self.levels - 1 or not (np.diff([0.0, *self.edges, 1.0]) > 0).all()):
            raise UsageError(f"{self.levels} classes have {self.levels - 1} edges that rise within (0, 1), got {self.edges}")
        for name in ("passes", "least_updates", "threads", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")
        for name in ("max_labels", "max_dollars"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} is a number above 0, got {value}")
        if not 0 <= self.pessimism < math.inf or self.transform not in ("raw", "unit"):
            raise UsageError(f"pessimism is not negative and transform is raw or unit, got {self.pessimism} and {self.transform}")

    @property
    def error_model(self) -> str:
        """The scripted teacher in force; empty if a rater is asked."""
        return "" if self.vlm else self.teacher or next(iter(TEACHERS[self.method]))

    @property
    def rater(self) -> str:
        """Who is asked, for tables."""
        return " then ".join(self.vlm) if self.vlm else f"teacher:{self.error_model}"

    @property
    def class_edges(self) -> tuple[float, ...]:
        """Where the scripted teacher's classes meet."""
        return self.edges or equal_edges(self.levels)


def fitting_preset(name: str) -> Fitting:
    """How the published methods fit their reward models, with this package's better defaults where those are no part of the method.

    erl-vlm: mean absolute error, every class in every batch, rare classes weigh more. vanilla: rating-based reinforcement learning without
    those three (cross entropy, shuffled batches, no weights). rl-vlm-f: cross entropy of preferences. (`guerdon.recipes.online.SOURCES`)

    Raises:
        UnknownName: for a method that there is not.
    """
    from guerdon.recipes.online import source_of
    from guerdon.rewards.fitting import Config as Fitting

    return Fitting(**source_of(name).fitting)


def require_askable(config: Config, environment: Mapping[str, Any]) -> None:
    """Makes sure, before a run begins, that its raters can be built, read such worlds, and may be sent pictures: a session that finds out
    comes after hours. Nobody is asked anything yet.

    Args:
        environment: what is known of the world, as `Sessions` takes it.

    Raises:
        UnknownName, UsageError, ProviderError, MissingExtra: if a rater cannot be built, or reads other worlds only.
        ConsentNeeded: if the user does not agree to pictures leaving this machine.
    """

    def nothing(_subject: Any) -> npt.NDArray[np.float64]:
        raise LookupError

    raters.prices_of(config.vlm, config.price)
    for spec in config.vlm:
        raters.check_world(spec, environment)
        if raters.provider_of(spec) == "hf":  # building one reads its weights; they stay on this machine
            continue
        settings = config.rater_settings.get(raters.provider_of(spec))
        provider = raters.build(spec, config=settings, truth=nothing, qualities=nothing, truth_id="", world=environment)
        raters.require_consent(provider, yes=config.yes)


# --- what comes out of a session ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SessionResult:
    """What a session brought. Equal for a session that was held and one that was kept, but for `kept`."""

    number: int
    asked: int
    """Things (segments or pairs) that the rater was asked about."""
    obtained: int
    """Those of them that have a label now."""
    calls: int
    """Requests that were sent for it: two for each thing in two-stage methods, none for what lay in the store."""
    dollars: float
    """What it cost, as far as prices are known, and where they are not the most that it can have been."""
    classes: Mapping[str, int]
    """Labels of each class in this session, the worst class first; of pairs: first, neither, second."""
    all_classes: Mapping[str, int]
    """The same over all sessions."""
    stopped: str = ""
    """Why not all was asked: the ceiling was reached. Empty if all was."""
    ceiling: float | None = None
    """US dollars that all sessions might cost when this one was held."""
    fitted: Mapping[str, Any] | None = None
    """What fitting says of the model (`guerdon.rewards.fitting.Fitted.results`); None if the model stayed as it was."""
    not_fitted: str = ""
    """Why the model stayed as it was: nothing new, or all labels are of one class. Empty if it was fitted."""
    kept: bool = field(default=False, compare=False)
    """Whether the session was there already."""

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        record = asdict(self) | {"classes": list(map(list, self.classes.items())), "all_classes": list(map(list, self.all_classes.items()))}
        del record["kept"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SessionResult:
        """The inverse of `to_record`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(**{**record, "classes": dict(record["classes"]), "all_classes": dict(record["all_classes"]), "kept": True})

    @property
    def line(self) -> dict[str, Any]:
        """Its line in the log of sessions."""
        held_out = (self.fitted or {}).get("held_out") or {}
        training = (self.fitted or {}).get("training") or {}
        return {
            "session": self.number,
            "asked": self.asked,
            "obtained": self.obtained,
            "calls": self.calls,
            "dollars": self.dollars,
            "classes": dict(self.classes),
            "all_classes": dict(self.all_classes),
            "stopped": self.stopped,
            "not_fitted": self.not_fitted,
            "updates": (self.fitted or {}).get("updates"),
            "epochs": (self.fitted or {}).get("epochs"),
            "fitting_stopped": (self.fitted or {}).get("stopped"),
            "balanced_accuracy": training.get("balanced_accuracy"),
            "balanced_accuracy_held_out": held_out.get("balanced_accuracy"),
        }


@dataclass(frozen=True)
class _Held:
    """A session in force."""

    result: SessionResult
    content: str
    """Digest of its segments."""
    labels: str
    """Fingerprint of its label set; empty if there is none."""
    model: str
    """Digest of the model's files that it left; empty if it left none."""


# --- the sessions -------------------------------------------------------------------------------------------------------------------


class Sessions:
    """Feedback sessions in a folder, the labels of all of them, and the reward model that was last fitted."""

    def __init__(
        self,
        out: Path,
        config: Config,
        *,
        look: Look,
        seed: int,
        environment: Mapping[str, Any],
        action_names: Sequence[str] = (),
    ) -> None:
        """Begins sessions in a folder, none of which is in force yet; those that lie there are kept when they are held again.

        Args:
            out: folder; begun if it is not there.
            config: who is asked, and how models are fitted.
            look: what the reward model takes in; transitions to be scored are read with it.
            seed: of the scripted teacher's errors, and of the models.
            environment: JSON-ready facts about the world, with its name under "name" and, for the rater, how to read its pictures under
                "pictures"; its instruction or tasks, too, since sessions of another world are refused by them.
            action_names: the name of each discrete action by index; empty for continuous actions.

        Raises:
            RunError: if the folder holds sessions with another rater, method, number of classes, error model, world, look or seed.
            WriteFailed: if the folder cannot be written.
        """
        self.out, self.config, self.look, self.seed = Path(out), config, look, seed
        self.environment, self.action_names = dict(environment), tuple(action_names)
        self.model: EnsembleModel | None = None
        """What the labels so far were learned by; None until there are ratings of two classes, or a preference."""
        self._held: list[_Held] = []
        self._judged: Judgements | None = None
        self._check_settings()

    @classmethod
    def resume(
        cls,
        out: Path,
        config: Config,
        *,
        look: Look,
        seed: int,
        environment: Mapping[str, Any],
        action_names: Sequence[str] = (),
        last: int | None = None,
    ) -> Self:
        """The sessions of a folder up to the number `last` (a checkpoint keeps `results[-1].number`), all whole ones if None; later ones
        are kept when they are held again.

        Raises:
            RunError: as the constructor; if there are none; or if a session is damaged, or does not follow from those before it.
        """
        if not (Path(out) / SETTINGS).is_file():
            raise RunError("holds no feedback sessions", where=str(out), cure="Begin with a new folder.")
        sessions = cls(out, config, look=look, seed=seed, environment=environment, action_names=action_names)
        numbers = sorted(int(path.parent.name) for path in sessions._folder_of_all.glob(f"[0-9]*/{_RESULT}"))
        if last is not None and last not in numbers:
            raise RunError(f"session {last} is not there or not whole", where=str(out), cure="Go on from an older checkpoint.")
        for number in numbers:
            if last is None or number <= last:
                sessions._keep(number)
        return sessions

    # --- what there is ----------------------------------------------------------------------------------------------------------------

    @property
    def results(self) -> tuple[SessionResult, ...]:
        """Of the sessions in force."""
        return tuple(held.result for held in self._held)

    @property
    def obtained(self) -> int:
        """Labels obtained so far."""
        return sum(result.obtained for result in self.results)

    @property
    def requests(self) -> int:
        """Things that the rater was asked about so far, answered or not."""
        return sum(result.asked for result in self.results)

    @property
    def dollars(self) -> float:
        """What the sessions cost so far."""
        return sum(result.dollars for result in self.results)

    @property
    def left(self) -> int | None:
        """How many more labels may be obtained; None for any number."""
        return None if self.config.max_labels is None else max(self.config.max_labels - self.obtained, 0)

    @property
    def ended(self) -> bool:
        """Whether a budget is used up: further sessions ask nothing."""
        return self.left == 0 or self._is_at_ceiling(self._held)

    def _is_at_ceiling(self, held: Sequence[_Held]) -> bool:
        """Whether no money is left after sessions: it is spent, or the last one had to stop at the ceiling that there is still."""
        ceiling = self.config.max_dollars
        if ceiling is None:
            return False
        last = held[-1].result if held else None
        stopped = last is not None and bool(last.stopped) and last.ceiling is not None and ceiling <= last.ceiling
        return stopped or sum(each.result.dollars for each in held) >= ceiling

    # --- a session --------------------------------------------------------------------------------------------------------------------

    def hold(self, number: int, episodes: Sequence[RecordedEpisode]) -> SessionResult:
        """Gets labels for segments, and fits the reward model on to all labels there are.

        A session that is there already, with the same segments, is kept: nobody is asked and nothing is fitted. One that was killed on the
        way goes on: what was answered lies in the store and is not asked again. Without a label, or while all ratings are of one class, the
        model stays what it was, None at first.

        Args:
            number: of the session; larger than that of the one before.
            episodes: segments, each an episode of its own with the recorded "quality" if the teacher is scripted. Their metadata may say
                under "episode" (a whole number) which episode of the agent they come from: labels of one are held out together. Of pairs,
                the scripted teacher compares each two that follow one another and have the same words; a rater is asked about as many
                pairs, drawn from all. At most what is left of the budget is judged, and nothing is done once it is used up.

        Raises:
            UsageError: for a number that is not larger.
            RunError: if the session is there with other segments, or after other sessions.
            DatasetError: if segments do not fit together, or lack the quality that a scripted teacher needs.
            RewardModelError: if fitting diverges.
            ProviderError, StoreError, WriteFailed, UsageError: as `guerdon label` raises them.
        """
        known = {held.result.number: held for held in self._held}
        if number < 0 or (known and number < max(known) and number not in known):
            raise UsageError(f"session {number} cannot follow session {max(known, default=-1)}", cure="Hold sessions in order.")
        folder = self._folder(number)
        segments, content = self._archived(number, episodes)
        if number in known:
            if content != known[number].content:
                raise self._other_content(number)
            return replace(known[number].result, kept=True)
        if (folder / _RESULT).is_file():
            return self._keep(number)
        if not content:
            segments = self._affordable(episodes)
            if not segments:
                why = "the budget is used up" if episodes else "there is no segment"
                return SessionResult(number, 0, 0, 0, 0.0, self._classes([]), self._all_classes({}), not_fitted=why)
            content = _content(segments)
            write_json(folder / _CONTENT, {"format": FORMAT, "segments": len(segments), "content": content})
        if not (folder / "data").exists():
            self._archive(folder / "data", segments)
        return self._hold_new(number, content)

    def score(self, arrays: StepArrays) -> npt.NDArray[np.float32]:
        """Rewards of transitions that were read with `look`: (N,) float32, by the mean of the model's members (see `Config.transform`,
        `Config.pessimism`).

        Raises:
            UsageError: if there is no model yet (`model` is None).
            RewardError: if a reward is not finite.
        """
        from guerdon.rewards.steps import gather

        if self.model is None:
            raise UsageError("there is no reward model yet", cure="Use rewards only when `model` is not None.")
        if arrays.words != self.look.words:
            arrays = replace(arrays, words=self.look.words)
        found, size = np.zeros(len(arrays), np.float32), self.model.at_once()
        with _threads(self.config.threads):
            for begin in range(0, len(arrays), size):
                mean, spread = self.model.score(gather(arrays, np.arange(begin, min(begin + size, len(arrays)))))
                found[begin : begin + len(mean)] = (mean - self.config.pessimism * spread).numpy()
        if not np.isfinite(found).all():
            raise RewardError("the model gives a reward that is not finite", where=str(self.out), cure="Use a lower learning rate.")
        if self.config.transform == "unit":
            low, high = self.model.scale
            found = (found - np.float32(low)) / np.float32(high - low)
        return found

    # --- its steps --------------------------------------------------------------------------------------------------------------------

    def _archived(self, number: int, episodes: Sequence[RecordedEpisode]) -> tuple[Sequence[RecordedEpisode], str]:
        """The segments that a session was begun with, and their digest; nothing if it was not begun. A budget may have been larger or
        smaller then: what counts is that they are the first ones of `episodes`. Raises RunError if they are not."""
        path = self._folder(number) / _CONTENT
        if not path.is_file():
            return (), ""
        record = _mapping(path)
        count = record.get("segments")
        begun = episodes[:count] if isinstance(count, int) else ()
        content = _content(begun)
        if len(begun) != count or content != record.get("content"):
            raise self._other_content(number)
        return begun, content

    def _other_content(self, number: int) -> RunError:
        cure = "Give another --out, or delete this session and those after it."
        return RunError(f"session {number} is there with other segments than these", where=str(self._folder(number)), cure=cure)

    def _affordable(self, episodes: Sequence[RecordedEpisode]) -> Sequence[RecordedEpisode]:
        """As many segments as may be judged."""
        if self._is_at_ceiling(self._held):
            return ()
        return episodes if self.left is None else episodes[: self.left * (2 if self.config.method == "preference" else 1)]

    def _archive(self, path: Path, episodes: Sequence[RecordedEpisode]) -> None:
        write_minari(
            path,
            episodes,
            dataset_id="guerdon/feedback-session-v0",
            action_names=self.action_names,
            environment=self.environment,
            description="Segments of what an agent did, judged in one feedback session",
        )

    def _hold_new(self, number: int, content: str) -> SessionResult:
        folder = self._folder(number)
        dataset = open_dataset(folder / "data")
        asked = self._ask(number, dataset)
        labels, found = asked.labels, self._judgements_of(number, asked.labels, dataset)
        chain = self._chain()
        if found is not None:
            self._judged = self._joined(found)
        fitted, why = self._fit(number) if found is not None else (None, "no label was obtained")
        classes = self._classes([labels])
        result = SessionResult(
            number=number,
            asked=sum(label.asked > 0 for label in labels.labels),
            obtained=sum(label.value is not None for label in labels.labels),
            calls=asked.calls,
            dollars=asked.dollars,
            classes=classes,
            all_classes=self._all_classes(classes),
            stopped=asked.stopped,
            ceiling=self.config.max_dollars,
            fitted=fitted,
            not_fitted=why,
        )
        model = model_fingerprint(folder / "model") if fitted is not None else ""
        record = {"format": FORMAT, "content": content, "before": chain, "labels": labels.fingerprint, "model": model}
        write_json(folder / _RESULT, record | {"result": result.to_record()})
        self._held.append(_Held(result, content, labels.fingerprint, model))
        self._log(result)
        return result

    def _fit(self, number: int) -> tuple[Mapping[str, Any] | None, str]:
        """Fits the model on to all labels. Returns its results, or None and why it stays what it was."""
        from guerdon.rewards import fitting

        judged = self._judged
        if judged is None:
            return None, "no label was obtained"
        config: Fitting = self._fitting()
        batches = max(1, math.ceil(len(judged) * (1 - config.held_out) / config.batch))
        if config.epochs is None:
            config = replace(config, epochs=max(self.config.passes, math.ceil(self.config.least_updates / batches)))
        with _threads(self.config.threads):
            try:
                seed = stream_seed(self.seed, "feedback session", number)
                fitted = fitting.fit(judged, self.look, config, seed=seed, out=self._folder(number) / "model", start=self.model)
            except RewardError as error:
                return None, error.what
        self.model = fitted.model
        return fitted.results, ""

    def _fitting(self) -> Fitting:
        found: Fitting = self.config.fitting or fitting_preset("erl-vlm" if self.config.method == "rating" else "rl-vlm-f")
        return found

    def _judgements_of(self, number: int, labels: LabelSet, dataset: Dataset) -> Judgements | None:
        """What a model learns from a session; None if there is no label. Groups are the agent's episodes, over all sessions."""
        from guerdon.rewards.steps import judgements

        if all(label.value is None for label in labels.labels):
            return None
        found = judgements([labels], dataset, self.look)
        places = {int(episode): _source(dataset, int(episode), number) for episode in np.unique(found.group)}
        return replace(found, group=np.array([places[int(episode)] for episode in found.group], np.int64))

    def _joined(self, found: Judgements) -> Judgements:
        from guerdon.rewards.steps import joined

        return found if self._judged is None else joined([self._judged, found], same_groups=True)

    def _classes(self, label_sets: Sequence[LabelSet]) -> dict[str, int]:
        """How many labels there are of each class; of pairs, of each verdict."""
        from guerdon.methods.rating import CLASSES

        values = [label.value for labels in label_sets for label in labels.labels if label.value is not None]
        if self.config.method == "rating":
            return {name: sum(value == number for value in values) for number, name in enumerate(CLASSES[self.config.levels])}
        return {
            "first": sum(value < 0.5 for value in values),
            "neither": sum(value == 0.5 for value in values),
            "second": sum(value > 0.5 for value in values),
        }

    def _all_classes(self, classes: Mapping[str, int]) -> dict[str, int]:
        """The counts of a session and of those before it."""
        each = [classes, *(result.classes for result in self.results)]
        return {name: sum(counts.get(name, 0) for counts in each) for name in self._classes([])}

    # --- sessions that are there --------------------------------------------------------------------------------------------------------

    def _keep(self, number: int) -> SessionResult:
        """Brings a session into force that lies in the folder. Raises RunError if it is damaged or follows other sessions."""
        from guerdon.rewards.fitting import load_model

        folder = self._folder(number)
        cure = "Delete this session and those after it; what was answered lies in the store and is not paid for again."
        record = _mapping(folder / _RESULT)
        try:
            result = SessionResult.from_record(record["result"])
            held = _Held(result, record["content"], record["labels"], record["model"])
            before = record["before"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"is damaged ({type(error).__name__})", where=str(folder / _RESULT), cure=cure) from error
        if before != self._chain():
            raise RunError(f"session {number} was held after other sessions than now", where=str(folder), cure=cure)
        dataset, run = open_dataset(folder / "data"), Run.open(folder / "run")
        labels = label_set_of(run, self._name, cure=cure)
        if dataset.fingerprint != run.dataset_fingerprint or labels.fingerprint != held.labels:
            raise RunError("its segments or labels have changed since", where=str(folder), cure=cure)
        if held.model and model_fingerprint(folder / "model") != held.model:
            raise RunError("its model has changed since, or is damaged", where=str(folder), cure=cure)
        found = self._judgements_of(number, labels, dataset)
        if found is not None:
            self._judged = self._joined(found)
        if held.model:
            self.model = load_model(folder / "model")
        self._held.append(held)
        self._log(result)
        return result

    def _chain(self) -> str:
        """What a session follows from."""
        return digest("guerdon sessions 1", canonical_json([[held.result.number, held.content, held.labels] for held in self._held]))

    def _log(self, result: SessionResult) -> None:
        """Adds the session's line, unless it is there."""
        path = self.out / LINES
        if all(line.get("session") != result.number for line in _study.read_lines(path)):
            _study.append_line(path, result.line)

    @property
    def _name(self) -> str:
        """Of the label sets."""
        return self.config.method

    @property
    def _folder_of_all(self) -> Path:
        return self.out / _SESSIONS

    def _folder(self, number: int) -> Path:
        return self._folder_of_all / f"{number:04d}"

    def _check_settings(self) -> None:
        """Writes down what the sessions depend on, or refuses a folder of others."""
        config = self.config
        scripted = {name: getattr(config, name) for name in ("rate", "temperature", "discount")} if not config.vlm else {}
        settings = {
            "format": FORMAT,
            "method": config.method,
            "number of classes": config.levels if config.method == "rating" else 0,
            "rater": config.rater,
            "error model": {"name": config.error_model, **scripted},
            "prompts": self._prompts(),
            "edges": list(config.class_edges) if config.method == "rating" and not config.vlm else [],
            "rater settings": {"views": list(config.views), "repeats": config.repeats, "frames": config.frames}
            | {name: as_record(each) for name, each in sorted(config.rater_settings.items())},
            "environment": self.environment,
            "actions": list(self.action_names),
            "look": self.look.to_record(),
            "fitting": as_record(self._fitting()) | {"passes": config.passes, "session_updates": config.least_updates},
            "seed": self.seed,
        }
        settings = {name: json.loads(canonical_json(value)) for name, value in settings.items()}  # as it is read back
        path = self.out / SETTINGS
        if not path.is_file():
            write_json(path, settings)
            return
        there = _mapping(path)
        for name, value in settings.items():
            if there.get(name) != value:
                what = f"holds sessions with another {name} ({_short(there.get(name))}, not {_short(value)})"
                raise RunError(what, where=str(self.out), cure="Give the same settings again, or another --out.")

    def _prompts(self) -> list[str]:
        """Versions of the prompts that a rater is asked with."""
        from guerdon.methods.preference import Preference
        from guerdon.methods.rating import Rating

        if not self.config.vlm:
            return []
        if self.config.method == "rating":
            items: tuple[Literal["picture", "episode"], ...] = ("picture", "episode")
            return [Rating(Rating.Config(levels=self.config.levels, item=item)).version for item in items]
        both: tuple[Literal["picture", "segment"], ...] = ("picture", "segment")
        return [Preference(Preference.Config(item=item)).version for item in both]

    # --- asking -------------------------------------------------------------------------------------------------------------------------

    def _ask(self, number: int, dataset: Dataset) -> _Asked:
        """Labels of a session's segments; those that are whole already are kept."""
        folder = self._folder(number)
        if (folder / "run" / "run.json").is_file():
            run = Run.open(folder / "run")
            path = run.part("labels", self._name).with_suffix(".parquet")
            if run.dataset_fingerprint == dataset.fingerprint and (manifest := run.manifest(path)) is not None:
                return _Asked.of(label_set_of(run, self._name), manifest["results"])
        return self._ask_rater(number, dataset) if self.config.vlm else self._ask_teacher(number, dataset)

    def _ask_rater(self, number: int, dataset: Dataset) -> _Asked:
        from guerdon.methods.preference import Preference
        from guerdon.methods.rating import Rating

        config, folder = self.config, self._folder(number)
        lengths = [info.length for info in dataset.episodes()]
        single = max(lengths) == 1
        sampling = samples.Config(views=config.views or None, annotations="first")
        method_settings: Any
        if config.method == "rating":
            method_settings = Rating.Config(levels=config.levels, item="picture" if single else "episode", frames=config.frames)
        else:
            method_settings = Preference.Config(item="picture" if single else "segment", frames=config.frames)
            sampling = replace(sampling, sample=max(len(lengths) // 2, 1), seed=stream_seed(self.seed, "pairs", number) % 2**31)
            sampling = sampling if single else replace(sampling, kind="segment pairs", window=max(lengths))
            if max(Counter(_instruction(dataset, index) for index in range(len(dataset))).values()) < 2:
                return self._write_labels(number, dataset, [])
        asked = labelling.label.of(
            labelling.Config(
                dataset=folder / "data",
                run=folder / "run",
                method=config.method,
                vlm=config.vlm,
                repeats=config.repeats,
                concurrency=config.concurrency,
                requests_per_minute=config.requests_per_minute,
                patience=config.patience,
                max_cost=None if config.max_dollars is None else config.max_dollars - self.dollars,
                price=config.price,
                min_coverage=0.0,
                yes=config.yes,
                store=config.store,
                quiet=config.quiet,
                sampling=sampling,
                method_settings=method_settings,
                rater_settings=config.rater_settings,
            )
        )
        return _Asked.of(asked.labels, asked.results)

    def _ask_teacher(self, number: int, dataset: Dataset) -> _Asked:
        teach = rate_segments if self.config.method == "rating" else compare_segments
        return self._write_labels(number, dataset, teach(dataset, self.config, seed=self.seed, session=number))

    def _write_labels(self, number: int, dataset: Dataset, labels: Sequence[Label]) -> _Asked:
        """Writes a label set as `guerdon label` does."""
        from guerdon.methods.rating import CLASSES

        config = self.config
        rates = {"rate": config.rate, "temperature": config.temperature, "discount": config.discount}
        rater: dict[str, Any] = {"teacher": config.error_model, **rates, "seed": self.seed, "session": number}
        meaning: dict[str, Any] = {"method": config.method, "version": "scripted teacher 1", "scale": [0.0, 1.0]}
        if config.method == "rating":
            meaning |= {"scale": [0.0, config.levels - 1.0], "levels": list(CLASSES[config.levels])}
            rater["edges"] = list(config.class_edges)
        meaning |= {"rater": config.rater, "rater_settings": [rater], "dataset": dataset.fingerprint}
        label_set = LabelSet(list(labels), meaning)
        run = Run.open_or_create(self._folder(number) / "run", dataset_path=dataset.path, fingerprint=dataset.fingerprint)
        path = run.part("labels", self._name).with_suffix(".parquet")
        label_set.write(path)
        results = {
            "judged": "segments" if config.method == "rating" else "pairs of segments",
            "requests": 0,
            "dollars": 0.0,
            "dollars_charged": 0.0,
            "states": dict(label_set.counts()),
            "coverage": label_set.coverage,
            "stopped": "",
            "seconds": 0.0,
            "fingerprint": label_set.fingerprint,
        }
        run.finish(path, Manifest({"method": config.method, "rater": rater}, {"dataset": dataset.fingerprint}, results))
        return _Asked.of(label_set, results)


@dataclass(frozen=True)
class _Asked:
    """The labels of a session and what they took."""

    labels: LabelSet
    calls: int
    dollars: float
    stopped: str

    @classmethod
    def of(cls, labels: LabelSet, results: Mapping[str, Any]) -> _Asked:
        dollars = results.get("dollars_charged")
        return cls(labels, int(results.get("requests") or 0), float(dollars or 0.0), str(results.get("stopped") or ""))


# --- the scripted teacher -----------------------------------------------------------------------------------------------------------


def rate_segments(dataset: Dataset, config: Config, *, seed: int, session: int) -> list[Label]:
    """A label of each episode of a dataset of segments: the class of its mean quality, with the errors of `config.error_model`.

    What is said of a segment depends on the seed, the session and the segment's number alone. What the teacher says nothing of has a label
    without a value.

    Raises:
        DatasetError: if an episode has no recorded quality.
    """
    labels = []
    for index in range(len(dataset)):
        quality = np.array([_quality(dataset, index).mean()])
        value = math.nan if np.isnan(quality[0]) else _rated(quality, config, generator(seed, "scripted teacher", session, index))
        labels.append(_label(dataset, (index,), value))
    return labels


def _rated(quality: Floats, config: Config, random: np.random.Generator) -> float:
    error, levels, edges = config.error_model, config.levels, config.class_edges
    if error == "stochastic":
        true = draw_classes(quality, levels, random, temperature=config.temperature, edges=edges)
        return float(true[0])
    rates = {error: config.rate} if error in ("mistake", "adjacent", "optimism", "skip") else {}
    return float(confuse(digitise(quality, levels, edges), levels, random, **rates)[0])


def compare_segments(dataset: Dataset, config: Config, *, seed: int, session: int) -> list[Label]:
    """A label of each two segments that follow one another and are judged by the same words: which has the higher return, the sum of its
    qualities, with the errors of `config.error_model`. An odd one out is not compared. Raises as `rate_segments`."""
    by_words: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        by_words.setdefault(_instruction(dataset, index), []).append(index)
    pairs = [(same[i], same[i + 1]) for same in by_words.values() for i in range(0, len(same) - 1, 2)]
    quality = {index: _quality(dataset, index) for pair in pairs for index in pair}
    totals = [float(each.sum()) for each in quality.values() if not np.isnan(each).any()]
    margin = config.rate * float(np.mean(totals)) if totals else 0.0
    labels = []
    for one, other in sorted(pairs):
        both = quality[one], quality[other]
        unknown = any(np.isnan(each).any() for each in both)
        value = math.nan if unknown else _preferred(both, margin, config, generator(seed, "scripted teacher", session, one, other))
        labels.append(_label(dataset, (one, other), value))
    return labels


def _preferred(both: tuple[Floats, Floats], margin: float, config: Config, random: np.random.Generator) -> float:
    error = config.error_model
    if error == "skip" and max(each.sum() for each in both) <= margin:
        return math.nan
    first, second = (np.array([myopic_return(each, config.discount if error == "myopic" else 1.0)]) for each in both)
    rates = {
        "mistake": config.rate if error == "mistake" else 0.0,
        "temperature": config.temperature if error == "noisy" else 0.0,
        "equal": margin if error == "equal" else 0.0,
    }
    return float(prefer(first, second, random, **rates)[0])


def _quality(dataset: Dataset, index: int) -> Floats:
    """(T,): quality of the observation that each transition led to."""
    known = dataset.privileged(index)
    if _QUALITY not in known:
        what = f"has no recorded '{_QUALITY}', which the scripted teacher judges by"
        raise DatasetError(what, where=f"{dataset.path}, episode {index}", cure="Record it, or name a rater with --vlm.")
    return np.asarray(known[_QUALITY], np.float64)[1:].clip(0.0, 1.0)


def _instruction(dataset: Dataset, index: int) -> str:
    return dataset.episode(index).annotations[0].instruction


def _label(dataset: Dataset, indices: tuple[int, ...], value: float) -> Label:
    """What the teacher says of one segment or of two; nothing if `value` is NaN."""
    lengths = [dataset.episode(index).length for index in indices]
    spans = [(1, 1) if length == 1 else (0, length) for length in lengths]  # of a single transition, the picture that it led to
    pair: dict[str, Any] = {"episode_b": indices[1], "start_b": spans[1][0], "stop_b": spans[1][1]} if len(indices) == 2 else {}
    silent = math.isnan(value)
    state: State = "refused" if silent else "labelled"
    return Label(
        unit="pair" if pair else "observation" if lengths[0] == 1 else "segment",
        episode=indices[0],
        start=spans[0][0],
        stop=spans[0][1],
        instruction=_instruction(dataset, indices[0]),
        state=state,
        cause="refusal" if silent else None,
        value=None if silent else value,
        asked=1,
        answered=0 if silent else 1,
        **pair,
    )


# --- odds and ends ------------------------------------------------------------------------------------------------------------------


def _source(dataset: Dataset, index: int, number: int) -> int:
    """Number of the agent's episode that a segment comes from; if nothing is known of it, one that nothing else has."""
    source = dataset.episode(index).metadata.get("episode")
    is_known = isinstance(source, int) and not isinstance(source, bool) and source >= 0
    return int(source) if is_known and source is not None else -1 - index - (number << 32)


def _content(episodes: Sequence[RecordedEpisode]) -> str:
    """Digest of segments."""
    return digest("guerdon session 1", *(part for episode in episodes for part in _parts(episode)))


def _parts(episode: RecordedEpisode) -> Iterator[str | bytes]:
    """Everything that a segment consists of, in an order of its own."""
    facts = {
        "annotations": [[each.instruction, [[span.start, span.stop, span.text] for span in each.spans]] for each in episode.annotations],
        "metadata": dict(episode.metadata),
        "ended": [episode.terminated, episode.truncated],
    }
    yield canonical_json(facts)
    arrays = {"actions": episode.actions, "rewards": episode.rewards}
    for kind, held in (("frames", episode.frames), ("vectors", episode.vectors), ("privileged", episode.privileged)):
        arrays |= {f"{kind}/{name}": values for name, values in held.items()}
    for name, values in sorted(arrays.items()):
        yield canonical_json([name, str(values.dtype), list(values.shape)])
        yield np.ascontiguousarray(values).tobytes()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Lets torch use so many threads, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON file of sessions. Raises RunError if it holds something else."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise RunError("does not hold what it should", where=str(path), cure="Delete this session and those after it.")
    return record


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 80 else text[:80] + "..."
