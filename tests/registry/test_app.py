"""The registry as a process of its own."""

import asyncio
import importlib.metadata
import os
import signal
import stat
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper_common.rpc.channel import open_channel
from hopper_registry.app import SERVICE
from hopper_testing.processes import START_SECONDS


def test_hosts_find_the_service_by_its_entry_point() -> None:
    entry = importlib.metadata.entry_points(group="hopper.services")["registry"]
    assert entry.load() is SERVICE


async def test_the_module_runs_the_service_until_it_is_told_to_stop(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hopper_registry",
        env={**os.environ, "HOPPER_DATA_DIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        assert b"registry" in await process.stdout.readline()
        async with open_channel(f"unix:{tmp_path}/registry.sock") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="hopper.registry.v1.ProjectService")
            )
            root = await InstanceServiceStub(channel).GetInstance(GetInstanceRequest(name="instances/global"))
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert root.instance.display_name == "global"
    assert stat.S_IMODE((tmp_path / "registry.db").stat().st_mode) == 0o600
