"""Samples, and what is said about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that *share* (0 to 1) of *ordered* values do not exceed; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Sample:
    """One round: how many calls in how many seconds, latencies in milliseconds, and the client's CPU time."""

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_seconds: float
    errors: dict[str, int] = field(default_factory=dict)
    """How many calls raised what; they do not count as calls."""
    base_mib: float = 0.0
    peak_mib: float = 0.0
    """The memory of a process of its own, before the work and at most; 0 where it was not in one."""

    @classmethod
    def of(
        cls, latencies: Iterable[float], seconds: float, cpu_seconds: float, errors: dict[str, int]
    ) -> Self:
        """Return the sample of a round from the seconds that each call took."""
        ordered = sorted(latencies)
        p50, p99 = (1000 * percentile(ordered, share) for share in (0.5, 0.99))
        return cls(len(ordered), seconds, p50, p99, cpu_seconds, errors)

    @property
    def per_second(self) -> float:
        """The throughput."""
        return self.calls / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """Microseconds of this process's CPU a call, of all its threads."""
        return 1e6 * self.cpu_seconds / self.calls if self.calls else 0.0


@dataclass
class Cell:
    """All rounds of one contender in one scenario at one number of tasks."""

    scenario: str
    contender: str
    tasks: int
    loop: str
    samples: list[Sample] = field(default_factory=list)
    problem: str | None = None
    """Why these figures do not count: what was found wrong afterwards."""

    @property
    def per_second(self) -> float:
        """The throughput of the median round."""
        return self._median("per_second")

    @property
    def p50_ms(self) -> float:
        """The median latency, of the median round."""
        return self._median("p50_ms")

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies, of the median round."""
        return self._median("p99_ms")

    @property
    def cpu_us(self) -> float:
        """Microseconds of the client's CPU a call, in the median round."""
        return self._median("cpu_us")

    @property
    def spread(self) -> float:
        """How far the throughput of the rounds lies apart, as half of that distance over the median."""
        rates = [sample.per_second for sample in self.samples]
        return (max(rates) - min(rates)) / 2 / self.per_second if self.per_second else 0.0

    @property
    def peak_mib(self) -> float:
        """The largest memory of any round."""
        return max((sample.peak_mib for sample in self.samples), default=0.0)

    @property
    def base_mib(self) -> float:
        """The memory before the work, of the round that needed most."""
        return max(((sample.peak_mib, sample.base_mib) for sample in self.samples), default=(0.0, 0.0))[1]

    @property
    def errors(self) -> dict[str, int]:
        """How many calls of all rounds raised what."""
        total: dict[str, int] = {}
        for sample in self.samples:
            for name, count in sample.errors.items():
                total[name] = total.get(name, 0) + count
        return total

    def _median(self, name: str) -> float:
        return median(getattr(sample, name) for sample in self.samples) if self.samples else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON, with the medians for those who do not want to compute them."""
        return asdict(self) | {
            "per_second": round(self.per_second, 1),
            "p50_ms": round(self.p50_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "cpu_us": round(self.cpu_us, 2),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Return what `to_json()` made JSON of."""
        names = ("scenario", "contender", "tasks", "loop", "problem")
        samples = [Sample(**sample) for sample in stored["samples"]]
        return cls(**{name: stored[name] for name in names}, samples=samples)


def ratio(ours: Cell, baseline: Cell) -> float | None:
    """
    Return how many times the throughput of *baseline* is that of *ours*: the median over the rounds.

    Each round compares two measurements that were made within seconds, so that a machine that is slow for a while is
    slow for both. None where there is nothing to compare.
    """
    pairs = zip(ours.samples, baseline.samples, strict=False)
    ratios = [one.per_second / other.per_second for one, other in pairs if other.per_second]
    return median(ratios) if ratios else None
