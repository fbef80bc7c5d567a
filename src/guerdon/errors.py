"""Every error a user can meet, in one tree.

    GuerdonError
    ├── UsageError            a flag, a name or a combination of settings that cannot work
    │   └── UnknownName       a name that no file of the package (or plug-in) carries
    ├── MissingExtra          an optional dependency is not installed
    ├── DatasetError          recorded data that is absent, damaged or unfit; says which file, episode and step
    ├── RunError              a run folder that cannot be used for what was asked
    │   └── StaleInput        a part was made from other inputs than those given now
    ├── StoreError            the reply store cannot be opened, read or written
    ├── ProviderError         a rater cannot be asked at all (before or instead of a single failed request)
    │   ├── AuthenticationRefused
    │   ├── QuotaExhausted
    │   ├── RaterUnreachable
    │   ├── ResultsGone       a vendor no longer has the answers of a batch
    │   └── ConsentNeeded     frames would leave this machine and nobody has agreed to that
    ├── CeilingReached        the next request could cost more than the user allows
    ├── BadPilot              a trial of a few windows says that the labels would not be worth their price
    ├── RewardError           an expression or a reward column that cannot be computed
    ├── RewardModelError      a reward model that does not fit what it is asked to score, or is damaged
    ├── PolicyError           a policy that does not fit what it is asked to act on
    ├── EnvironmentFailed     a simulator could not be built, or a task cannot be carried out in it
    └── WriteFailed           the disk is full or not writable

A failed request is not an exception: it is a record (`guerdon.records.Failure`) with a cause. Exceptions are for what stops a command.
Each carries what happened, where, and what to do next; the command line prints the three and no traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class GuerdonError(Exception):
    """Base of all errors meant for a user.

    Args:
        what: what happened, one sentence without a final full stop.
        where: the place, e.g. `"data/main_data.hdf5, episode 3, step 17"`; empty when there is none.
        cure: what the user can do next, one sentence; empty only when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.cure}" if self.cure else text

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whatever their constructors take."""
        return _restore, (type(self), self.what, self.where, self.cure)


def _restore(kind: type[GuerdonError], what: str, where: str, cure: str) -> GuerdonError:
    error = kind.__new__(kind)
    GuerdonError.__init__(error, what, where=where, cure=cure)
    return error


class UsageError(GuerdonError):
    """A flag, a name or a combination of settings that cannot work."""


class UnknownName(UsageError):
    """A name that nothing carries; the message lists the names there are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, cure: str = "") -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"no {kind} '{name}'; there are: {names}", cure=cure)


class MissingExtra(GuerdonError):
    """An optional dependency is not installed; the message is the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs '{package}', which is not installed", cure=f"Install it with: pip install 'guerdon[{extra}]'")


class DatasetError(GuerdonError):
    """Recorded data that is absent, damaged or unfit."""


class RunError(GuerdonError):
    """A run folder that cannot be used for what was asked."""


class StaleInput(RunError):
    """A part of a run was made from other inputs than those given now."""


class StoreError(GuerdonError):
    """The reply store cannot be opened, read or written."""


class ProviderError(GuerdonError):
    """A rater cannot be asked at all."""


class AuthenticationRefused(ProviderError):
    """The key is missing, wrong or not allowed to use this model."""


class QuotaExhausted(ProviderError):
    """The account has no quota left; asking on would only fail."""


class RaterUnreachable(ProviderError):
    """Nothing but failures came from the rater for so long that asking on is useless."""


class ResultsGone(ProviderError):
    """A vendor no longer has the answers of a batch that it has carried out."""


class ConsentNeeded(ProviderError):
    """Frames would leave this machine and nobody has agreed to that yet."""


class CeilingReached(GuerdonError):
    """The next request could cost more than the user allows for the run. Everything answered so far is kept."""


class BadPilot(GuerdonError):
    """A trial of a few windows says that the labels would not be worth their price."""


class RewardError(GuerdonError):
    """An expression or a reward column that cannot be computed."""


class RewardModelError(GuerdonError):
    """A reward model that does not fit what it is asked to score, or is damaged."""


class PolicyError(GuerdonError):
    """A policy that does not fit what it is asked to act on."""


class EnvironmentFailed(GuerdonError):
    """A simulator could not be built, or a task cannot be carried out in it."""


class WriteFailed(GuerdonError):
    """The disk is full or not writable; nothing half-written was left under the final name."""
