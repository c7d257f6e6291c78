"""The event loops that can be measured."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS = ("asyncio", "uvloop")


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop of this name."""
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
