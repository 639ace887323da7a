"""The history of the federation service's tables."""
