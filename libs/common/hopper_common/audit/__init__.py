"""
The audit log: what was allowed and what was refused, by which rule, in a chain of hashes.

Owns the records of one process, their order and their storage, and the service that shows them. It never decides
anything, and never holds what a request said: only who called what, and what the request named.
"""
