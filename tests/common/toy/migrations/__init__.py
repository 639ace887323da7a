"""The history of the toy tables."""
