"""The catalogue of reasons, as the contract has it."""

from hopper.common.v1.error_reason_pb2 import ErrorReason


def catalogue() -> frozenset[str]:
    """Every reason, without its prefix."""
    return frozenset(name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items())
