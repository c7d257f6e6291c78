"""All that one run found out, as it is kept in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from benchmarks.statistics import Cell

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Results:
    """The cells, in the order of the scenarios, and all that is needed to judge them."""

    command: str
    machine: dict[str, Any]
    libraries: dict[str, str]
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """What could not be run here, and why."""
    took: dict[str, float] = field(default_factory=dict)
    """The seconds that each scenario took, preparations and all."""
    minutes: float = 0.0

    def save(self, path: Path) -> None:
        """Write this to *path*."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = vars(self) | {"cells": [cell.to_json() for cell in self.cells]}
        path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save()` wrote."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(**stored | {"cells": [Cell.from_json(cell) for cell in stored["cells"]]})

    def add(self, other: Results) -> None:
        """Take in another run on the same machine, on another event loop or of scenarios again, whose figures count."""
        again = {(cell.scenario, cell.loop) for cell in other.cells}
        self.command = f"{self.command}; {other.command}"
        self.cells = [cell for cell in self.cells if (cell.scenario, cell.loop) not in again] + other.cells
        self.skipped |= other.skipped
        self.minutes = round(self.minutes + other.minutes, 1)

    def of(self, scenario: str, loop: str) -> list[Cell]:
        """Return the cells of a scenario."""
        return [cell for cell in self.cells if (cell.scenario, cell.loop) == (scenario, loop)]

    @property
    def loops(self) -> list[str]:
        """Return the event loops that were measured."""
        return list(dict.fromkeys(cell.loop for cell in self.cells))
