"""What an operator may set for federation: environment variables, all of them `HOPPER_...`."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hopper_federation import addresses
from hopper_federation.artifacts.model import Limits

PEER_PORT = 8470
PAIRING_PORT = 8471
LIMITS = Limits()


class FederationSettings(BaseSettings):
    """
    The settings of federation. No port is listened on unless one of the first three is set.

    The pairing port is open only while an invitation or a pairing is, even then.
    """

    model_config = SettingsConfigDict(env_prefix="HOPPER_", env_ignore_empty=True, frozen=True)

    federation: bool = Field(default=False, description="Whether other Hoppers may be paired with.")
    peer_listen: str | None = Field(
        default=None, description="host:port for peers. Default: 0.0.0.0:8470 with federation, else none."
    )
    pairing_listen: str | None = Field(
        default=None,
        description="host:port for pairing, while it is open. Default: 0.0.0.0:8471 with federation, else none.",
    )
    name: str = Field(
        default_factory=lambda: socket.gethostname().partition(".")[0],
        max_length=64,
        description="What this Hopper calls itself; others see it as unverified. Default: the machine's name.",
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=8,
        description="Where others reach this machine, hosts without port, with commas. Default: its own addresses.",
    )

    discovery: bool = Field(
        default=False, description="Whether to announce this Hopper on the local network (multicast DNS)."
    )
    discovery_interfaces: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=16,
        description="Addresses of the interfaces to announce and to look on, with commas. Default: all of them.",
    )
    static_peers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=100,
        description="Peer ports, host:port with commas, that `hopper peer discover` shows too.",
    )

    delegation_lease: int = Field(
        default=900,
        ge=2,
        le=2_592_000,
        description="For how many seconds a peer has what it took over without a word from it. Default: 900.",
    )

    artifact_dir: Path | None = Field(
        default=None, description="Where files beside tasks are kept. Default: blobs in the data directory."
    )
    artifact_file_bytes: int = Field(
        default=LIMITS.file, ge=0, description="How large a file beside a task may be. Default: 1 GiB."
    )
    artifact_peer_bytes: int = Field(
        default=LIMITS.peer,
        ge=0,
        description="How much is kept of what comes from one peer. Default: 256 MiB.",
    )
    artifact_total_bytes: int = Field(
        default=LIMITS.total, ge=0, description="How much is kept in all. Default: 16 GiB."
    )

    @field_validator("hosts", "discovery_interfaces", "static_peers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("artifact_dir")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(addresses.check_host(host) for host in hosts)

    @field_validator("discovery_interfaces")
    @classmethod
    def _check_interfaces(cls, interfaces: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_address(address)) for address in interfaces)

    @field_validator("static_peers")
    @classmethod
    def _check_static(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(addresses.joined(*addresses.split(address)) for address in peers)

    @field_validator("peer_listen", "pairing_listen")
    @classmethod
    def _check_listen(cls, address: str | None) -> str | None:
        if address is not None:
            addresses.split(address, least_port=0)
        return address

    @property
    def artifact_limits(self) -> Limits:
        """How much is kept beside tasks."""
        return Limits(self.artifact_file_bytes, self.artifact_peer_bytes, self.artifact_total_bytes)

    @property
    def peers_at(self) -> str | None:
        """Where to listen for peers; None: nowhere."""
        return self.peer_listen or (f"0.0.0.0:{PEER_PORT}" if self.federation else None)

    @property
    def pairing_at(self) -> str | None:
        """Where to listen while pairing; None: nowhere."""
        return self.pairing_listen or (f"0.0.0.0:{PAIRING_PORT}" if self.federation else None)
