"""The demo's exams: questions it has never seen, and what counts as right.

An exam takes an answerer (conversations and a token limit in, raw texts out, so that any runtime
can sit it) and a number of questions, and returns the share of right answers.
"""

import random
from collections.abc import Callable

from scripts.training import tinyworld
from scripts.training.tinyworld import Conversation, Question, Story

Answerer = Callable[[list[Conversation], int], list[str]]
Exam = Callable[[Answerer, int], float]
LONGEST_ANSWER = 12
LONGEST_THOUGHT = 48
LONGEST_REST = 120


def unseen_stories(count: int) -> list[tuple[Story, Question]]:
    """Draw stories that no training conversation contains, each with one question."""
    rng = random.Random("exam")
    drawn = [tinyworld.make_story(rng) for _ in range(count)]
    return [(story, rng.choice(story.pick(tinyworld.ASKED_LAST))) for story in drawn]


def unseen_sums(count: int) -> list[tuple[int, int]]:
    """Draw from the sums that training never shows."""
    return random.Random("exam").sample(tinyworld.all_sums(held_out=True), count)


def story_conversations(count: int) -> list[tuple[Conversation, str]]:
    """Pair story questions with their answers."""
    return [
        (
            {"messages": [tinyworld.user(tinyworld.ask_story(story, question))]},
            question.answer,
        )
        for story, question in unseen_stories(count)
    ]


def sum_conversations(count: int) -> list[tuple[Conversation, str]]:
    """Pair sums with their answers."""
    return [
        ({"messages": [tinyworld.user(f"What is {first}+{second}?")]}, str(first + second))
        for first, second in unseen_sums(count)
    ]


def share_equal(answerer: Answerer, pairs: list[tuple[Conversation, str]], limit: int) -> float:
    answers = answerer([conversation for conversation, _ in pairs], limit)
    right = sum(
        answer.rpartition("<channel|>")[2].strip() == wanted
        for answer, (_, wanted) in zip(answers, pairs, strict=True)
    )
    return right / len(pairs)


def stories(answerer: Answerer, count: int) -> float:
    """Questions about a story it is told."""
    return share_equal(answerer, story_conversations(count), LONGEST_ANSWER)


def sums(answerer: Answerer, count: int) -> float:
    """Small sums."""
    return share_equal(answerer, sum_conversations(count), LONGEST_ANSWER)


def thoughts(answerer: Answerer, count: int) -> float:
    """Story questions answered after a line of thought, which has to be the right line."""
    drawn = unseen_stories(count)
    conversations = [
        {
            "messages": [tinyworld.user(tinyworld.ask_story(story, question))],
            "thinking": True,
        }
        for story, question in drawn
    ]
    answers = answerer(conversations, LONGEST_THOUGHT)
    right = sum(
        answer.strip() == tinyworld.thought(question)
        for answer, (_, question) in zip(answers, drawn, strict=True)
    )
    return right / count


def calculator(answerer: Answerer, count: int) -> float:
    """Sums too large to know: the call has to be right, and the answer has to use the result."""
    rng = random.Random("exam")
    expressions = [tinyworld.make_expression(rng) for _ in range(count)]
    asked: list[Conversation] = [
        {"messages": [tinyworld.user(f"What is {text}?")], "tools": [tinyworld.CALCULATOR]}
        for text in expressions
    ]
    calls = answerer(asked, LONGEST_THOUGHT)
    results = [tinyworld.calculate(text) for text in expressions]
    told: list[Conversation] = [
        conversation
        | {
            "messages": [
                *conversation["messages"],
                tinyworld.calculator_call(text),
                tinyworld.calculator_result(result),
            ]
        }
        for conversation, text, result in zip(asked, expressions, results, strict=True)
    ]
    answers = answerer(told, LONGEST_THOUGHT)
    right = sum(
        call.strip() == format_call(text) and answer.strip() == f"The answer is {result}."
        for call, text, answer, result in zip(calls, expressions, answers, results, strict=True)
    )
    return right / count


def format_call(expression: str) -> str:
    return f'<|tool_call>call:calculator{{expression:<|"|>{expression}<|"|>}}<tool_call|>'


def continuations(answerer: Answerer, count: int) -> float:
    """Stories to be continued: the rest has to keep hero and thing and end as stories do."""
    drawn = unseen_stories(count)
    conversations: list[Conversation] = [
        {"messages": [tinyworld.user(tinyworld.CONTINUE + " ".join(story.sentences[:2]))]}
        for story, _ in drawn
    ]
    rests = answerer(conversations, LONGEST_REST)
    right = sum(is_rest_of(story, rest) for rest, (story, _) in zip(rests, drawn, strict=True))
    return right / count


def is_rest_of(story: Story, rest: str) -> bool:
    """Return whether a text could be the last six sentences of a story."""
    feelings = [f"{feeling} and {deed}." for feeling, deed in tinyworld.FEELINGS.items()]
    names_kept = story.hero in rest and story.thing in rest
    return names_kept and rest.count(".") in range(5, 7) and rest.endswith(tuple(feelings))


EXAMS: dict[str, Exam] = {
    "stories": stories,
    "sums": sums,
    "thoughts": thoughts,
    "calculator": calculator,
    "continuations": continuations,
}
