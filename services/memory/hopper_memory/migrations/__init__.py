"""The history of memory's tables."""
