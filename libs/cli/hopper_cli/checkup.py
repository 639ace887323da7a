"""
The checks of `hopper doctor`. Each looks at one thing and says what it saw: nothing raises, nothing is changed,
and one that cannot be made because an earlier one failed is left out.
"""

import json
import os
import platform
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopper_cli.checks import Check, Status, fail, ok, warn
from hopper_cli.checkup_work import hand_overs, peers, tasks
from hopper_cli.claims import FILE as CLAIMS
from hopper_cli.cli import Cli
from hopper_common.errors import HopperError
from hopper_common.startup import StartupError

if TYPE_CHECKING:
    from hopper.common.v1.audit_service_pb2 import VerifyAuditResponse
    from hopper_common.audit.chain import Verdict

_DATABASES: Final = ("registry.db", "router.db", "memory.db", "federation.db", "audit.db")
_MARK: Final = "federation.mark"
"""Where the federation service keeps what it knows of its database outside of it."""
_SERVICES: Final = {
    "registry": ("hopper.registry.v1.ProjectService", "hopper.registry.v1.InstanceService"),
    "router": (
        "hopper.router.v1.TaskService",
        "hopper.router.v1.RoutingService",
        "hopper.router.v1.WorkService",
        "hopper.router.v1.DelegationService",
    ),
    "memory": (
        "hopper.memory.v1.WorkingMemoryService",
        "hopper.memory.v1.EpisodicMemoryService",
        "hopper.memory.v1.FeedbackService",
    ),
    "federation": ("hopper.federation.v1.PeerAdminService",),
}
_LITTLE_SPACE: Final = 1_000_000_000
_NO_SPACE: Final = 50_000_000
_SKEW_SECONDS: Final = 5.0
_LONG: Final = 60.0
_MOST_RECORDS: Final = 10_000
"""How much of the audit log is looked at: a doctor is not to keep people waiting."""
_SETTLING: Final = 2.0
"""Seconds the router is given to hear of a change in the registry."""


def examine(cli: Cli) -> list[Check]:
    """Every check that can be made."""
    found = [_versions(), _settings(), *_data_dir(cli.data_dir)]
    answers = list(_answers(cli))
    found += answers
    running = all(check.status is Status.OK for check in answers)
    if cli.data_dir.is_dir():
        found += [_database(cli.data_dir / name, running) for name in _DATABASES]
        found += [_identity(cli), *_restored(_mark(cli.data_dir)), _claims(cli.data_dir / CLAIMS)]
    found.append(_clock(cli, running))
    if running:
        found += [_asked(name, check, cli) for name, check in _CALLS]
    return found


# This machine.


def _versions() -> Check:
    from hopper_cli import VERSION

    parts = [f"hopper {VERSION}", f"python {platform.python_version()}"]
    parts += [f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf", "SQLAlchemy")]
    parts.append(f"sqlite {sqlite3.sqlite_version}")
    return ok("versions", ", ".join(parts))


def _settings() -> Check:
    from hopper_common.settings import load_settings

    try:
        load_settings()
    except StartupError as error:
        return fail("settings", str(error), "correct or unset that environment variable")
    names = sorted(name for name in os.environ if name.startswith("HOPPER_"))
    return ok("settings", ", ".join(names) if names else "no HOPPER_ variable is set")


def _data_dir(path: Path) -> Iterator[Check]:
    if not path.exists():
        yield warn("data directory", f"{path} is not there yet", "`hopper up` makes it")
        return
    if not path.is_dir():
        yield fail(
            "data directory", f"{path} is no directory", "remove it, or choose another (HOPPER_DATA_DIR)"
        )
        return
    yield _private(path)
    yield _space(path)


def _private(path: Path) -> Check:
    found = path.stat()
    if found.st_uid != os.getuid():
        return fail(
            "data directory",
            f"{path} belongs to user {found.st_uid}",
            "chown it, or choose another (HOPPER_DATA_DIR)",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return fail("data directory", f"others may write to {path}", f"chmod 700 {path}")
    return ok("data directory", f"{path}, yours alone to write")


def _space(path: Path) -> Check:
    free = shutil.disk_usage(path).free
    detail = f"{free / 1e9:,.1f} GB free at {path}"
    if free < _NO_SPACE:
        return fail("disk space", detail, "make room: Hopper refuses what it cannot store")
    if free < _LITTLE_SPACE:
        return warn("disk space", detail, "make room soon")
    return ok("disk space", detail)


def _database(path: Path, running: bool) -> Check:
    name = path.name
    if not path.exists():
        if running:
            return warn(name, f"not in {path.parent}", "the Hopper that answers keeps its data elsewhere")
        return ok(name, "not there yet; `hopper up` makes it")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return fail(name, "others may read it", f"chmod 600 {path}")
    size = f"{path.stat().st_size / 1e6:,.1f} MB"
    if running:
        return ok(name, f"{size}, in use (it was checked when it was opened)")
    return _quick_check(path, size)


def _quick_check(path: Path, size: str) -> Check:
    remedy = f"restore {path} from a copy, or move it away to begin anew"
    try:
        # Immutable: looking at it makes no files beside it. Nobody has it open; changes that are still in the
        # write-ahead log are not looked at.
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return fail(path.name, f"cannot be read: {error}", remedy)
    return ok(path.name, f"{size}, sound") if said == "ok" else fail(path.name, str(said), remedy)


def _identity(cli: Cli) -> Check:
    """Looks at the files only: what is due is for the Hopper that runs, or is started."""
    from hopper_common.identity.errors import IdentityRefused
    from hopper_common.identity.spiffe import shown
    from hopper_common.identity.state import Directory
    from hopper_common.identity.store import read_passphrase
    from hopper_common.settings import load_settings

    try:
        settings = load_settings()
        where, file = Directory(settings.identity_path), settings.identity_passphrase_file
        if not where.exists():
            return ok("identity", "not there yet; `hopper up` makes it")
        state = where.read(cli.now)
        where.read_keys(state, cli.now, None if file is None else read_passphrase(file))
    except IdentityRefused as error:
        message, _, remedy = str(error).rpartition(": ")
        return fail("identity", message, remedy)
    except StartupError:
        return ok("identity", "not looked at: the settings are wrong")
    return ok("identity", f"{shown(state.bundle.install_id)}, its files are sound and yours alone")


def _mark(data_dir: Path) -> Path:
    from hopper_common.settings import SettingsWrong, load_settings

    try:
        settings = load_settings()
    except SettingsWrong:  # said by the check of the identity
        return data_dir / _MARK
    return settings.model_copy(update={"data_dir": data_dir}).shared_path(_MARK)


def _restored(path: Path) -> Iterator[Check]:
    """Whether the federation service found its database, or the identity, brought back from a copy."""
    if not path.exists():
        return
    try:
        mark = json.loads(path.read_bytes())
        why, waiting = str(mark["restored"]), [str(name) for name in mark["unsynced"]]
    except (OSError, ValueError, KeyError, TypeError):
        yield warn("restored", f"{path} cannot be read", f"remove it; {path.stem} then compares notes anew")
        return
    if not why:
        yield ok("restored", "nothing: the databases are the ones that Hopper ended with")
    elif not waiting:
        yield ok("restored", f"{why}; notes were compared with every peer since")
    else:
        yield warn(
            "restored",
            f"{why}; nothing is sent to {', '.join(waiting)} before notes are compared",
            "let it reach them: that is done by itself (`hopper peer status`); if you restored nothing, see who did",
        )


def _claims(path: Path) -> Check:
    from hopper_cli.claims import ClaimsFile
    from hopper_cli.problems import CommandError

    if not path.exists():
        return ok("claims", "you hold none")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return fail("claims", f"others may read {path}", f"chmod 600 {path}")
    try:
        count = len(ClaimsFile(path.parent).all())
    except CommandError as error:
        return fail("claims", error.message, error.remedy)
    return ok("claims", f"you hold {count}")


def _clock(cli: Cli, running: bool) -> Check:
    now = time.time()
    newest = max(
        (path.stat().st_mtime for path in (cli.data_dir / name for name in _DATABASES) if path.exists()),
        default=0.0,
    )
    if running:
        newest = max(newest, _newest_task(cli))
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if newest - now > _SKEW_SECONDS:
        return fail(
            "clock",
            f"{shown}, which is {newest - now:.0f} s before the newest thing Hopper has stored",
            "set the clock (timedatectl set-ntp true)",
        )
    return ok("clock", shown)


def _newest_task(cli: Cli) -> float:
    from hopper.router.v1.task_pb2 import Task
    from hopper.router.v1.task_service_pb2 import ListTasksRequest

    states = [state for state in Task.State.values() if state != Task.STATE_UNSPECIFIED]
    try:
        found = cli.hopper.tasks.ListTasks(ListTasksRequest(page_size=1, states=states)).tasks
    except HopperError:  # has a check of its own
        return 0.0
    return float(found[0].create_time.seconds) if found else 0.0


# The Hopper that answers.


def _answers(cli: Cli) -> Iterator[Check]:
    address = cli.address
    if address.startswith("unix:"):
        yield _socket(Path(address.removeprefix("unix:")))
    yield from _health(cli, address)


def _socket(path: Path) -> Check:
    from hopper_common.rpc.address import unix_address

    try:
        unix_address(path)
        mode = path.lstat().st_mode
    except StartupError as error:
        return fail("socket", str(error), "choose a shorter data directory (HOPPER_DATA_DIR)")
    except FileNotFoundError:
        return fail("socket", f"{path} is not there", "start a Hopper: `hopper up`")
    except OSError as error:
        return fail(
            "socket", f"{path}: {error.strerror}", "see who owns it, or choose another (HOPPER_DATA_DIR)"
        )
    if not stat.S_ISSOCK(mode):
        return fail("socket", f"{path} is no socket", "remove it, then `hopper up`")
    if stat.S_IMODE(mode) & 0o077:
        return fail("socket", f"others may connect to {path}", f"chmod 600 {path}")
    return ok("socket", str(path))


def _health(cli: Cli, address: str) -> Iterator[Check]:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from hopper_common.rpc.address import check_address

    try:
        channel = grpc.insecure_channel(check_address(address), options=(("grpc.enable_http_proxy", 0),))
    except StartupError as error:
        yield fail("Hopper", str(error), "say another --address")
        return
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def serves(service: str) -> bool:
            asked = health_pb2.HealthCheckRequest(service=service)
            answer = stub.Check(asked, timeout=cli.timeout)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        try:
            healthy = serves("")
        except grpc.RpcError as error:
            yield fail("Hopper", f"nobody answers at {address} ({_code(error)})", "start one: `hopper up`")
            return
        if not healthy:
            yield fail("Hopper", f"the Hopper at {address} is going down", "wait, then `hopper up`")
            return
        yield ok("Hopper", f"answers at {address}")
        for name, services in _SERVICES.items():
            yield _service(name, services, serves)


def _service(name: str, services: tuple[str, ...], serves: Callable[[str], bool]) -> Check:
    import grpc

    missing = []
    for service in services:
        try:
            if not serves(service):
                missing.append(service)
        except grpc.RpcError as error:
            missing.append(f"{service} ({_code(error)})")
    if missing:
        return fail(
            name, f"not served: {', '.join(missing)}", f"see the log of `hopper up`, or start {name} too"
        )
    return ok(name, f"serves {len(services)} services")


def _code(error: Any) -> str:
    return str(error.code().name).lower().replace("_", " ")


def _asked(name: str, check: Callable[[Cli], Check], cli: Cli) -> Check:
    try:
        return check(cli)
    except HopperError as error:
        return fail(name, error.message, "see the log of `hopper up`")


def _directory(cli: Cli) -> Check:
    """Whether the router decides with the projects and instances that the registry has."""
    registry = _registry_version(cli)
    deadline = time.monotonic() + _SETTLING
    while (known := _router_version(cli)) < registry and time.monotonic() < deadline:
        time.sleep(0.1)
    if known < registry:
        return fail(
            "directory",
            f"the router decides with version {known} of the projects, and the registry is at {registry}",
            "see the log for why the router cannot watch the registry (HOPPER_REGISTRY_ADDRESS), then restart it",
        )
    return ok("directory", f"the router has the registry's version {registry}")


def _registry_version(cli: Cli) -> int:
    changes = cli.hopper.watch_projects()
    with closing(changes):
        return next(message.version for message in changes if message.HasField("snapshot_complete"))


def _router_version(cli: Cli) -> int:
    from hopper.router.v1.routing_service_pb2 import SuggestRouteRequest
    from hopper.router.v1.task_pb2 import TaskSpec

    request = SuggestRouteRequest(parent="instances/global", spec=TaskSpec(title="hopper doctor"))
    basis = cli.hopper.routing.SuggestRoute(request).decision.basis
    return max(basis.projects_version, basis.instances_version)


def _projects(cli: Cli) -> Check:
    from hopper.registry.v1.project_pb2 import Executor
    from hopper_cli.commands.projects import all_projects
    from hopper_cli.names import bare

    found = all_projects(cli)
    if not found:
        return warn("projects", "there is none, so tasks wait", "`hopper project add`")
    idle = [
        bare(each.name)
        for each in found
        if each.executor.requires_live_worker
        and not each.presence.live_workers
        and each.executor.type != Executor.TYPE_PEER  # `peers` says how those are
    ]
    if idle:
        return warn(
            "projects", f"without a live worker: {', '.join(idle)}", "start their workers: `hopper work`"
        )
    return ok("projects", f"{len(found)}, {sum(each.presence.live_workers for each in found)} live workers")


def _instances(cli: Cli) -> Check:
    from hopper.registry.v1.instance_pb2 import Instance
    from hopper_cli.commands.instances import all_instances
    from hopper_cli.names import bare

    found = all_instances(cli)
    broken = [bare(each.name) for each in found if each.state == Instance.STATE_ERROR]
    if broken:
        return warn(
            "instances",
            f"in error: {', '.join(broken)}",
            "`hopper instance show` says why, `start` tries again",
        )
    return ok("instances", str(len(found)))


def _memory(cli: Cli) -> Check:
    from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest

    stats = cli.hopper.feedback.GetStats(GetStatsRequest())
    return ok(
        "learning", f"memory has {stats.decisions} decisions, {stats.with_outcome} joined to an outcome"
    )


def _audit(cli: Cli) -> Check:
    """Whether the audit log is as it was written; of a long one, its end."""
    from hopper_common.errors import PermissionDenied

    try:
        newest = _newest_record(cli)
        verdict = _whole_audit(cli) if newest <= _MOST_RECORDS else _end_of_audit(cli, newest)
    except PermissionDenied as error:
        return ok("audit", f"not looked at: {error.message}")
    if verdict.intact:
        of = "" if newest <= _MOST_RECORDS else f" of {newest:,}, the newest"
        return ok("audit", f"intact: {verdict.records:,} records{of}; each follows from the one before")
    return fail(
        "audit",
        f"changed by somebody: record {verdict.broken_sequence}: {verdict.problem}",
        "find out who else may write its database, and change this Hopper's keys if it is nobody you know; copy it, "
        "and compare it with an earlier `hopper audit export` (`hopper audit verify --anchor`). It never verifies "
        "again: "
        f"to begin a new one, stop Hopper and move {cli.data_dir / 'audit.db'} away",
    )


def _newest_record(cli: Cli) -> int:
    from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest

    found = cli.hopper.audit.ListAuditRecords(ListAuditRecordsRequest(page_size=1)).records
    return found[0].sequence if found else 0


def _whole_audit(cli: Cli) -> "VerifyAuditResponse | Verdict":
    from hopper.common.v1.audit_service_pb2 import VerifyAuditRequest

    return cli.hopper.audit.VerifyAudit(VerifyAuditRequest())


def _end_of_audit(cli: Cli, newest: int) -> "VerifyAuditResponse | Verdict":
    from hopper.common.v1.audit_service_pb2 import ExportAuditRequest
    from hopper_common.audit.chain import ChainCheck
    from hopper_common.audit.convert import record_from_proto

    check = ChainCheck(after=None)
    request = ExportAuditRequest(after_sequence=newest - _MOST_RECORDS)
    for part in cli.hopper.audit.ExportAudit(request, timeout=_LONG):
        for record in part.records:
            check.add(record_from_proto(record))
    return check.result()


_CALLS: Final[tuple[tuple[str, Callable[[Cli], Check]], ...]] = (
    ("directory", _directory),
    ("projects", _projects),
    ("instances", _instances),
    ("peers", peers),
    ("hand-overs", hand_overs),
    ("tasks", tasks),
    ("learning", _memory),
    ("audit", _audit),
)
