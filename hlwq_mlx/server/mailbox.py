"""Hand updates over from the engine's thread to the event loop, and wait for them there."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Bell:
    """Wakes who listens in an event loop, once for all that was rung for meanwhile.

    To wake a loop from another thread is a system call, and a step of the engine has an update for
    every row.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._rung: deque[Mailbox[object]] = deque()
        self._is_ringing = False

    def ring(self, box: "Mailbox[Item]") -> None:
        """Tell the loop that there is something in a box; from any thread."""
        self._rung.append(box)
        if not self._is_ringing:
            self._is_ringing = True
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_ringing = False  # first: who rings from now on may be missed below
        while self._rung:
            self._rung.popleft().wake()


class Mailbox(Generic[Item]):
    """A queue that any thread fills and one task of the loop reads."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Add an item; from any thread."""
        self._items.append(item)
        self._bell.ring(self)

    async def get(self, due: float) -> Item | None:
        """Return the next item, or None if there is none until `due`, a time of the loop's clock."""
        if not self._items:
            await self._wait(due)
        return self._items.popleft() if self._items else None

    def wake(self) -> None:
        """Let who waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, due: float) -> None:
        self._waiter = self._bell.loop.create_future()
        timer = self._bell.loop.call_at(due, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
