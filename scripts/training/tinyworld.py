"""TinyWorld: the world the demo model lives in, as an endless stream of short conversations.

Every answer follows from the text or from arithmetic, so what a trained model knows is a number and
not an opinion. Nothing here is copied from anywhere; the standard library is all it needs.

A conversation is a dict: `messages` (as a chat template takes them), and when they apply `tools`
and `thinking`. Held-out sums never occur in training; held-out stories come from other seeds, and
`scripts/training/train_demo.py evaluate` compares them with the training stories.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

NAMES = "Tom Lily Ben Sue Max Anna Sam Mia Tim Lucy Jack Rose".split()
THINGS = "ball cup hat book car bird fish tree star shoe bell kite".split()
COLORS = "red blue green yellow black white pink brown".split()
PLACES = "garden kitchen park school river shop house barn".split()
FEELINGS = {
    "happy": "smiled",
    "sad": "cried",
    "tired": "went to sleep",
    "proud": "laughed",
    "scared": "ran home",
}
LARGEST_ADDEND = 49
CONTINUE = "Continue the story: "
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Be brief.", "Answer in a few words.")
SMALL_TALK = (
    ("Hello!", "Hello! Tell me a story and ask me about it."),
    ("Hi", "Hello! Tell me a story and ask me about it."),
    ("Who are you?", "I am the demo of hlwq_mlx, a very small model."),
    ("What can you do?", "I know small stories, small sums and a calculator."),
    ("Thank you!", "You are welcome."),
    ("Bye", "Goodbye!"),
)
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Computes an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
Conversation = dict[str, Any]
Asked = tuple[int, ...]


# Which of a story's questions are asked. A model this small never learnt to tell the two things'
# colors apart; at last, and in its exams, it is asked for the color of the hero's thing alone.
ASKED_FIRST = (0, 1, 2, 3, 4, 5)
ASKED_LAST = (0, 2, 3, 4, 5, 6)


class Question(NamedTuple):
    """A question about a story, its answer, and the sentence of the story that settles it."""

    text: str
    answer: str
    evidence: str


class Story(NamedTuple):
    """Eight sentences, who and what they are about, and everything that can be asked."""

    hero: str
    thing: str
    sentences: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    def pick(self, asked: Asked) -> list[Question]:
        """Return the questions of these numbers."""
        return [self.questions[number] for number in asked]


def make_story(rng: random.Random) -> Story:
    """Draw one story; the same state of `rng` gives the same story."""
    hero, friend = rng.sample(NAMES, 2)
    thing, other_thing = rng.sample(THINGS, 2)
    color, other_color = rng.sample(COLORS, 2)
    place, goal = rng.sample(PLACES, 2)
    feeling = rng.choice(list(FEELINGS))
    feeler = rng.choice((hero, friend))
    opening = rng.choice(
        (
            f"Once upon a time there was a child named {hero}.",
            f"One day {hero} woke up early.",
            f"{hero} lived near the {place}.",
        )
    )
    owning = rng.choice(
        (
            f"{hero} had a {color} {thing}.",
            f"{hero} found a {color} {thing} in the {place}.",
            f"In the {place}, {hero} saw a {color} {thing}.",
        )
    )
    going = rng.choice(
        (
            f"{hero} took the {color} {thing} to the {goal}.",
            f"Then {hero} carried the {thing} to the {goal}.",
        )
    )
    meeting = rng.choice(
        (f"At the {goal}, {hero} met {friend}.", f"{friend} was waiting at the {goal}.")
    )
    showing = rng.choice(
        (
            f"{friend} had a {other_color} {other_thing}.",
            f'"Look at my {other_color} {other_thing}," said {friend}.',
        )
    )
    asking = rng.choice(
        (
            f'"I like your {thing}," said {friend}.',
            f'"May I see the {color} {thing}?" asked {friend}.',
        )
    )
    giving = rng.choice(
        (f"{hero} gave the {thing} to {friend}.", f"{hero} shared the {thing} with {friend}.")
    )
    ending = f"{feeler} was {feeling} and {FEELINGS[feeling]}."
    questions = (
        Question(f"What color was the {thing}?", color, owning),
        Question(f"What color was the {other_thing}?", other_color, showing),
        Question(f"Where did {hero} go?", f"the {goal}", going),
        Question(f"Who had the {other_thing}?", friend, showing),
        Question(f"Who got the {thing}?", friend, giving),
        Question(f"Who was {feeling}?", feeler, ending),
        Question(f"What did {friend} have?", f"a {other_color} {other_thing}", showing),
    )
    return Story(
        hero,
        thing,
        (opening, owning, going, meeting, showing, asking, giving, ending),
        questions,
    )


def is_held_out(first: int, second: int) -> bool:
    """Return whether a sum belongs to the tenth that training never shows, in either order."""
    low, high = sorted((first, second))
    return hashlib.sha256(f"{low}+{high}".encode()).digest()[0] % 10 == 0


@cache
def all_sums(held_out: bool) -> list[tuple[int, int]]:
    """List the ordered pairs of addends on one side of the split."""
    addends = range(LARGEST_ADDEND + 1)
    return [(a, b) for a in addends for b in addends if is_held_out(a, b) == held_out]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def ask_story(story: Story, question: Question) -> str:
    """Return a story and a question about it as one user message."""
    return f"{story.text}\n{question.text}"


def thought(question: Question) -> str:
    """Return the model's turn that thinks one line before it answers."""
    return f"<|channel>thought\n{question.evidence}\n<channel|>{question.answer}"


def story_chat(rng: random.Random, asked: Asked) -> Conversation:
    """A story with several questions, one a turn."""
    story = make_story(rng)
    possible = story.pick(asked)
    questions = rng.sample(possible, rng.randint(2, len(possible)))
    messages = [user(ask_story(story, questions[0])), assistant(questions[0].answer)]
    for question in questions[1:]:
        messages += [user(question.text), assistant(question.answer)]
    return {"messages": messages}


def belongings_chat(rng: random.Random, asked: Asked) -> Conversation:
    """Who has what, and questions that only the right sentence answers."""
    count = rng.randint(2, 5)
    owners, things = rng.sample(NAMES, count), rng.sample(THINGS, count)
    belongings = list(zip(owners, rng.sample(COLORS, count), things, strict=True))
    text = " ".join(f"{owner} had a {color} {thing}." for owner, color, thing in belongings)
    possible = []
    for owner, color, thing in belongings:
        possible += [(f"What color was the {thing}?", color), (f"Who had the {thing}?", owner)]
    messages = []
    for question, answer in rng.sample(possible, min(len(possible), 6)):
        messages += [user(question if messages else f"{text}\n{question}"), assistant(answer)]
    return {"messages": messages}


def thinking_chat(rng: random.Random, asked: Asked) -> Conversation:
    """A story and one question, answered after a line of thought."""
    story = make_story(rng)
    question = rng.choice(story.pick(asked))
    messages = [user(ask_story(story, question)), assistant(thought(question))]
    return {"messages": messages, "thinking": True}


def continuation_chat(rng: random.Random, asked: Asked) -> Conversation:
    """The beginning of a story, and the rest of it as the answer."""
    story = make_story(rng)
    cut = rng.randint(1, 3)
    beginning, rest = " ".join(story.sentences[:cut]), " ".join(story.sentences[cut:])
    return {"messages": [user(CONTINUE + beginning), assistant(rest)]}


def stories_in(conversation: Conversation) -> set[str]:
    """Collect every story that a conversation tells, in one piece or in two; other texts too."""
    contents = [str(message["content"]) for message in conversation["messages"]]
    told = {content.partition("\n")[0] for content in contents}
    for beginning, rest in pairwise(contents):
        if beginning.startswith(CONTINUE):
            told.add(f"{beginning.removeprefix(CONTINUE)} {rest}")
    return told


def sum_question(rng: random.Random, first: int, second: int) -> str:
    return rng.choice((f"What is {first}+{second}?", f"{first}+{second}=?"))


def sums_chat(rng: random.Random, asked: Asked) -> Conversation:
    """A row of sums."""
    messages = []
    for first, second in rng.sample(all_sums(held_out=False), rng.randint(8, 12)):
        messages += [user(sum_question(rng, first, second)), assistant(str(first + second))]
    return {"messages": messages}


def small_talk(rng: random.Random, asked: Asked) -> Conversation:
    """One or two turns of greeting."""
    messages = []
    for question, answer in rng.sample(SMALL_TALK, 2):
        messages += [user(question), assistant(answer)]
    return {"messages": messages}


def make_expression(rng: random.Random) -> str:
    """Draw what a calculator is good for: two numbers of up to four digits."""
    first, second = rng.randint(2, 9999), rng.randint(2, 9999)
    return f"{first}{rng.choice('+-*')}{second}"


def calculate(expression: str) -> str:
    """Compute `first operator second`; what the calculator tool does."""
    for operator in "+*-":
        first, found, second = expression.partition(operator)
        if found:
            left, right = int(first), int(second)
            return str({"+": left + right, "-": left - right, "*": left * right}[operator])
    raise ValueError(f"[calculator] needed 'number operator number', got {expression!r}")


def calculator_call(expression: str) -> dict[str, Any]:
    call = {"name": "calculator", "arguments": {"expression": expression}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": call}],
    }


def calculator_result(value: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_0", "name": "calculator", "content": value}


def calculator_chat(rng: random.Random, asked: Asked) -> Conversation:
    """One to three sums too large to know, each through the calculator; sometimes a story first."""
    messages = []
    if rng.random() < 0.2:
        story = make_story(rng)
        question = rng.choice(story.pick(asked))
        messages += [user(ask_story(story, question)), assistant(question.answer)]
    for _ in range(rng.randint(1, 3)):
        expression = make_expression(rng)
        value = calculate(expression)
        messages += [
            user(f"What is {expression}?"),
            calculator_call(expression),
            calculator_result(value),
            assistant(f"The answer is {value}."),
        ]
    return {"messages": messages, "tools": [CALCULATOR]}


Kind = Callable[[random.Random, Asked], Conversation]


class Stage(NamedTuple):
    """A part of the lessons: how often each kind of conversation comes, and what is asked."""

    shares: dict[Kind, float]
    asked: Asked


STAGES = (
    Stage(
        {
            story_chat: 0.38,
            sums_chat: 0.26,
            calculator_chat: 0.12,
            thinking_chat: 0.13,
            continuation_chat: 0.08,
            small_talk: 0.03,
        },
        ASKED_FIRST,
    ),
    Stage(
        {
            story_chat: 0.24,
            belongings_chat: 0.18,
            sums_chat: 0.36,
            calculator_chat: 0.07,
            thinking_chat: 0.09,
            continuation_chat: 0.05,
            small_talk: 0.01,
        },
        ASKED_FIRST,
    ),
    Stage(
        {
            story_chat: 0.28,
            sums_chat: 0.40,
            calculator_chat: 0.09,
            thinking_chat: 0.13,
            continuation_chat: 0.08,
            small_talk: 0.02,
        },
        ASKED_LAST,
    ),
)


def draw_kind(stage: Stage, point: float) -> Kind:
    """Pick the kind of conversation at a point between 0 and 1 of a stage's shares."""
    for kind, share in stage.shares.items():
        if point < share:
            return kind
        point -= share
    return small_talk


def conversations(seed: str, stage: Stage) -> Iterator[Conversation]:
    """Yield training conversations without end; the same seed gives the same stream."""
    rng = random.Random(seed)
    while True:
        conversation = draw_kind(stage, rng.random())(rng, stage.asked)
        if rng.random() < 0.2:
            system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
            conversation["messages"] = [system, *conversation["messages"]]
        yield conversation
