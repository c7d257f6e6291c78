"""What can go wrong with one call of a backend, and when."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from multidb.errors import BackendError, BackendUnavailableError, InvalidArgumentError
from multidb.testing.faults._seed import pick_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from multidb.testing.faults._backend import Call

_FOR_EVER_SECONDS = 60.0


@dataclass(frozen=True)
class Fail:
    """
    Raise *error*: BackendUnavailableError, BackendTimeoutError, OverloadedError, or a plain BackendError.

    *applied*: the inner backend does the call first, so that its outcome is lost. *ambiguous* is the error's; None:
    that of a write that was applied. `Fail(ambiguous=True)` is the error that might have been applied and was not.
    """

    error: type[BackendError] = BackendUnavailableError
    applied: bool = False
    ambiguous: bool | None = None


@dataclass(frozen=True)
class Delay:
    """Do the call *seconds* later."""

    seconds: float


@dataclass(frozen=True)
class Hang:
    """
    Answer nothing until the faults are healed, then raise *error*, ambiguous if it is a write.

    *applied*: the call is done before. *ignores_cancellation*: as asyncpg on a stopped server does. It ends by itself
    after *seconds*, one minute: a loop that is closing waits for its tasks.
    """

    applied: bool = False
    ignores_cancellation: bool = False
    seconds: float = _FOR_EVER_SECONDS
    error: type[BackendError] = BackendUnavailableError


@dataclass(frozen=True)
class Wrong:
    """Do the call and return what *change* makes of its result."""

    change: Callable[[Any], Any]


Fault: TypeAlias = Fail | Delay | Hang | Wrong
Plan: TypeAlias = "Callable[[Call], Fault | None]"
"""Is given each call before it is made, and says what goes wrong with it."""


def one_less(result: Any) -> Any:
    """Return *result* without its last element: too few outcomes for a batch. What has no elements stays."""
    if isinstance(result, dict):
        return dict(list(result.items())[:-1])
    return result[:-1] if isinstance(result, list | tuple) else result


FEWER = Wrong(one_less)
"""One outcome too few."""


def by_chance(chances: Mapping[Fault, float], *, only: Collection[str] = (), seed: int | None = None) -> Plan:
    """
    Return a plan that draws a fault for each call: *chances* are probabilities, 0 to 1, of at most 1 together.

    *only*: names of methods; the others never fail. The same *seed*, see `pick_seed()`, and the same calls in the
    same order give the same faults. The plan's repr tells the seed.
    """
    if any(chance < 0 for chance in chances.values()) or sum(chances.values()) > 1 + 1e-9:
        msg = "chances: probabilities from 0 to 1, of at most 1 together"
        raise InvalidArgumentError(msg)
    return _ByChance(dict(chances), methods(only), pick_seed(seed))


def in_order(*faults: Fault | None, only: Collection[str] = ()) -> Plan:
    """Return a plan for the first calls (of the methods *only*): a fault each, None for one that goes well."""
    return _InOrder(list(faults), methods(only))


def methods(only: Collection[str]) -> frozenset[str]:
    """Return *only* as a set. Raises InvalidArgumentError for a str, whose elements are its letters."""
    if isinstance(only, str):
        msg = "only: a list of names"
        raise InvalidArgumentError(msg)
    return frozenset(only)


class _ByChance:
    def __init__(self, chances: dict[Fault, float], only: frozenset[str], seed: int) -> None:
        self.seed = seed
        self._chances = chances
        self._only = only
        self._random = Random(seed)  # noqa: S311 -- to be repeated, not to be secret

    def __repr__(self) -> str:
        return f"by_chance({self._chances}, only={sorted(self._only)}, seed={self.seed})"

    def __call__(self, call: Call) -> Fault | None:
        if self._only and call.method not in self._only:
            return None
        drawn = self._random.random()
        for fault, chance in self._chances.items():
            if drawn < chance:
                return fault
            drawn -= chance
        return None


class _InOrder:
    def __init__(self, faults: list[Fault | None], only: frozenset[str]) -> None:
        self._faults = faults
        self._only = only

    def __call__(self, call: Call) -> Fault | None:
        if not self._faults or (self._only and call.method not in self._only):
            return None
        return self._faults.pop(0)
