"""
Secrets and what tasks say, in a whole Hopper with federation: they are where they belong, and nowhere else.

Each way in has a random word of its own, so that what is found says how it got there.
"""

import base64
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from hopper.common.v1.options_pb2 import TrustLevel
from hopper.federation.v1 import peer_admin_service_pb2 as peers
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.registry.v1.access_service_pb2 import WhoAmIRequest
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.router.v1.task_pb2 import Failure, InputRequest, Progress, TaskSpec
from hopper.router.v1.task_service_pb2 import AnswerTaskRequest, SubmitTaskRequest
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    CompleteTasksRequest,
    Completion,
    FailTaskRequest,
    ReportProgressRequest,
    RequestInputRequest,
)
from hopper_common.auth.api_keys import new_key
from hopper_testing.processes import HopperProcess, lonely_host
from tests.e2e.calls import ROOT, Stubs, claim_request, connected, first_admin, register_crew, submit_request

TEXT_HOLDERS: Final = ("alice/router.db", "alice/memory.db")
"""Where what tasks say is kept: that is what these are for."""
HOLDERS: Final = {"policy label": ("alice/federation.db", "alice/registry.db", "alice/router.db")}
"""And what policies say: the registry shows it, and the router has a copy of what that knows."""

PATIENCE: Final = 240

POLICY: Final = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "in"
capabilities = ["docs.review"]
labels = ["{label}"]
"""


@dataclass
class Said:
    """
    What went in, and what came out.

    Attributes:
        texts: What tasks and policies say, by where it was put.
        secrets: Keys and tokens, or what they are made of, likewise.
        errors: What whoever was refused was told.
        shown: What was shown to whoever looks after it, by where.
    """

    texts: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def text(self, where: str) -> str:
        """A new word, to be put there."""
        self.texts[where] = f"w{secrets.token_hex(8)}"
        return self.texts[where]

    def secret(self, where: str, secret: str) -> str:
        """Note a secret."""
        self.secrets[where] = secret
        return secret

    def refused(self, where: str, call: Callable[..., Any], request: Any, **more: Any) -> None:
        """Make a call that must be refused."""
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=PATIENCE, **more)
        error: Any = caught.value
        self.errors[where] = f"{error.details()} {error.trailing_metadata()}"


@pytest.fixture
def whole(directory: Path, processes: list[HopperProcess]) -> HopperProcess:
    """A whole Hopper that tells as much as it can."""
    alice = HopperProcess(
        directory / "alice",
        listen="127.0.0.1:0",
        environment={
            "HOPPER_FEDERATION": "1",
            "HOPPER_PEER_LISTEN": "127.0.0.1:0",
            "HOPPER_PAIRING_LISTEN": "127.0.0.1:0",
            "HOPPER_LOG_LEVEL": "debug",
            "HOPPER_METRICS_ADDRESS": lonely_host(),
        },
    )
    processes.append(alice)
    return alice.start()


@pytest.fixture
def other(directory: Path, processes: list[HopperProcess]) -> HopperProcess:
    """Somebody to pair with."""
    bob = HopperProcess(directory / "bob", service="federation", environment={"HOPPER_LOG_LEVEL": "debug"})
    processes.append(bob)
    return bob.start()


def test_secrets_and_text_are_where_they_belong_and_nowhere_else(
    whole: HopperProcess, other: HopperProcess
) -> None:
    said = Said()
    with connected(whole.address) as stubs:
        register_crew(stubs)
        tasks_live(stubs, said)
        nonsense_is_refused(stubs, said)
    callers_show_keys(whole, said)
    owners_pair(whole, other, said)
    look_after(whole, said, f"http://{whole.environment['HOPPER_METRICS_ADDRESS']}:9464/metrics")
    cmdlines = {f"cmdline of {pid}": text for pid, text in processes_of(whole.pid).items()}
    whole.stop()
    other.stop()

    logs = {"log": whole.log_text(), "log of the other": other.log_text()}
    assert logs["log"].count('"event": "call finished"') > 10
    assert "hopper_" in said.shown["metrics"]
    assert '"method"' in said.shown["audit export"]
    everywhere = {**logs, **said.shown, **said.errors, **cmdlines}
    assert found(said.texts, everywhere) == []
    assert found(said.secrets, everywhere) == []
    files = contents(whole.data_dir) | contents(other.data_dir)
    assert found(said.secrets, files) == []
    kept = found(said.texts, files)
    assert [(what, file) for what, file in kept if not file.startswith(HOLDERS.get(what, TEXT_HOLDERS))] == []
    assert {what for what, _ in kept} >= {"title", "description", "result", "answer", "policy label"}


def tasks_live(stubs: Stubs, said: Said) -> None:
    """A task that is asked about and done, and one that fails."""
    request = submit_request(said.text("title"))
    request.spec.description = said.text("description")
    request.spec.payload = said.text("payload").encode()
    request.spec.tags.append(said.text("tag"))
    request.spec.labels["note"] = said.text("label")
    for _ in range(2):
        stubs.tasks.SubmitTask(request, timeout=PATIENCE)
    first, second = stubs.work.ClaimTasks(claim_request("w", 2), timeout=PATIENCE).tasks
    claim = ClaimRef(task=first.name, fencing_token=first.claim.fencing_token)
    progress = Progress(fraction=0.5, message=said.text("progress"))
    stubs.work.ReportProgress(ReportProgressRequest(claim=claim, progress=progress), timeout=PATIENCE)
    question = InputRequest(question=said.text("question"))
    stubs.work.RequestInput(RequestInputRequest(claim=claim, input=question), timeout=PATIENCE)
    answer = AnswerTaskRequest(name=first.name, answer=said.text("answer"))
    stubs.tasks.AnswerTask(answer, timeout=PATIENCE)
    done = Completion(claim=claim, result=said.text("result").encode())
    (result,) = stubs.work.CompleteTasks(CompleteTasksRequest(completions=[done]), timeout=PATIENCE).results
    assert not result.HasField("error"), result
    claim = ClaimRef(task=second.name, fencing_token=second.claim.fencing_token)
    failure = Failure(reason="NO_LUCK", message=said.text("failure"), permanent=True)
    stubs.work.FailTask(FailTaskRequest(claim=claim, failure=failure), timeout=PATIENCE)


def nonsense_is_refused(stubs: Stubs, said: Said) -> None:
    """With what is wrong named, and not repeated."""
    for where, request in (
        ("long title", SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title=said.text("long title") * 100))),
        (
            "bad tag",
            SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="t", tags=[f"{said.text('bad tag')} x"])),
        ),
        ("bad id", SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="t"), request_id=said.text("bad id"))),
        ("bad parent", SubmitTaskRequest(parent=said.text("bad parent"), spec=TaskSpec(title="t"))),
    ):
        said.refused(where, stubs.tasks.SubmitTask, request)


def callers_show_keys(hopper: HopperProcess, said: Said) -> None:
    """The right one, one that nobody has, and words that are none; in the header, and where it does not belong."""
    key = said.secret("key", first_admin(hopper.address))
    said.secret("key's secret", key.split("_")[2])
    wrong = {
        "unknown key": said.secret("unknown key", new_key().key),
        "changed key": key[:-1],
        "no key": said.secret("no key", secrets.token_hex(12)),
        "no token": said.secret("no token", ".".join(secrets.token_urlsafe(24) for _ in range(3))),
    }
    with grpc.insecure_channel(
        hopper.tcp_address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        access = AccessServiceStub(channel)
        access.WhoAmI(WhoAmIRequest(), timeout=PATIENCE, metadata=bearer(key))
        for where, shown in wrong.items():
            said.refused(where, access.WhoAmI, WhoAmIRequest(), metadata=bearer(shown))


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def owners_pair(hopper: HopperProcess, other: HopperProcess, said: Said) -> None:
    """By an invitation, after some that are none; then one is trusted by a policy."""
    with (
        grpc.insecure_channel(hopper.address, options=[("grpc.use_local_subchannel_pool", 1)]) as ours,
        grpc.insecure_channel(other.address, options=[("grpc.use_local_subchannel_pool", 1)]) as theirs,
    ):
        alice, bob = PeerAdminServiceStub(ours), PeerAdminServiceStub(theirs)
        invited = alice.CreateInvitation(peers.CreateInvitationRequest(peer_id="bob"), timeout=PATIENCE)
        token = said.secret("invitation", invited.token)
        said.secret("invitation, in the middle", token[20:60])
        for where, wrong in (
            ("no invitation", said.secret("no invitation", f"hopper1:{secrets.token_urlsafe(90)}")),
            ("half an invitation", token[: len(token) // 2]),
            ("invitation of its own", token),
        ):
            said.refused(where, alice.Join, peers.JoinRequest(token=wrong, peer_id="bob"))
        bob.Join(peers.JoinRequest(token=token, peer_id="alice"), timeout=PATIENCE)
        policy = POLICY.format(label=said.text("policy label"))
        trusted = peers.SetTrustRequest(name="peers/bob", level=TrustLevel.TRUST_LEVEL_TRUSTED, policy=policy)
        alice.SetTrust(trusted, timeout=PATIENCE)


def look_after(hopper: HopperProcess, said: Said, metrics: str) -> None:
    """What those see who look after it."""
    with urllib.request.urlopen(metrics, timeout=PATIENCE) as answer:  # noqa: S310 - http, of our own
        said.shown["metrics"] = answer.read().decode()
    for command in (("audit", "export"), ("doctor",), ("peer", "status")):
        said.shown[" ".join(command)] = ran(hopper, *command)


def ran(hopper: HopperProcess, *arguments: str) -> str:
    """All that a command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOPPER_")}
    done = subprocess.run(
        [sys.executable, "-m", "hopper_cli", *arguments],
        env={**environment, "HOPPER_DATA_DIR": str(hopper.data_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.stdout, done.stderr
    return done.stdout + done.stderr


def processes_of(pid: int) -> Mapping[int, str]:
    """What is shown to everybody on this machine of a process and of those it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    shown = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")}
    for child in children:
        shown.update(processes_of(int(child)))
    return shown


def contents(directory: Path) -> dict[str, str]:
    """All files, by name, as text that every byte survives in."""
    return {
        f"{directory.name}/{path.relative_to(directory)}": path.read_bytes().decode("latin-1")
        for path in directory.rglob("*")
        if path.is_file()
    }


def found(canaries: Mapping[str, str], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which canary is where, in any spelling."""
    return [
        (canary, where)
        for canary, word in canaries.items()
        for where, text in texts.items()
        if any(form in text for form in spellings(word))
    ]


def spellings(word: str) -> Iterator[str]:
    """As it is, and as bytes are shown."""
    yield word
    yield word.encode().hex()
    yield base64.b64encode(word.encode()).decode().rstrip("=")[:-1]
