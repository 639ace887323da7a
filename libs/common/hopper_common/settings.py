"""
What the operator may set for a process: environment variables, all of them `HOPPER_...`.

The environment is read here and in each service's own settings, and nowhere else.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_common.metrics import DEFAULT_ADDRESS, DEFAULT_PORT
from hopper_common.startup import StartupError


class SettingsWrong(StartupError):
    """An environment variable does not say what it should."""

    exit_code = 2


def _plain_seconds(value: Any) -> Any:
    """Let `10` mean ten seconds: pydantic takes a number, but the environment only has text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # ISO 8601, or pydantic says what is wrong with it


Seconds = Annotated[timedelta, BeforeValidator(_plain_seconds)]


class HostSettings(BaseSettings):
    """
    The settings of one process, whatever services it runs.

    Durations are seconds (`10`, `0.5`) or ISO 8601 (`PT10S`).
    """

    model_config = SettingsConfigDict(env_prefix="HOPPER_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Field(
        default=Path("~/.hopper"),
        validate_default=True,
        description="Databases, sockets and locks: one per Hopper.",
    )
    socket: Path | None = Field(
        default=None, description="The Unix socket. Default: hopper.sock in data_dir."
    )
    listen: str | None = Field(
        default=None,
        description="A host:port for people and agents, who show a key or a token; port 0 takes a free one. "
        "Default: none.",
    )
    listen_tls: bool | None = Field(
        default=None,
        description="Whether that port speaks TLS. Default: if others than this machine can reach it.",
    )
    services_listen: str | None = Field(
        default=None,
        description="Where services of other processes call, by certificates: sockets, for <service>.mtls.sock in "
        "data_dir; none; or a host:port besides those sockets. Default: sockets, of a process that runs one service "
        "alone; else none.",
    )
    identity_dir: Path | None = Field(
        default=None,
        description="This Hopper's keys and certificates, one for all its processes. Default: identity in data_dir.",
    )
    identity_passphrase_file: Path | None = Field(
        default=None, description="A file with the passphrase that the root's key is sealed with, if it is."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is console on a terminal, and JSON lines elsewhere."
    )
    drain_timeout: Seconds = Field(
        default=timedelta(seconds=10),
        ge=timedelta(0),
        description="How long a stop waits for calls in flight.",
    )
    registry_address: str | None = Field(
        default=None, description="Where the registry is, if not in this process."
    )
    router_address: str | None = Field(
        default=None, description="Where the router is, if not in this process."
    )
    memory_address: str | None = Field(default=None, description="Where memory is, if not in this process.")
    federation_address: str | None = Field(
        default=None, description="Where the federation service is, if not in this process."
    )
    sage_address: str | None = Field(
        default=None,
        description="Where the Sage is that policies ask without saying where: unix:/path, or a loopback host:port.",
    )
    # Secret, because an address may have a password in it.
    database: SecretStr | None = Field(
        default=None,
        description="postgresql://... for all services: each has a schema of its own there. Default: files.",
    )
    registry_database: SecretStr | None = Field(
        default=None,
        description="A file or postgresql://... for the registry. Default: registry.db in data_dir.",
    )
    router_database: SecretStr | None = Field(
        default=None, description="A file or postgresql://... for the router. Default: router.db in data_dir."
    )
    memory_database: SecretStr | None = Field(
        default=None, description="A file for memory. Default: memory.db in data_dir."
    )
    federation_database: SecretStr | None = Field(
        default=None,
        description="A file or postgresql://... for federation. Default: federation.db in data_dir.",
    )
    audit_database: SecretStr | None = Field(
        default=None,
        description="A file or postgresql://... for the audit log. Default: audit.db in data_dir; of a process that "
        "runs one service alone, audit_<service>.db.",
    )

    metrics_address: str | None = Field(
        default=None,
        description="Where Prometheus may ask. Default: 127.0.0.1, if there is a port; else nowhere.",
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="The port for that. Default: 9464, if there is an address."
    )

    # A second, per person or agent; twice as many at once after a pause.
    rate_read: float = Field(default=500, gt=0, description="Reads a second, of one person or agent.")
    rate_write: float = Field(default=200, gt=0, description="Changes a second.")
    rate_work: float = Field(
        default=5000, gt=0, description="Tasks submitted, claimed, kept and ended a second."
    )
    rate_admin: float = Field(default=10, gt=0, description="Far-reaching changes a second.")
    rate_services: float = Field(
        default=5000, gt=0, description="Calls of each class a second, of one service."
    )
    rate_strangers: float = Field(
        default=1,
        gt=0,
        description="Failures to prove who calls, a second, from one network; 20 times that at once.",
    )
    rate_open_streams: int = Field(
        default=100, ge=1, description="Streams open at a time, of one person or agent."
    )

    _alone: str = PrivateAttr("")

    @field_validator("data_dir", "socket", "identity_dir", "identity_passphrase_file")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("database")
    @classmethod
    def _shareable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("services can share no file: give postgresql://..., or a file to each")
        return url

    def for_one(self, service: str) -> "HostSettings":
        """
        The settings of a process that runs *service* alone.

        Its socket and its lock carry the service's name, so that several such processes can share a data
        directory.
        """
        copy = self.model_copy()
        copy._alone = service
        return copy

    @property
    def process(self) -> str:
        """What kind of process it is: `hopper`, or the name of the service that it runs alone."""
        return self._alone or "hopper"

    @property
    def alone(self) -> bool:
        """Whether it runs one service, and the others are in processes of their own."""
        return bool(self._alone)

    @property
    def identity_path(self) -> Path:
        """Where this Hopper's keys and certificates are."""
        return self.identity_dir or self.data_dir / "identity"

    def shared_path(self, name: str) -> Path:
        """A file of all processes that share the identity: beside it, where that has a place of its own."""
        shared = self.identity_dir
        return self.data_dir / name if shared is None else shared.with_name(f"{shared.name}.{name}")

    def services_socket_path(self, service: str) -> Path:
        """Where other services reach one that runs here."""
        return self.data_dir / f"{service}.mtls.sock"

    @property
    def socket_path(self) -> Path:
        """Where this process listens for its owner."""
        return self.socket or self.data_dir / f"{self.process}.sock"

    @property
    def lock_path(self) -> Path:
        """The lock that keeps a second process of the same kind out of the data directory."""
        return self.data_dir / (f"hopper_{self._alone}.lock" if self._alone else "hopper.lock")

    @property
    def metrics(self) -> tuple[str, int] | None:
        """Address and port for Prometheus; None: nowhere."""
        if self.metrics_address is None and self.metrics_port is None:
            return None
        port = DEFAULT_PORT if self.metrics_port is None else self.metrics_port
        return self.metrics_address or DEFAULT_ADDRESS, port

    def database_of(self, service: str) -> str:
        """
        Where a service keeps its data: a file, or an address, with its password. Not for logs.

        Default: the database of all services, else a file of the service's name in the data directory.
        """
        own = getattr(self, f"{service}_database", None)
        return self._database(own, f"{service}.db")

    @property
    def audit_database_url(self) -> str:
        """Where the process keeps its audit log; a file of its own, or a shared database. Not for logs."""
        return self._database(self.audit_database, f"audit_{self._alone}.db" if self._alone else "audit.db")

    def _database(self, own: SecretStr | None, file: str) -> str:
        named = own or self.database
        where = str(self.data_dir / file) if named is None else named.get_secret_value()
        return where if "://" in where else str(Path(where).expanduser().absolute())

    def address_of(self, service: str) -> str:
        """
        Where a service is that runs in *another* process.

        Default: the socket it has for services when it runs alone on the same data directory.
        """
        configured: str | None = getattr(self, f"{service}_address", None)
        return configured or f"unix:{self.services_socket_path(service)}"


def load_settings() -> HostSettings:
    """
    Read the environment.

    Raises:
        SettingsWrong: Names each variable and what is wrong with it.
    """
    try:
        return HostSettings()
    except ValidationError as error:
        wrong = "; ".join(f"HOPPER_{_name(entry['loc'])}: {entry['msg']}" for entry in error.errors())
        raise SettingsWrong(wrong) from error


def _name(location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else "*"
