"""Declares what transformers asks of torchvision's compiled part, which may be absent or another torch's.

Imported for its effect, before transformers.
"""

import torch

try:
    torch.ops.torchvision.nms
except (AttributeError, RuntimeError):
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
