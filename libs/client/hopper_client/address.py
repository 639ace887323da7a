"""Where the Hopper of this user answers, when nobody says."""

import os
from pathlib import Path


def default_address() -> str:
    """
    The address clients dial by default.

    Returns:
        `$HOPPER_ADDRESS`; else the socket in `$HOPPER_DATA_DIR`; else `unix:~/.hopper/hopper.sock`, with the
        home directory filled in.
    """
    address = os.environ.get("HOPPER_ADDRESS")
    if address:
        return address
    data_dir = os.environ.get("HOPPER_DATA_DIR") or "~/.hopper"
    return f"unix:{Path(data_dir).expanduser() / 'hopper.sock'}"
