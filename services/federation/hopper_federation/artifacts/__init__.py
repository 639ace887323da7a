"""
Files beside tasks: put by whoever works on them, and pulled from the peer that a task was handed to.

    PutArtifact ─► ArtifactServicer ─┐                               ┌─► GetArtifact, ListArtifacts
    a peer's result ─► expected ─► Puller ─► BlobStore (by hash) + rows (task, name) ─► GetBlob for the peer that asked

Owns the bytes and what they are called. It never opens what it keeps, and never follows a name that somebody else made.
"""
