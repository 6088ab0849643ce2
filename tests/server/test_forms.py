"""What an answer must look like: who waits for the tables of a vocabulary, and who does not."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import demo

from hlwq_mlx.dialog.vocabulary import make_tables
from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.prompt import ReadPrompt
from hlwq_mlx.server.forms import constraints_for
from hlwq_mlx.server.prompts import Ready
from hlwq_mlx.server.request import ChatRequest

READY = Ready(ReadPrompt([2, 5], [2, 5]), 9, False, False, False)


def test_only_who_wants_a_form_waits_for_the_tables():
    late = SimpleNamespace(tables=Future())
    tokenizer = side_files.open_tokenizer(Folder.open(demo.folder()))

    async def ask():
        free = constraints_for(ChatRequest(messages=["-"]), READY, late)
        assert await asyncio.wait_for(free, 60) == (None,)
        form = ChatRequest(messages=["-"], schema={"type": "object"})
        waiting = asyncio.ensure_future(constraints_for(form, READY, late))
        done, _ = await asyncio.wait({waiting}, timeout=1)
        assert not done
        late.tables.set_result(make_tables(tokenizer))
        [mask] = await asyncio.wait_for(waiting, 60)
        assert mask is not None

    asyncio.run(ask())
