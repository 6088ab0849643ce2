#!/usr/bin/env python
"""Writes logits.npy beside this file: what transformers computes with an exported demo.

  python -m hlwq_mlx.export --model hlwq_mlx/demo/PQ5 --bf16 --output DIR
  python tests/data/export/make_logits.py DIR        (torch 2.13.0, transformers 5.23.0)

Float32 [positions, vocabulary], the logits of every position of a text of random ids.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma4ForConditionalGeneration

FIRST, LAST, COUNT = 20, 1000, 24  # no ids of media or control tokens


def main() -> None:
    torch.set_num_threads(1)
    model = Gemma4ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32)
    ids = np.random.default_rng(0).integers(FIRST, LAST, COUNT)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids)[None]).logits[0]
    np.save(Path(__file__).parent / "logits.npy", logits.numpy())


if __name__ == "__main__":
    main()
