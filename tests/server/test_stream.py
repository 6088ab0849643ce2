"""A streamed answer ends the work behind it, whenever its client leaves."""

import asyncio

import pytest

from hlwq_mlx.server.stream import Stream


async def pieces():
    yield b"one"
    yield b"two"


def sent(client, left):
    """Send a stream to a client; `left` is when it leaves. Return how often the work was ended."""
    ended = []

    async def receive():
        await left()
        return {"type": "http.disconnect"}

    asyncio.run(Stream(pieces(), "text/plain", lambda: ended.append(1))({}, receive, client))
    return len(ended)


async def never():
    await asyncio.Event().wait()


async def at_once():
    """Return without waiting."""


def test_a_client_that_reads_gets_all_of_it():
    got = []

    async def client(message):
        got.append(message.get("body", b""))

    assert sent(client, never) == 1
    assert b"".join(got) == b"onetwo"


@pytest.mark.parametrize("left", [never, at_once])
def test_a_client_that_left_before_the_first_byte_ends_the_work(left):
    async def client(message):
        raise OSError

    assert sent(client, left) == 1
