"""What Prometheus is told of a router, by a real scrape."""

import asyncio
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hopper_common.metrics import serve_metrics
from hopper_router import measures
from hopper_router.measures import RouterMeasures
from tests.router.harness import MINUTE, Router


async def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""

    def ask() -> str:
        with urlopen(url, timeout=60) as response:  # noqa: S310 - our own
            return str(response.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(ask))
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_a_scrape_tells_how_much_there_is_and_how_fast_it_goes(router: Router) -> None:
    router.registry.project("web", "web")
    with serve_metrics([RouterMeasures(router.engine)], address="127.0.0.1", port=0) as url:
        assert (await scrape(url))["hopper_tasks_added_total",] == 0
        for _ in range(3):
            await router.submit(required_capabilities=["web"], requester="secretive")
        await router.submit(required_capabilities=["nobody"])
        await router.complete(await router.claim_one("projects/web"))
        await router.fail(await router.claim_one("projects/web"), permanent=True)
        router.clock.advance(MINUTE)
        told = await scrape(url)
    assert told["hopper_tasks", "web", "QUEUED"] == 1
    assert told["hopper_tasks", "web", "RUNNING"] == 0
    assert told["hopper_tasks", "other", "SUBMITTED"] == 1
    assert (told["hopper_waits", "WORKER"], told["hopper_waits", "NO_ELIGIBLE_EXECUTOR"]) == (1, 1)
    assert (told["hopper_ready_tasks",], told["hopper_oldest_ready_seconds",]) == (1, 60)
    flows = [told[f"hopper_tasks_{flow}_total",] for flow in ("added", "started", "ended", "failed")]
    assert flows == [4, 2, 2, 1]
    assert told["hopper_set_size_count", "submit"] == told["hopper_set_seconds_count", "submit"] >= 3
    assert told["hopper_set_size_bucket", "+Inf", "claim"] == 2
    assert 0 < told["hopper_set_seconds_sum", "claim"] < 60
    assert not any("secret" in part for sample in told for part in sample)


async def test_only_the_busiest_projects_have_numbers_of_their_own(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MOST_PROJECTS", 2)
    for n in range(4):
        router.registry.project(f"p{n}", f"c{n}")
        for _ in range(n + 1):
            await router.submit(required_capabilities=[f"c{n}"])
    with serve_metrics([RouterMeasures(router.engine)], address="127.0.0.1", port=0) as url:
        told = await scrape(url)
    queued = {
        sample[1]: value for sample, value in told.items() if sample[0::2] == ("hopper_tasks", "QUEUED")
    }
    assert queued == {"p3": 4, "p2": 3, "other": 3}
