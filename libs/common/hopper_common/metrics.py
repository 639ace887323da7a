"""
What a process tells Prometheus: numbers of its services, on an HTTP address of its own, for those who want them.

A service knows nothing of Prometheus. It gives functions that return `Measure`s (`Running.measures`); they are called
on the event loop, once a scrape, and are to be quick. The endpoint is there only if the settings ask for it, and only
then is `prometheus_client` imported (the extra `metrics`). It has no password: it listens to this machine unless told
otherwise, and measures carry no one's words.
"""

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from hopper_common.startup import StartupError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DEFAULT_ADDRESS: Final = "127.0.0.1"
DEFAULT_PORT: Final = 9464
_PATIENCE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)
Labels = Mapping[str, str]


class MetricsNotServed(StartupError):
    """The address for metrics cannot be listened on, or what serves them is not installed."""

    exit_code = 4


class Histogram:
    """How often values were at most each of some bounds. `observe` takes a third of a microsecond."""

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """Bounds, with how many values were no greater; the last has all."""
        seen, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            seen += count
            found.append((bound, float(seen)))
        return found


@dataclass(frozen=True, slots=True)
class Measure:
    """
    A number with a name, or one for each of some labels.

    Attributes:
        name: `hopper_...`, in Prometheus' base units; of a counter without `_total`.
        samples: Labels, the same in each, and the value. Few: each is kept for as long as Prometheus keeps anything.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: Sequence[tuple[Labels, float | Histogram]]


Measures = Callable[[], Iterable[Measure]]


@contextlib.contextmanager
def serve_metrics(measures: Sequence[Measures], *, address: str, port: int) -> Iterator[str]:
    """
    Answer scrapes while this is open; yields the URL.

    Args:
        port: 0 takes a free one.

    Raises:
        MetricsNotServed: See there.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415
    except ImportError as error:
        raise MetricsNotServed(
            "metrics need prometheus-client: pip install 'hopper-mesh[metrics]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(_Collector(measures, asyncio.get_running_loop()))
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        raise MetricsNotServed(
            f"cannot listen for scrapes on {address}:{port}: {error.strerror or error}; choose another "
            "HOPPER_METRICS_PORT"
        ) from error
    try:
        yield f"http://{address}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Asks on the event loop, from the thread that answers a scrape."""

    def __init__(self, measures: Sequence[Measures], loop: asyncio.AbstractEventLoop) -> None:
        self._measures = measures
        self._loop = loop

    def describe(self) -> "Iterable[Metric]":
        return ()  # nothing is asked before the first scrape

    def collect(self) -> "Iterable[Metric]":
        async def ask() -> list[Measure]:
            return [measure for give in self._measures for measure in give()]

        asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        return [_family(measure) for measure in asked.result(_PATIENCE_SECONDS)]


def _family(measure: Measure) -> "Metric":
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    families: dict[str, Any] = {
        "gauge": GaugeMetricFamily,
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    labels = list(measure.samples[0][0]) if measure.samples else []
    family: Metric = families[measure.kind](measure.name, measure.help, labels=labels)
    add: Any = family.add_metric  # type: ignore[attr-defined]  # each kind has its own
    for of, value in measure.samples:
        if isinstance(value, Histogram):
            add(list(of.values()), buckets=value.buckets(), sum_value=value.sum)
        else:
            add(list(of.values()), value)
    return family
