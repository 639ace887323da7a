"""
`hopper.registry.v1.AccessService`, one method per RPC.

What a key looks like is in an answer here, once, and nowhere else: the calls that make one take no `request_id`, so no
answer is kept, and nothing here is logged. The guard has let the caller in; what that leaves open, because it takes the
store to know, is asked in the transaction (`hopper_registry.granting`).
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import grpc.aio

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceServicer
from hopper_common import fieldmask
from hopper_common.auth import api_keys
from hopper_common.auth.current import current
from hopper_common.auth.model import Kind, Service
from hopper_common.clock import Clock
from hopper_common.errors import FieldViolation, InvalidArgument, PermissionDenied
from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid
from hopper_common.pagination import PageTokens
from hopper_common.rpc.limits import check_limits
from hopper_common.timestamps import from_proto, to_proto
from hopper_registry import access
from hopper_registry.access_convert import (
    bindings_to_proto,
    key_spec_from_proto,
    key_to_proto,
    principal_to_proto,
    spec_from_proto,
    spec_to_proto,
)
from hopper_registry.access_model import DEFAULT_OVERLAP, PrincipalSpec
from hopper_registry.access_watch import BEAT, watch_access
from hopper_registry.effective import effective
from hopper_registry.paging import page_of, place_of
from hopper_registry.store_sql import Registry, SqlStore
from hopper_registry.token_keys import TokenSigner

MUTABLE_OF_PRINCIPAL: Final = ("display_name", "bindings", "acts_for", "disabled")
FIRST_ADMIN: Final = "admin"

_Context = grpc.aio.ServicerContext[Any, Any]
_WITH_ROLES: Final = frozenset({Kind.PERSON, Kind.AGENT})
_AUDIENCES: Final = frozenset(service.path for service in Service)


class AccessServicer(AccessServiceServicer):
    """
    See the module.

    Args:
        issuer: The trust domain of this Hopper.
        beat: How often watchers are told that there is nothing more.
    """

    def __init__(
        self,
        registry: Registry,
        tokens: PageTokens,
        signer: TokenSigner,
        clock: Clock,
        *,
        issuer: str,
        beat: timedelta = BEAT,
    ) -> None:
        self._registry = registry
        self._tokens = tokens
        self._signer = signer
        self._clock = clock
        self._issuer = issuer
        self._beat = beat

    # Principals.

    async def CreatePrincipal(
        self, request: asvc.CreatePrincipalRequest, context: _Context
    ) -> asvc.CreatePrincipalResponse:
        caller, spec = current(), spec_from_proto(request.principal)
        name = f"principals/{request.principal_id}"

        def effect(store: SqlStore) -> asvc.CreatePrincipalResponse:
            principal = access.create(store, caller, name, spec)
            return asvc.CreatePrincipalResponse(principal=principal_to_proto(principal))

        return await self._registry.answer(
            request,
            asvc.CreatePrincipalResponse,
            effect,
            check=lambda store: access.check_grants(store, caller, spec.bindings),
        )

    async def GetPrincipal(
        self, request: asvc.GetPrincipalRequest, context: _Context
    ) -> asvc.GetPrincipalResponse:
        caller = current()
        principal = await self._registry.read(lambda store: access.see(store, caller, request.name))
        return asvc.GetPrincipalResponse(principal=principal_to_proto(principal))

    async def ListPrincipals(
        self, request: asvc.ListPrincipalsRequest, context: _Context
    ) -> asvc.ListPrincipalsResponse:
        after, size = place_of(self._tokens, request)
        found = await self._registry.read(lambda store: store.principals(after=after, limit=size + 1))
        page, token = page_of(map(principal_to_proto, found), size, self._tokens, request)
        return asvc.ListPrincipalsResponse(principals=page, next_page_token=token)

    async def UpdatePrincipal(
        self, request: asvc.UpdatePrincipalRequest, context: _Context
    ) -> asvc.UpdatePrincipalResponse:
        caller, name = current(), request.principal.name
        if not name:
            raise InvalidArgument(violations=[FieldViolation("principal.name", "is required")])

        def effect(store: SqlStore) -> asvc.UpdatePrincipalResponse:
            principal = access.update(
                store, caller, name, request.principal.etag, lambda spec: _merge(request, spec)
            )
            return asvc.UpdatePrincipalResponse(principal=principal_to_proto(principal))

        return await self._registry.answer(
            request,
            asvc.UpdatePrincipalResponse,
            effect,
            check=lambda store: access.check_changes(store, caller, name),
        )

    async def DeletePrincipal(
        self, request: asvc.DeletePrincipalRequest, context: _Context
    ) -> asvc.DeletePrincipalResponse:
        caller = current()

        def effect(store: SqlStore) -> asvc.DeletePrincipalResponse:
            return asvc.DeletePrincipalResponse(revoked_keys=access.delete(store, caller, request.name))

        return await self._registry.answer(
            request,
            asvc.DeletePrincipalResponse,
            effect,
            check=lambda store: access.check_changes(store, caller, request.name),
        )

    async def BootstrapAdmin(
        self, request: asvc.BootstrapAdminRequest, context: _Context
    ) -> asvc.BootstrapAdminResponse:
        if current().kind is not Kind.OWNER:
            raise PermissionDenied("only the owner, on this machine's own socket", rule="local")
        name, new = f"principals/{request.principal_id or FIRST_ADMIN}", api_keys.new_key()
        principal, key = await self._registry.change(lambda store: access.bootstrap(store, name, new))
        return asvc.BootstrapAdminResponse(
            principal=principal_to_proto(principal), key=key_to_proto(key), secret=new.key
        )

    # Keys.

    async def CreateApiKey(
        self, request: asvc.CreateApiKeyRequest, context: _Context
    ) -> asvc.CreateApiKeyResponse:
        caller, spec, new = current(), key_spec_from_proto(request.key), api_keys.new_key()
        key = await self._registry.change(
            lambda store: access.create_key(store, caller, request.parent, spec, new)
        )
        return asvc.CreateApiKeyResponse(key=key_to_proto(key), secret=new.key)

    async def ListApiKeys(
        self, request: asvc.ListApiKeysRequest, context: _Context
    ) -> asvc.ListApiKeysResponse:
        caller = current()
        keys = await self._registry.read(lambda store: access.keys(store, caller, request.parent))
        return asvc.ListApiKeysResponse(keys=map(key_to_proto, keys))

    async def RotateApiKey(
        self, request: asvc.RotateApiKeyRequest, context: _Context
    ) -> asvc.RotateApiKeyResponse:
        caller, new = current(), api_keys.new_key()
        overlap = DEFAULT_OVERLAP
        if request.HasField("overlap_seconds"):
            overlap = timedelta(seconds=request.overlap_seconds)
        key, replaced = await self._registry.change(
            lambda store: access.rotate_key(store, caller, request.name, overlap, new)
        )
        return asvc.RotateApiKeyResponse(
            key=key_to_proto(key), secret=new.key, replaced=key_to_proto(replaced)
        )

    async def RevokeApiKey(
        self, request: asvc.RevokeApiKeyRequest, context: _Context
    ) -> asvc.RevokeApiKeyResponse:
        caller = current()
        key = await self._registry.change(lambda store: access.revoke_key(store, caller, request.name))
        return asvc.RevokeApiKeyResponse(key=key_to_proto(key))

    async def RecordKeyUses(
        self, request: asvc.RecordKeyUsesRequest, context: _Context
    ) -> asvc.RecordKeyUsesResponse:
        now = self._clock.now()
        # No process gets a key to look as if it had been used in the future, where nothing later could correct it.
        uses = {use.key_id: min(from_proto(use.use_time), now) for use in request.uses}
        minutes = {key: time.replace(second=0, microsecond=0) for key, time in uses.items()}
        await self._registry.write(lambda store: store.note_uses(minutes))
        return asvc.RecordKeyUsesResponse()

    # About the caller.

    async def IssueToken(self, request: asvc.IssueTokenRequest, context: _Context) -> asvc.IssueTokenResponse:
        caller = current()
        audience = self._audience(request.audience)
        if caller.kind not in _WITH_ROLES:
            raise PermissionDenied(
                "a token is of a person or an agent: use a key of theirs", rule="only people and agents"
            )
        if not caller.credential.startswith("key:"):
            raise PermissionDenied("a token is got with a key, not with a token", rule="only with a key")
        person = caller.acting_for
        token, expires = self._signer.sign(
            subject=caller.name if person is None else person.name,
            actor="" if person is None else caller.name,
            audience=audience,
            api_key=caller.credential.removeprefix("key:"),
        )
        return asvc.IssueTokenResponse(token=token, expire_time=to_proto(expires))

    def _audience(self, text: str) -> str:
        """The SPIFFE id of the service that is meant."""
        try:
            name = SpiffeId.parse(text) if "://" in text else SpiffeId(self._issuer, f"/svc/{text}")
        except SpiffeInvalid:
            name = SpiffeId(self._issuer)
        if name.trust_domain != self._issuer or name.path not in _AUDIENCES:
            violation = FieldViolation(
                "audience", f"must be a service of this Hopper, such as spiffe://{self._issuer}/svc/router"
            )
            raise InvalidArgument(violations=[violation])
        return str(name)

    async def WhoAmI(self, request: asvc.WhoAmIRequest, context: _Context) -> asvc.WhoAmIResponse:
        caller = current()
        bindings = await self._registry.read(lambda store: effective(caller, access.StoredTree(store)))
        return asvc.WhoAmIResponse(
            principal=caller.name,
            acts_for=caller.acting_for.name if caller.acting_for is not None else "",
            credential=caller.credential,
            bindings=bindings_to_proto(bindings),
            expire_time=to_proto(caller.expires),
        )

    # For the other services.

    async def WatchAccess(
        self, request: asvc.WatchAccessRequest, context: _Context
    ) -> AsyncIterator[asvc.WatchAccessResponse]:
        messages = watch_access(self._registry, self._clock, after=request.after_version, beat=self._beat)
        async with aclosing(messages):
            async for message in messages:
                yield message


def _merge(request: asvc.UpdatePrincipalRequest, spec: PrincipalSpec) -> PrincipalSpec:
    merged = spec_to_proto(spec)
    fieldmask.merge(request.update_mask, request.principal, merged, mutable=MUTABLE_OF_PRINCIPAL)
    check_limits(asvc.UpdatePrincipalRequest(principal=merged, update_mask=request.update_mask))
    return spec_from_proto(merged)
