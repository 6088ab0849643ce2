"""Hand updates over from the engine's thread to the event loop, and wait for them there."""

import asyncio
from collections import deque
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
PAUSE_S = 1 / 20  # between two wakes for what can wait: a reader sees no difference


class Bell:
    """Wakes who listens in an event loop, once for all that was rung for meanwhile.

    Whenever the loop runs, the engine's thread waits for the interpreter. Small models have a token
    every few milliseconds, and then several of them are handed over at a time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._rung: deque[Mailbox[Any]] = deque()
        self._woken = -PAUSE_S
        self._is_called = self._is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def ring(self, box: "Mailbox[Any]", *, at_once: bool) -> None:
        """Tell the loop that there is something in a box; from any thread."""
        self._rung.append(box)  # first: a call that is under way finds it
        if at_once or self.loop.time() - self._woken > PAUSE_S:
            if not self._is_called:
                self._is_called = True
                self.loop.call_soon_threadsafe(self._wake)
        elif not (self._is_called or self._is_due):
            self._is_due = True
            self.loop.call_soon_threadsafe(self._set_timer)

    def _set_timer(self) -> None:
        if self._is_due and self._timer is None:
            self._timer = self.loop.call_at(self._woken + PAUSE_S, self._wake)

    def _wake(self) -> None:
        self._is_called = self._is_due = False
        if self._timer is not None:  # another call may have been quicker
            self._timer.cancel()
            self._timer = None
        self._woken = self.loop.time()
        while self._rung:
            self._rung.popleft().wake()


class Mailbox(Generic[Item]):
    """A queue that any thread fills and one task of the loop reads."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item, *, at_once: bool) -> None:
        """Add an item, which its reader gets at once or very soon; from any thread."""
        self._items.append(item)
        self._bell.ring(self, at_once=at_once)

    async def get(self, due: float) -> list[Item]:
        """Return the next items, none if there are none until `due`, a time of the loop's clock."""
        if not self._items:
            await self._wait(due)
        return [self._items.popleft() for _ in range(len(self._items))]

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
