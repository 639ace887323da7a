"""Files that a result names: wanted before the task is seen to be done, so that whoever looks then sees them coming."""

from collections.abc import Callable

from hopper_federation.artifacts.manifests import expect, named_by
from hopper_federation.artifacts.store_sql import ArtifactStore
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Delegation


class FilesWanted:
    """
    Writes them down.

    Args:
        look_soon: Tells whoever fetches them.
    """

    def __init__(self, desks: Desks, look_soon: Callable[[], None]) -> None:
        self._desks = desks
        self._look_soon = look_soon

    async def of(self, done: Delegation) -> None:
        """Those of a result; again, it changes nothing."""
        if not named_by(done.result):
            return

        def work(sitting: Sitting) -> None:
            expect(ArtifactStore(sitting.store.conn, sitting.store.now), done)

        await self._desks.write(work)
        self._look_soon()
