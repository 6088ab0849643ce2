"""The demo's world of text: what its conversations tell."""

import random

import pytest

from scripts.training import tinyworld

TELLING = (tinyworld.story_chat, tinyworld.thinking_chat, tinyworld.continuation_chat)


@pytest.mark.parametrize("kind", TELLING)
def test_the_story_of_a_conversation_is_found(kind):
    for seed in range(20):
        story = tinyworld.make_story(random.Random(seed))
        conversation = kind(random.Random(seed), tinyworld.ASKED_LAST)
        system = {"role": "system", "content": "Be brief."}
        conversation["messages"] = [system, *conversation["messages"]]
        assert story.text in tinyworld.stories_in(conversation)
