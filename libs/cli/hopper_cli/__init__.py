"""
The `hopper` command: what people and scripts type.

It owns words, tables, exit codes and the claims a person holds between two commands; it never decides
anything: every command is a call or two of the SDK, and what it prints is what a service said.
"""

from typing import Final

__all__ = ["VERSION"]

VERSION: Final = "0.1.0"
