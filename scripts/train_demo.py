"""Train the demo model: a small Gemma 4 that knows TinyWorld (see tinyworld.py).

    python scripts/train_demo.py train --work build/demo
    python scripts/train_demo.py evaluate --model build/demo/final

The reference implementation (transformers, torch; `pip install -e .[train]`) trains it and answers
for it, so its answers are an independent check of ours. The run is deterministic on one machine,
saves its state every few minutes and goes on from there when started again.
"""

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import demo_exam
import tinyworld
import torch
from demo_tokenizer import IDS, VOCABULARY, load_tokenizer, write_tokenizer
from tqdm import tqdm
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig

SEED = 2026
STEPS = 2600
STAGES_BEGIN = (0, 1280, 1872)
ROWS = 32
BATCHES_PER_CHUNK = 16
LONGEST = 288
PEAK_RATE = 3e-3
RATES = ((0, 1 / 60), (59, 1.0), (1800, 1.0), (1862, 1138 / 1200), (STEPS, 0.0))
PROMPT_WEIGHT = 0.3
POST_NORM = 0.25
LAYER_SCALAR = 0.95
SAVE_EVERY_S = 180
LAYER_TYPES = "s s f s f s f"
SHARED_LAYERS = 2
STOP_IDS = [IDS["<eos>"], IDS["<turn|>"], IDS["<|tool_response>"]]


def make_config() -> Gemma4Config:
    """Build the demo's configuration: every feature of the text model, all widths times 128."""
    names = {"s": "sliding_attention", "f": "full_attention"}
    layer_types = [names[letter] for letter in LAYER_TYPES.split()]
    text = Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=128,
        hidden_size_per_layer_input=128,
        intermediate_size=384,
        num_hidden_layers=len(layer_types),
        num_kv_shared_layers=SHARED_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        attention_k_eq_v=False,
        sliding_window=64,
        layer_types=layer_types,
        final_logit_softcapping=30.0,
        use_double_wide_mlp=False,
        max_position_embeddings=4096,
        rope_parameters={
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=None,
        audio_config=None,
        image_token_id=IDS["<|image|>"],
        audio_token_id=IDS["<|audio|>"],
        video_token_id=IDS["<|video|>"],
        boi_token_id=IDS["<|image>"],
        eoi_token_id=IDS["<image|>"],
        boa_token_id=IDS["<|audio>"],
        eoa_token_index=IDS["<audio|>"],
    )
    config._attn_implementation = "sdpa"
    return config


@torch.no_grad()
def make_model() -> Gemma4ForConditionalGeneration:
    """Build the untrained model.

    The reference's initial deviation of 0.02 is made for wide models: here it would leave a token's
    embedding far below what the post-norms add in every layer. So embeddings begin at unit size and
    post-norms small. Layer scalars are not 1, so that leaving them out shows.
    """
    torch.manual_seed(SEED)
    model = Gemma4ForConditionalGeneration(make_config())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        elif "post_" in name:
            parameter.fill_(POST_NORM)
    text = model.model.language_model
    text.embed_tokens_per_layer.weight.normal_(std=text.config.hidden_size_per_layer_input**-0.5)
    for layer in text.layers:
        layer.layer_scalar.fill_(LAYER_SCALAR)
    return model


class Example(NamedTuple):
    """Token ids of a conversation and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


def answer_weights(ids: list[int]) -> list[float]:
    """Weigh what the model says fully, and what it is told a little.

    The model's own words run from `<|turn>model\\n` to `<turn|>`, and from `<tool_response|>` on;
    `<|tool_response>` is its request for a result.
    """
    weights = []
    speaking = False
    header = 0
    for position, token in enumerate(ids):
        weights.append(1.0 if speaking else PROMPT_WEIGHT)
        if token in STOP_IDS:
            speaking = False
        elif token == IDS["<tool_response|>"]:
            speaking = True
        elif token == IDS["<|turn>"]:
            header = position
        elif token == IDS["\n"] and ids[header] == IDS["<|turn>"] and position == header + 2:
            speaking = ids[header + 1] == IDS["model"]
    return weights


def render(tokenizer: Any, conversation: tinyworld.Conversation, *, prompt: bool) -> list[int]:
    """Spell a conversation as token ids, with the opening of the model's turn for a prompt."""
    text = tokenizer.apply_chat_template(
        conversation["messages"],
        tools=conversation.get("tools"),
        enable_thinking=conversation.get("thinking", False),
        add_generation_prompt=prompt,
        tokenize=False,
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def render_training(tokenizer: Any, conversation: tinyworld.Conversation) -> Example:
    """Spell a conversation to learn from.

    The template drops thoughts from history, and what is learnt from is all history, so a thought
    is put back where the model's last turn begins.
    """
    if not conversation.get("thinking"):
        ids = render(tokenizer, conversation, prompt=False)
    else:
        *before, last = conversation["messages"]
        ids = render(tokenizer, {**conversation, "messages": before}, prompt=True)
        ids += tokenizer.encode(last["content"] + "<turn|>\n", add_special_tokens=False)
    ids = ids[:LONGEST]
    return Example(ids, answer_weights(ids))


def chunk_conversations(chunk: int) -> Iterator[tinyworld.Conversation]:
    """Yield the conversations of one chunk, which knows its stage."""
    step = chunk * BATCHES_PER_CHUNK
    stage = tinyworld.STAGES[sum(step >= begin for begin in STAGES_BEGIN) - 1]
    return tinyworld.conversations(f"{SEED}/{chunk}", stage)


def chunk_batches(tokenizer: Any, chunk: int) -> list[list[Example]]:
    """Draw one chunk of conversations, grouped by length into batches of equal row count."""
    stream = chunk_conversations(chunk)
    examples = [render_training(tokenizer, next(stream)) for _ in range(ROWS * BATCHES_PER_CHUNK)]
    examples.sort(key=lambda example: len(example.ids))
    batches = [examples[start : start + ROWS] for start in range(0, len(examples), ROWS)]
    random.Random(chunk).shuffle(batches)
    return batches


def batches_from(tokenizer: Any, step: int) -> Iterator[list[Example]]:
    """Yield the batch of every step from `step` on."""
    chunk, skip = divmod(step, BATCHES_PER_CHUNK)
    while True:
        yield from chunk_batches(tokenizer, chunk)[skip:]
        chunk, skip = chunk + 1, 0


def batch_loss(model: Gemma4ForConditionalGeneration, batch: list[Example]) -> torch.Tensor:
    """Compute the weighted cross entropy of a batch, padded on the right."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def make_optimizer(model: Gemma4ForConditionalGeneration) -> torch.optim.Optimizer:
    """AdamW that decays matrices alone."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim == 2 and "embed" not in name].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": 0.05},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )


def rate_at(step: int) -> float:
    """Warm up, hold, then fall to nothing: straight lines between the points of RATES."""
    (begin, low), (end, high) = next(
        pair for pair in itertools.pairwise(RATES) if pair[0][0] <= step <= pair[1][0]
    )
    return PEAK_RATE * (low + (high - low) * (step - begin) / (end - begin))


def save_atomically(value: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def write_checkpoint(model: Gemma4ForConditionalGeneration, folder: Path) -> None:
    """Write the trained model as a bf16 transformers folder with tokenizer and template."""
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    generation = {
        "bos_token_id": IDS["<bos>"],
        "pad_token_id": IDS["<pad>"],
        "eos_token_id": STOP_IDS,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def train(work: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    model = make_model()
    optimizer = make_optimizer(model)
    state_path = work / "state.pt"
    step = 0
    if state_path.exists():
        state = torch.load(state_path)
        step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    saved_at = time.monotonic()
    batches = batches_from(tokenizer, step)
    progress = tqdm(total=STEPS, initial=step, unit="step", mininterval=5)
    average = math.nan
    while step < STEPS:
        loss = batch_loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}", refresh=False)
        progress.update()
        if time.monotonic() - saved_at > SAVE_EVERY_S or step == STEPS:
            state = {
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save_atomically(state, state_path)
            saved_at = time.monotonic()
    write_checkpoint(model, work / "final")


class Answerer:
    """Answers conversations greedily with the transformers reference, many at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.model = Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def __call__(self, conversations: list[tinyworld.Conversation], max_tokens: int) -> list[str]:
        prompts = [render(self.tokenizer, item, prompt=True) for item in conversations]
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=STOP_IDS,
            pad_token_id=IDS["<pad>"],
        )
        return [self.spell(row[longest:].tolist()) for row in output]

    def spell(self, ids: list[int]) -> str:
        for position, token in enumerate(ids):
            if token in STOP_IDS:
                ids = ids[:position]
                break
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def training_stories() -> set[str]:
    """Collect the text of every story in the lessons, to show that no exam asks about one."""
    told = set()
    for chunk in range(-(-STEPS // BATCHES_PER_CHUNK)):
        stream = chunk_conversations(chunk)
        for _ in range(ROWS * BATCHES_PER_CHUNK):
            for message in next(stream)["messages"]:
                told.add(str(message["content"]).partition("\n")[0])
    return told


def evaluate(answerer: Answerer, count: int) -> dict[str, float]:
    """Ask `count` questions of each kind and return the share of right answers."""
    seen = training_stories() & {story.text for story, _ in demo_exam.unseen_stories(count)}
    if seen:
        raise SystemExit(f"error: {len(seen)} stories of the exam are in the lessons")
    return {name: exam(answerer, count) for name, exam in demo_exam.EXAMS.items()}


def write_answers(answerer: Answerer, count: int, path: Path) -> None:
    """Write what the reference answers to the story questions."""
    questions = [conversation for conversation, _ in demo_exam.story_conversations(count)]
    answers = {"stories": answerer(questions, demo_exam.LONGEST_ANSWER)}
    path.write_text(json.dumps(answers, indent=0) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train, or go on training")
    training.add_argument("--work", type=Path, required=True, help="folder for state and result")
    training.add_argument("--threads", type=int, default=2)
    evaluation = verbs.add_parser("evaluate", help="ask questions it has never seen")
    evaluation.add_argument("--model", type=Path, required=True, help="a folder `train` wrote")
    evaluation.add_argument("--count", type=int, default=100, help="questions of each kind")
    evaluation.add_argument("--answers", type=Path, help="write the story answers as JSON too")
    evaluation.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.work, arguments.threads)
    else:
        answerer = Answerer(arguments.model, getattr(torch, arguments.dtype))
        json.dump(evaluate(answerer, arguments.count), sys.stdout, indent=1)
        print()
        if arguments.answers is not None:
            write_answers(answerer, arguments.count, arguments.answers)


if __name__ == "__main__":
    main()
