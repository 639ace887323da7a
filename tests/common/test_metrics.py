"""Numbers for Prometheus: off unless asked for, on this machine, and asked on the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from structlog.testing import capture_logs

from hopper_common.host import HostContext, Ready, Running, Service, serve
from hopper_common.metrics import Histogram, Measure, MetricsNotServed, serve_metrics
from hopper_common.settings import HostSettings


def scraped(url: str) -> str:
    with urlopen(url, timeout=60) as response:  # noqa: S310 - our own
        return str(response.read().decode())


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 2, 11):
        histogram.observe(value)
    assert histogram.buckets() == [("1", 2.0), ("10", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 14.5


async def test_measures_are_asked_on_the_event_loop_and_told_in_the_format() -> None:
    histogram = Histogram((1, 10))
    histogram.observe(3)
    threads = []

    def measures() -> Iterator[Measure]:
        threads.append(threading.current_thread())
        yield Measure("hopper_a", "gauge", "A.", [({"x": "1"}, 2), ({"x": 'say "no"'}, 3)])
        yield Measure("hopper_b", "counter", "B.", [({}, 7)])
        yield Measure("hopper_c", "histogram", "C.", [({"x": "1"}, histogram)])

    with serve_metrics([measures], address="127.0.0.1", port=0) as url:
        assert threads == []
        lines = (await asyncio.to_thread(scraped, url)).splitlines()
    assert threads == [threading.current_thread()]
    for line in (
        "# TYPE hopper_a gauge", 'hopper_a{x="1"} 2.0', 'hopper_a{x="say \\"no\\""} 3.0', "hopper_b_total 7.0",
        'hopper_c_bucket{le="1",x="1"} 0.0', 'hopper_c_bucket{le="+Inf",x="1"} 1.0', 'hopper_c_sum{x="1"} 3.0',
    ):  # fmt: skip
        assert line in lines, lines


async def test_a_port_that_is_taken_is_said() -> None:
    with (
        serve_metrics([], address="127.0.0.1", port=0) as url,
        pytest.raises(MetricsNotServed, match="choose another HOPPER_METRICS_PORT"),
        serve_metrics([], address="127.0.0.1", port=int(url.split(":")[2].split("/")[0])),
    ):
        pass


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"metrics_port": 0}, ("127.0.0.1", 0)),
        ({"metrics_address": "::1"}, ("::1", 9464)),
        ({"metrics_address": "0.0.0.0", "metrics_port": 9}, ("0.0.0.0", 9)),  # noqa: S104 - only compared
    ],
)
def test_it_is_off_unless_an_address_or_a_port_is_set(
    fields: dict[str, object], expected: tuple[str, int] | None
) -> None:
    assert HostSettings.model_validate(fields).metrics == expected


async def test_the_host_serves_what_its_services_measure(tmp_path: Path) -> None:
    """Each service adds its own; when the host stops, nothing answers any more."""

    def service(name: str) -> Service:
        @asynccontextmanager
        async def opened(context: HostContext) -> AsyncIterator[Running]:
            yield Running(measures=[lambda: [Measure(f"hopper_{name}", "gauge", name, [({}, 1)])]])

        return Service(name=name, open=opened)

    settings = HostSettings(data_dir=tmp_path, socket=tmp_path / "s", metrics_port=0)
    stop, ready = asyncio.Event(), asyncio.Event()

    def is_ready(_: Ready) -> None:
        ready.set()

    with capture_logs() as logged:
        serving = asyncio.ensure_future(
            serve([service("a"), service("b")], settings, ready=is_ready, stop=stop)
        )
        await ready.wait()
    (url,) = [line["url"] for line in logged if line["event"] == "metrics are served"]
    text = await asyncio.to_thread(scraped, url)
    assert "hopper_a 1.0" in text
    assert "hopper_b 1.0" in text
    stop.set()
    await serving
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scraped, url)
