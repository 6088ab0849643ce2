"""The training loop that every stage of the demo's training shares: resumable, saved atomically."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from scripts.training.muon import Muon

SAVE_EVERY_S = 180
Points = tuple[tuple[int, float], ...]


class Plan(NamedTuple):
    """How long a stage is, its highest rate, and what share of it applies when.

    `points` are (step, share); between them the share moves in straight lines.
    """

    name: str
    peak_rate: float
    points: Points

    @property
    def steps(self) -> int:
        return self.points[-1][0]

    def rate_at(self, step: int) -> float:
        (begin, low), (end, high) = next(
            pair for pair in itertools.pairwise(self.points) if pair[0][0] <= step <= pair[1][0]
        )
        return self.peak_rate * (low + (high - low) * (step - begin) / (end - begin))


def make_optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], rate: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices, which decay, and Adam for embeddings, convolutions and vectors."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in parameters:
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        groups[is_matrix or ".experts." in name].append(parameter)
    return [
        Muon(groups[True], lr=rate, weight_decay=0.05),
        torch.optim.Adam(groups[False], lr=rate, betas=(0.9, 0.98), fused=True),
    ]


def save_atomically(value: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def fit(
    model: nn.Module,
    parameters: list[tuple[str, nn.Parameter]],
    plan: Plan,
    losses_from: Callable[[int], Iterator[torch.Tensor]],
    state_path: Path,
) -> None:
    """Train a stage to its end, from its saved state where there is one.

    `losses_from(step)` yields the loss of every step from that one on; it has to depend on nothing
    but the step and the model, so that a run that was interrupted ends where another would.
    """
    optimizers = make_optimizers(parameters, plan.peak_rate)
    step = 0
    if state_path.exists():
        state = torch.load(state_path)
        if state["plan"] != tuple(plan):
            raise SystemExit(
                f"error: [{plan.name}] needed a state of {tuple(plan)}, got {state['plan']} in "
                f"{state_path}. Remove it, or choose another folder."
            )
        step = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    saved_at = time.monotonic()
    losses = losses_from(step)
    progress = tqdm(total=plan.steps, initial=step, desc=plan.name, unit="step", mininterval=5)
    average = math.nan
    while step < plan.steps:
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_((parameter for _, parameter in parameters), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}", refresh=False)
        progress.update()
        if time.monotonic() - saved_at > SAVE_EVERY_S or step == plan.steps:
            state = {
                "plan": tuple(plan),
                "step": step,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            save_atomically(state, state_path)
            saved_at = time.monotonic()
    progress.close()
