"""What reflection looks names up in: the process's descriptors, by every name that people ask for."""

from typing import Any

from google.protobuf import descriptor_pool


class Symbols:
    """
    The default descriptor pool; a method or field is found in the file of what it belongs to.

    The pool itself knows files, messages, enums and services only, so that `grpcurl describe` of a method would find
    nothing.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The file that defines a symbol. Raises KeyError: there is none."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            owner, _, member = symbol.rpartition(".")
            if member in self._members(owner):
                return self._pool.FindFileContainingSymbol(owner)
            raise

    def _members(self, owner: str) -> Any:
        for find, members in (
            (self._pool.FindServiceByName, "methods_by_name"),
            (self._pool.FindMessageTypeByName, "fields_by_name"),
            (self._pool.FindEnumTypeByName, "values_by_name"),
        ):
            try:
                return getattr(find(owner), members)
            except KeyError:
                continue
        return {}
