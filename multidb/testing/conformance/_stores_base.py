"""What the store suites share: the hook that a subclass overrides, models, and how to ask for refusals."""

from __future__ import annotations

import asyncio
from datetime import datetime  # noqa: TC003 -- pydantic reads it at run time
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import BaseModel, ConfigDict

from multidb.errors import InvalidArgumentError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

SHORT: Final = 0.15
"""A life span that a test waits out."""
PAST_SHORT: Final = 0.25
LONG: Final = 600.0
"""A life span that outlasts any test."""

NFC: Final = "s\u00fcleyman-\u00c5"
NFD: Final = "su\u0308leyman-A\u030a"
"""The same name, decomposed."""


@pytest.mark.asyncio
class StoreSuite:
    """The hook of the store suites."""

    async def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass for the store. Override it where its clock can be moved by hand."""
        await asyncio.sleep(seconds)


class Item(BaseModel):
    """A part of a model."""

    name: str
    at: datetime | None = None


class Order(BaseModel):
    """A model that a value may be, or hold."""

    model_config = ConfigDict(extra="allow")

    items: tuple[Item, ...] = ()
    total: float = 0.0


async def not_refused(
    bad: Iterable[Any], where: str, call: Callable[[Any], Coroutine[Any, Any, object]], *, value: bool = False
) -> list[str]:
    """
    Return those of *bad* for which *call* does not raise the right error, described.

    Right is an InvalidArgumentError (with *value* an InvalidValueError) whose message starts with *where*.
    """
    kind = InvalidValueError if value else InvalidArgumentError
    wrong = []
    for number, one in enumerate(bad):
        try:
            await call(one)
        except kind as exc:
            if str(exc).startswith(f"{where}: "):
                continue
            what = f"refused as {exc!r}"
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is told of
            what = f"raised {exc!r}"
        else:
            what = "accepted"
        wrong.append(f"#{number}, of type {type(one).__name__}: {what}")
    return wrong


def only(
    name: str, call: Callable[..., Coroutine[Any, Any, object]], /, *arguments: Any, **others: Any
) -> Callable[[Any], Coroutine[Any, Any, object]]:
    """Return *call* as a function of its argument *name* alone, the other arguments given."""
    return lambda one: call(*arguments, **(others | {name: one}))


async def refusal(call: Coroutine[Any, Any, object]) -> InvalidValueError:
    """Return the error with which *call* refuses a value."""
    with pytest.raises(InvalidValueError) as caught:
        await call
    return caught.value


def without(bad: Sequence[Any], *allowed: object) -> list[Any]:
    """Return *bad* without those that are one of *allowed*, as None is where an argument is optional."""
    return [one for one in bad if not any(one is good for good in allowed)]
