"""
One server with three doors behind the same mTLS, a process of its own: `… DIRECTORY`.

`open` asks nothing; `service` asks the certificate, of the federation service; `key` asks for an API key, of an agent.
SubmitTask answers with the task it was sent, with nothing behind it, so that the guard is as large a part of a call as
it can be. Everything that the guard needs is real: the audit log is written to a file.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from hopper.router.v1 import task_pb2, task_service_pb2
from hopper.router.v1.task_service_pb2_grpc import TaskServiceServicer, add_TaskServiceServicer_to_server
from hopper_common import logs
from hopper_common.audit.app import MIGRATIONS, open_chain
from hopper_common.audit.tables import METADATA
from hopper_common.auth import api_keys
from hopper_common.auth.bearer import Bearers
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import ROOT, Binding, KeyRecord, Kind, PrincipalRecord, Role
from hopper_common.auth.rates import Limiter, Rate, Rates
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.identity.certificates import Leaf
from hopper_common.rpc.guard import CallerGuard, Callers, Guard, NoGuard, People, Services
from hopper_common.rpc.presented import Certificates
from hopper_common.rpc.server import Registered, build_server
from hopper_testing.certificates import Authority

PLENTY = Rate(1e9, 1e9)
PERSON, AGENT = "principals/ada", "principals/bot"


class _Echo(TaskServiceServicer):
    """The other methods are left to the generated base."""

    async def SubmitTask(
        self, request: task_service_pb2.SubmitTaskRequest, context: Any
    ) -> task_service_pb2.SubmitTaskResponse:
        return task_service_pb2.SubmitTaskResponse(task=task_pb2.Task(spec=request.spec))


def _directory(clock: SystemClock, key: api_keys.NewKey) -> Directory:
    directory = Directory(clock.monotonic)
    team = "instances/team"
    directory.load(
        [
            PrincipalRecord(PERSON, Kind.PERSON, (Binding(Role.OPERATOR, ROOT),)),
            PrincipalRecord(
                AGENT, Kind.AGENT, (Binding(Role.VIEWER, team), Binding(Role.AGENT, ROOT)), PERSON
            ),
        ],
        [KeyRecord(key.id, AGENT, key.hash, clock.now().replace(year=clock.now().year + 1))],
        [],
    )
    directory.load_instances({ROOT: "", team: ROOT})
    return directory


async def _hear(directory: Directory) -> None:
    while True:
        directory.heard()
        await asyncio.sleep(5)


async def _serve(where: Path) -> None:
    async with AsyncExitStack() as stack:
        clock, key = SystemClock(), api_keys.new_key()
        database = await Database.open(
            where / "audit.db", metadata=METADATA, migrations=MIGRATIONS, service="audit"
        )
        stack.push_async_callback(database.close)
        audit = await stack.enter_async_context(open_chain(database, "bench", clock))
        directory = _directory(clock, key)
        authority = Authority.new(clock.now())
        domain, roots = authority.trust_domain, [authority.root.certificate]
        certificates = Certificates(
            lambda name: roots if name == domain else [], lambda: 0, clock.now, clock.monotonic
        )
        bearers = Bearers(directory, clock, audiences=[], issuer=domain)
        limiter = Limiter(Rates(work=PLENTY, services=PLENTY))

        def guard(callers: Callers) -> Guard:
            return CallerGuard(callers, directory, limiter, audit.sink, clock)

        guards = {
            "open": NoGuard(),
            "service": guard(Services(certificates, bearers, domain)),
            "key": guard(People(bearers)),
        }
        server = build_server(
            [
                Registered.of(
                    task_service_pb2.DESCRIPTOR.services_by_name["TaskService"],
                    _Echo(),  # type: ignore[abstract]  # the rest is METHOD_NOT_OFFERED
                    add_TaskServiceServicer_to_server,
                )
            ]
        )
        shown = authority.leaf(path="/svc/router")
        ports = {
            name: server.door(each).add_secure_port("127.0.0.1:0", _credentials(authority, shown))
            for name, each in guards.items()
        }
        await server.start()
        stack.push_async_callback(server.stop, 0)
        tasks = [asyncio.create_task(audit.sink.keep()), asyncio.create_task(_hear(directory))]
        caller = authority.leaf(path="/svc/federation")
        (where / "ca.pem").write_bytes(authority.pem)
        (where / "client.pem").write_bytes(caller.chain_pem)
        (where / "client.key").write_bytes(caller.key_pem)
        gc.collect()
        gc.freeze()
        print(json.dumps({"ports": ports, "key": key.key, "name": f"router.{domain}"}), flush=True)
        await asyncio.gather(*tasks)


def _credentials(authority: Authority, shown: Leaf) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(shown.key_pem, shown.chain_pem)], authority.pem, require_client_auth=True
    )


if __name__ == "__main__":
    import uvloop

    logs.configure(level="warning", form="json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
