"""The history of the router's tables."""
