"""The guard, before a real server: who is let in, who is not, for what reason, and what the audit log says of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hopper_common.auth import tokens
from hopper_common.auth.model import ROOT, Binding, KeyRecord, Kind, PrincipalRecord, Role, TokenKey
from hopper_common.auth.rates import Rate, Rates
from hopper_testing.certificates import Authority, malformed
from tests.common.auth.stage import (
    ADA,
    BOT,
    EVE,
    Stage,
    add_agent,
    add_person,
    bearer,
    new_directory,
    registry_of,
    stage,
)
from tests.common.rpc_toy import Refusal, pb

SOON = 30.0
REQUEST = pb.Request(name="a")


@pytest.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as made:
        yield made


async def eventually_ends(responses: Any) -> Refusal:
    """Read a stream to its bad end."""

    async def read() -> None:
        async for _ in responses:
            pass

    return await Refusal.of(asyncio.wait_for(read(), SOON))


def endless() -> AsyncIterator[Any]:
    async def ask() -> AsyncIterator[Any]:
        yield REQUEST
        await asyncio.Event().wait()

    return ask()


# Who calls.


async def test_the_owner_may_do_everything_on_the_socket(staged: Stage) -> None:
    assert (await staged.owner.Put(REQUEST)).text == "owner"
    assert (await staged.owner.Collect(iter([REQUEST]))).text == "owner"


async def test_nobody_is_let_in_without_saying_who_they_are(staged: Stage) -> None:
    requests = iter([REQUEST])
    for call in (staged.people.Put(REQUEST), staged.people.Collect(requests)):
        refused = await Refusal.of(call)
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    for stream in (staged.people.Watch(REQUEST), staged.people.Chat(iter([REQUEST]))):
        assert (await eventually_ends(stream)).reason == "UNAUTHENTICATED"


async def test_nothing_is_read_of_a_request_before_its_caller_is_known(staged: Stage) -> None:
    call: Any = staged.people_channel.unary_unary("/toy.v1.ToyService/Put")
    refused = await Refusal.of(call(b"\xff\xff\xff not a message"))
    assert refused.reason == "UNAUTHENTICATED"
    add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
    refused = await Refusal.of(call(b"\xff\xff\xff not a message", metadata=bearer(staged.key(ADA))))
    assert refused.reason == "PERMISSION_DENIED"


async def test_health_is_open_and_reflection_for_those_who_say_who_they_are(staged: Stage) -> None:
    health = health_pb2_grpc.HealthStub(staged.people_channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(staged.people_channel)

    def ask(**given: Any) -> Any:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        return reflection.ServerReflectionInfo(iter([request]), **given)

    assert (await eventually_ends(ask())).reason == "UNAUTHENTICATED"
    add_person(staged.directory, ADA)
    (listed,) = [answer async for answer in ask(metadata=bearer(staged.key(ADA)))]
    assert "toy.v1.ToyService" in [service.name for service in listed.list_services_response.service]


async def test_a_key_is_its_principal(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    assert (await staged.people.Put(REQUEST, metadata=bearer(staged.key(ADA)))).text == ADA


async def test_a_key_that_was_revoked_has_run_out_or_is_of_nobody_is_refused(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    add_person(staged.directory, EVE, (Role.MEMBER, ROOT))
    directory, now = staged.directory, staged.clock.now()
    revoked, orphan, good = staged.key(ADA), staged.key(EVE), staged.key(ADA)
    short = staged.key(ADA, lifetime=timedelta(seconds=5))
    known = directory.key(revoked.split("_")[1])
    assert known is not None
    directory.put_key(KeyRecord(known.id, known.principal, known.hash, known.expires, revoked=now))
    directory.remove_principal(EVE)
    staged.clock.advance(timedelta(seconds=5))
    foreign = new_directory(staged.clock)
    add_person(foreign, ADA, (Role.MEMBER, ROOT))
    elsewhere = stage_key(foreign, staged)
    cases = {
        revoked: "CREDENTIALS_REVOKED",
        orphan: "UNAUTHENTICATED",  # her keys went with her
        short: "CREDENTIALS_EXPIRED",
        elsewhere: "UNAUTHENTICATED",
        good[:-1] + ("a" if good[-1] != "a" else "b"): "UNAUTHENTICATED",
        "hop_": "UNAUTHENTICATED",
        "": "UNAUTHENTICATED",
    }
    for key, reason in cases.items():
        refused = await Refusal.of(staged.people.Put(REQUEST, metadata=bearer(key)))
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", reason)
    assert (await staged.people.Put(REQUEST, metadata=bearer(good))).text == ADA


def stage_key(directory: Any, staged: Stage) -> str:
    """A key that another Hopper has given out."""
    other = Stage(**(vars(staged) | {"directory": directory}))
    return other.key(ADA)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic YWRhOmE=")],
        [("authorization", "hop_x_y_z")],
        [("authorization", "Bearer a.b.c")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
    ],
)
async def test_a_header_of_another_kind_is_refused(staged: Stage, metadata: Any) -> None:
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert refused.reason == "UNAUTHENTICATED"


async def test_a_key_that_was_just_let_in_is_refused_once_nothing_was_heard_for_too_long(
    staged: Stage,
) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    metadata = bearer(staged.key(ADA))
    staged.clock.advance(timedelta(seconds=29.9))
    assert (await staged.people.Put(REQUEST, metadata=metadata)).text == ADA
    staged.clock.advance(timedelta(seconds=0.2))
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert refused.reason == "TRUST_STORE_STALE"
    staged.directory.heard()
    assert (await staged.people.Put(REQUEST, metadata=metadata)).text == ADA


async def test_when_nothing_was_heard_for_too_long_nobody_with_a_key_is_let_in(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    metadata = bearer(staged.key(ADA))
    staged.clock.advance(timedelta(seconds=30))
    assert (await staged.people.Put(REQUEST, metadata=metadata)).text == ADA
    staged.clock.advance(timedelta(seconds=1))
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "TRUST_STORE_STALE")
    assert refused.metadata == {"age_seconds": "31"}
    assert refused.error.retry_after is not None
    assert (await staged.owner.Put(REQUEST)).text == "owner"
    router = await staged.service()  # needs no directory
    assert (await router.Collect(iter([REQUEST]))).text.endswith("/svc/router")
    staged.directory.heard()
    assert (await staged.people.Put(REQUEST, metadata=metadata)).text == ADA


# What they may.


async def test_a_role_is_for_what_names_it_or_a_lower_one(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
    metadata = bearer(staged.key(ADA))
    assert [answer.text async for answer in staged.people.Watch(REQUEST, metadata=metadata)] == ["first", ADA]
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert refused.metadata["method"] == "/toy.v1.ToyService/Put"
    assert refused.metadata["rule"] == "no role that the method is for"


async def test_what_a_request_names_counts(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, "projects/web"), (Role.VIEWER, ROOT))
    metadata = bearer(staged.key(ADA))
    named = pb.Request(name="a", project="projects/web")
    assert (await staged.people.Put(named, metadata=metadata)).text == ADA
    for other in (pb.Request(name="a", project="projects/api"), REQUEST):  # what names nothing is of the root
        refused = await Refusal.of(staged.people.Put(other, metadata=metadata))
        assert refused.reason == "PERMISSION_DENIED"


async def test_each_message_of_a_stream_counts(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    add_agent(staged.directory, BOT, ADA, (Role.AGENT, "projects/web"))
    add_person(staged.directory, EVE, (Role.AGENT, "projects/web"))
    web, api = (pb.Request(name="a", project=f"projects/{name}") for name in ("web", "api"))
    heard: list[str] = []

    async def read() -> None:
        async for answer in staged.people.Chat(iter([web, api]), metadata=bearer(staged.key(EVE))):
            heard.append(answer.text)

    refused = await Refusal.of(read())
    assert (refused.reason, heard) == ("PERMISSION_DENIED", [EVE])


async def test_a_request_that_comes_in_pieces_is_about_what_its_first_piece_names(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, "projects/web"))
    metadata = bearer(staged.key(ADA))
    web, api = (pb.Request(name="a", project=f"projects/{name}") for name in ("web", "api"))
    answer = await staged.people.Assemble(iter([web, REQUEST, REQUEST]), metadata=metadata)
    assert answer.text == ADA
    for pieces in ([REQUEST, web], [api, REQUEST], [web, api], [web, REQUEST, api]):
        refused = await Refusal.of(staged.people.Assemble(iter(pieces), metadata=metadata))
        assert refused.reason == "PERMISSION_DENIED"


async def test_an_agent_may_what_it_and_its_person_may(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    add_agent(staged.directory, BOT, ADA, (Role.MEMBER, ROOT), (Role.AGENT, ROOT))
    metadata = bearer(staged.key(BOT))
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert refused.metadata["rule"] == "not for agents, whoever they act for"
    stream = staged.people.Chat(iter([REQUEST]), metadata=metadata)
    # Chat is for agents alone: her role does not reach so far.
    assert (await eventually_ends(stream)).metadata["rule"].startswith(f"for {ADA}: ")
    add_person(staged.directory, ADA, (Role.AGENT, ROOT))
    answers = staged.people.Chat(iter([REQUEST]), metadata=metadata)
    assert [answer.text async for answer in answers] == [BOT]
    staged.directory.put_principal(PrincipalRecord(ADA, Kind.PERSON, disabled=True))
    stream = staged.people.Chat(iter([REQUEST]), metadata=metadata)
    assert (await eventually_ends(stream)).reason == "CREDENTIALS_REVOKED"


async def test_a_key_with_scopes_may_no_more_than_they_say(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.ADMIN, ROOT))
    metadata = bearer(staged.key(ADA, scopes=(Binding(Role.MEMBER, "projects/web"),)))
    named = pb.Request(name="a", project="projects/web")
    assert (await staged.people.Put(named, metadata=metadata)).text == ADA
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=metadata))
    assert refused.metadata["rule"] == f"the key is not for that on {ROOT}"


# Services.


async def test_a_service_may_what_names_it_and_nothing_people_may(staged: Stage) -> None:
    router, memory = await staged.service("/svc/router"), await staged.service("/svc/memory")
    assert (await router.Collect(iter([REQUEST]))).text.endswith(".hopper/svc/router")
    for call in (memory.Collect(iter([REQUEST])), router.Put(REQUEST)):
        refused = await Refusal.of(call)
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


@pytest.mark.parametrize("path", ["/agent/x", "/node/n1", "/svc/api", "/svc/unheard", "/svc/router/x"])
async def test_a_certificate_of_another_path_is_refused(staged: Stage, path: str) -> None:
    other = await staged.service(path)
    refused = await Refusal.of(other.Collect(iter([REQUEST])))
    assert (refused.code, refused.reason, refused.metadata) == (
        "PERMISSION_DENIED",
        "PATH_DENIED",
        {"path": path},
    )


async def test_a_certificate_must_name_exactly_one_spiffe_id(staged: Stage) -> None:
    domain = staged.authority.trust_domain
    router = f"spiffe://{domain}/svc/router"
    leaves = {
        "none": staged.authority.leaf(uris=[], dns=[f"router.{domain}"]),
        "two": staged.authority.leaf(uris=[router, f"spiffe://{domain}/svc/memory"]),
        "port": staged.authority.leaf(uris=[malformed("port", domain, "/svc/router")]),
        "upper case": staged.authority.leaf(uris=[malformed("upper case", domain, "/svc/router")]),
        "query": staged.authority.leaf(uris=[malformed("query", domain, "/svc/router")]),
        "spelled as DNS": staged.authority.leaf(uris=[], dns=[router]),
    }
    for leaf in leaves.values():
        stub = await staged.service(leaf=leaf)
        refused = await Refusal.of(stub.Collect(iter([REQUEST])))
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "BAD_SAN")


async def test_a_certificate_that_names_another_hopper_is_refused(staged: Stage) -> None:
    other = Authority.new(staged.clock.now())
    stub = await staged.service(
        leaf=staged.authority.leaf(uris=[f"spiffe://{other.trust_domain}/svc/router"])
    )
    refused = await Refusal.of(stub.Collect(iter([REQUEST])))
    assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "ISSUER_MISMATCH")


async def test_a_certificate_of_another_root_does_not_finish_the_handshake(staged: Stage) -> None:
    posing = Authority.posing_as(
        staged.authority.root.certificate, staged.authority.trust_domain, staged.clock.now()
    )
    for leaf in (
        Authority.new(staged.clock.now()).leaf(),
        posing.leaf(path="/svc/router"),
        staged.authority.leaf(path="/svc/router", ends=timedelta(minutes=-1)),
        staged.authority.leaf(path="/svc/router", begins=timedelta(minutes=5)),
    ):
        stub = await staged.service(leaf=leaf)
        refused = await Refusal.of(stub.Collect(iter([REQUEST]), timeout=SOON))
        assert refused.code == "UNAVAILABLE"


async def test_a_certificate_that_runs_out_on_an_open_connection_is_refused(staged: Stage) -> None:
    router = await staged.service()
    await router.Collect(iter([REQUEST]))
    staged.clock.advance(timedelta(hours=73))
    refused = await Refusal.of(router.Collect(iter([REQUEST])))
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "LEAF_EXPIRED")
    assert set(refused.metadata) == {"not_before", "not_after"}


async def test_a_root_that_is_gone_counts_on_open_connections_too(staged: Stage) -> None:
    router = await staged.service()
    await router.Collect(iter([REQUEST]))
    stream = asyncio.ensure_future(router.Collect(endless()))
    staged.roots.clear()
    staged.changed_roots()
    refused = await Refusal.of(router.Collect(iter([REQUEST])))
    assert refused.reason == "ISSUER_MISMATCH"
    assert (await Refusal.of(asyncio.wait_for(stream, SOON))).reason == "ISSUER_MISMATCH"


# Tokens.


def token_of(staged: Stage, **given: Any) -> str:
    """A token of this Hopper's registry, for itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    staged.directory.put_token_key(TokenKey("k", public, staged.clock.now() + timedelta(days=1)))
    plain: dict[str, Any] = {
        "subject": ADA,
        "audience": registry_of(staged.authority),
        "issuer": staged.authority.trust_domain,
        "now": staged.clock.now(),
    }
    return tokens.issue(private, "k", **plain | given)[0]


async def test_a_service_that_passes_a_call_on_may_what_its_caller_may(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    router, metadata = await staged.service(), bearer(token_of(staged))
    assert (await router.Put(REQUEST, metadata=metadata)).text == ADA
    refused = await Refusal.of(router.Collect(iter([REQUEST]), metadata=metadata))
    assert refused.reason == "PERMISSION_DENIED"  # in her name it is not the router
    refused = await Refusal.of(router.Put(REQUEST, metadata=bearer(staged.key(ADA))))
    assert refused.reason == "UNAUTHENTICATED"  # keys are for people


async def test_a_token_runs_out_and_ends_with_the_key_it_was_got_with(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
    key_id = staged.key(ADA).split("_")[1]
    plain, bound = bearer(token_of(staged)), ""
    assert (await staged.people.Put(REQUEST, metadata=plain)).text == ADA
    bound = token_of(staged, api_key=key_id)
    assert (await staged.people.Put(REQUEST, metadata=bearer(bound))).text == ADA
    known = staged.directory.key(key_id)
    assert known is not None
    staged.directory.put_key(
        KeyRecord(known.id, known.principal, known.hash, known.expires, revoked=staged.clock.now())
    )
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=bearer(bound)))
    assert refused.reason == "CREDENTIALS_REVOKED"
    fresh = bearer(token_of(staged))
    assert (await staged.people.Put(REQUEST, metadata=fresh)).text == ADA
    staged.clock.advance(timedelta(minutes=5))
    staged.directory.heard()
    refused = await Refusal.of(staged.people.Put(REQUEST, metadata=fresh))
    assert refused.reason == "CREDENTIALS_EXPIRED"


# Calls under way.


async def hang(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


async def test_calls_under_way_end_when_their_key_is_revoked(tmp_path: Path) -> None:
    async with stage(tmp_path, hang) as staged:
        add_person(staged.directory, ADA, (Role.MEMBER, ROOT), (Role.AGENT, ROOT))
        add_person(staged.directory, EVE, (Role.MEMBER, ROOT), (Role.AGENT, ROOT))
        metadata, hers = bearer(staged.key(ADA)), bearer(staged.key(EVE))
        watch = staged.people.Watch(REQUEST, metadata=metadata)
        other = staged.people.Watch(REQUEST, metadata=hers)
        assert [(await anext(aiter(each))).text for each in (watch, other)] == ["first", "first"]
        poll = asyncio.ensure_future(staged.people.Put(REQUEST, metadata=metadata))
        chat = staged.people.Chat(endless(), metadata=metadata)
        await under_way(staged, 4)
        staged.directory.put_principal(PrincipalRecord(ADA, Kind.PERSON, disabled=True))
        for call in (eventually_ends(watch), Refusal.of(poll), eventually_ends(chat)):
            refused = await asyncio.wait_for(call, SOON)
            assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "CREDENTIALS_REVOKED")
        assert not other.done()
        other.cancel()


async def under_way(staged: Stage, calls: int) -> None:
    """Wait until the guard knows of that many."""
    async with asyncio.timeout(SOON):
        while staged.people_guard.under_way < calls:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_calls_under_way_end_when_a_role_is_taken_away(tmp_path: Path) -> None:
    async with stage(tmp_path, hang) as staged:
        add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
        watch = staged.people.Watch(REQUEST, metadata=bearer(staged.key(ADA)))
        assert (await anext(aiter(watch))).text == "first"
        add_person(staged.directory, ADA, (Role.VIEWER, "projects/web"))
        refused = await eventually_ends(watch)
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert refused.metadata["rule"] == f"no role on {ROOT} that the method is for"


async def test_calls_under_way_end_when_their_key_runs_out_or_nothing_is_heard(tmp_path: Path) -> None:
    async with stage(tmp_path, hang) as staged:
        add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
        short = staged.key(ADA, lifetime=timedelta(seconds=10))
        watches = [staged.people.Watch(REQUEST, metadata=bearer(key)) for key in (short, staged.key(ADA))]
        for watch in watches:
            assert (await anext(aiter(watch))).text == "first"
        staged.clock.advance(timedelta(seconds=10))
        assert (await eventually_ends(watches[0])).reason == "CREDENTIALS_EXPIRED"
        staged.clock.advance(timedelta(seconds=21))
        assert (await eventually_ends(watches[1])).reason == "TRUST_STORE_STALE"


# How often.


async def test_too_many_calls_are_told_when_to_come_again(tmp_path: Path) -> None:
    async with stage(tmp_path, rates=Rates(write=Rate(1, 2))) as staged:
        add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
        add_person(staged.directory, EVE, (Role.MEMBER, ROOT))
        metadata = bearer(staged.key(ADA))
        for _ in range(2):
            await staged.people.Put(REQUEST, metadata=metadata)
        # Another key of the same person is the same person.
        refused = await Refusal.of(staged.people.Put(REQUEST, metadata=bearer(staged.key(ADA))))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert refused.metadata == {"rate_class": "WRITE"}
        assert refused.error.retry_after == timedelta(seconds=1)
        await staged.people.Put(REQUEST, metadata=bearer(staged.key(EVE)))
        await staged.owner.Put(REQUEST)
        staged.clock.advance(timedelta(seconds=1))
        await staged.people.Put(REQUEST, metadata=metadata)


async def test_streams_are_counted_while_they_are_open(tmp_path: Path) -> None:
    async with stage(tmp_path, hang, Rates(open_streams=1)) as staged:
        add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
        metadata = bearer(staged.key(ADA))
        first = staged.people.Watch(REQUEST, metadata=metadata)
        assert (await anext(aiter(first))).text == "first"
        refused = await eventually_ends(staged.people.Watch(REQUEST, metadata=metadata))
        assert (refused.reason, refused.metadata) == ("RATE_LIMITED", {"rate_class": "WATCH"})
        first.cancel()
        await under_way_at_most(staged, 0)
        again = staged.people.Watch(REQUEST, metadata=metadata)
        assert (await anext(aiter(again))).text == "first"
        again.cancel()


async def under_way_at_most(staged: Stage, calls: int) -> None:
    async with asyncio.timeout(SOON):
        while staged.people_guard.under_way > calls:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_who_guesses_is_slowed_down_and_nobody_else(tmp_path: Path) -> None:
    async with stage(tmp_path, rates=Rates(strangers=Rate(1, 3))) as staged:
        add_person(staged.directory, ADA, (Role.MEMBER, ROOT))
        reasons = [
            (await Refusal.of(staged.people.Put(REQUEST, metadata=bearer(f"hop_{guess}")))).reason
            for guess in range(5)
        ]
        assert reasons == ["UNAUTHENTICATED"] * 3 + ["RATE_LIMITED"] * 2
        assert (await staged.people.Put(REQUEST, metadata=bearer(staged.key(ADA)))).text == ADA
        refused = [record for record in await staged.records() if not record.allowed]
        assert (
            sum(record.count for record in refused) == 3
        )  # who knocks as fast as they can does not fill the log


# What is written down.


async def test_the_log_says_who_was_let_in_to_what_and_by_which_rule(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.MEMBER, "projects/web"))
    key = staged.key(ADA)
    await staged.people.Put(pb.Request(name="a", project="projects/web"), metadata=bearer(key))
    await Refusal.of(staged.people.Put(pb.Request(name="secret"), metadata=bearer(key)))
    await Refusal.of(staged.people.Put(REQUEST))
    await staged.owner.Put(REQUEST)
    await (await staged.service()).Collect(iter([REQUEST]))
    await Refusal.of((await staged.service("/svc/memory")).Collect(iter([REQUEST])))
    domain = staged.authority.trust_domain
    told = [
        (record.principal, record.credential, record.source, record.method.rpartition("/")[2], record.allowed)
        for record in await staged.records()
    ]
    key_id = key.split("_")[1]
    assert sorted(told) == sorted(
        [
            (ADA, f"key:{key_id}", "127.0.0.1", "Put", True),
            (ADA, f"key:{key_id}", "127.0.0.1", "Put", False),
            ("stranger", "none", "127.0.0.1", "Put", False),
            ("owner", "socket", "unix", "Put", True),
            (f"spiffe://{domain}/svc/router", "certificate", "127.0.0.1", "Collect", True),
            (f"spiffe://{domain}/svc/memory", "certificate", "127.0.0.1", "Collect", False),
        ]
    )
    hers = [record for record in await staged.records() if record.principal == ADA]
    refused, allowed = sorted(hers, key=lambda record: record.allowed)
    assert (allowed.rule, list(allowed.resources)) == ("member on projects/web", ["projects/web"])
    assert (refused.rule, refused.reason) == (
        f"no role on {ROOT} that the method is for",
        "PERMISSION_DENIED",
    )
    assert "secret" not in str(await staged.records())


async def test_what_only_reads_is_not_written_down_unless_refused(staged: Stage) -> None:
    add_person(staged.directory, ADA, (Role.VIEWER, ROOT))
    assert [answer async for answer in staged.people.Watch(REQUEST, metadata=bearer(staged.key(ADA)))]
    assert await staged.records() == []
    await eventually_ends(staged.people.Watch(REQUEST))
    (record,) = await staged.records()
    assert (record.allowed, record.reason) == (False, "UNAUTHENTICATED")
