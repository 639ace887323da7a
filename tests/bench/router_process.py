"""
The router, as `python -m hopper_router` runs it, but behind mTLS on a port as well: `… CERTIFICATES [GROUP_LIMIT]`.

GROUP_LIMIT is how many requests may share a commit: 1 makes it commit for each.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from hopper_common import database, postgres
from hopper_common.host import run
from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.server import HopperServer
from hopper_common.settings import HostSettings, load_settings
from hopper_router import engine
from hopper_router.app import SERVICE
from hopper_router.hot_path import HotPath
from tests.bench.certificates import server_credentials


def main(certificates: Path, group_limit: int) -> int:
    """Serve until a signal; returns the exit code."""

    def listen(server: HopperServer, settings: HostSettings) -> list[str]:
        socket = listen_unix(server, settings.socket_path)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(certificates))
        return [socket, f"127.0.0.1:{port}"]

    if group_limit:
        limit_groups(group_limit)
    return run([SERVICE], load_settings().for_one(SERVICE.name), listen=listen)


def limit_groups(limit: int) -> None:
    """Let so many requests share a commit, and no more: constants for everybody else."""
    for module in (database, postgres):
        setattr(module, "GROUP_LIMIT", limit)  # noqa: B010 - not exported, says mypy
    setattr(engine, "HotPath", partial(HotPath, group=limit))  # noqa: B010 - a class, for mypy


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
