"""The publisher's own numbers for each variant, printed beside what we find.

Source: the model card of caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi (2026-04): its tables *All
Variants*, *Generation Quality*, *Hardware Compatibility* and *Generation Test*. They are of E4B;
none was measured here. Of PQ2-Mixed the card gives cos_sim by class alone: MLP 0.940, attention
0.997.
"""

from typing import NamedTuple


class Figures(NamedTuple):
    """Download in GB, cos_sim, prompts of three answered as bf16 does, hardware, of the card."""

    download_gb: float | None
    cos_sim: float | None
    equal_answers: str | None
    runs_on_16gb_m1: bool | None


FIGURES = {
    "PQ1": Figures(10.1, 0.7884, "0/3", True),
    "PQ2": Figures(10.5, 0.9312, "0/3", True),
    "PQ3": Figures(10.9, 0.9766, "2/3", True),
    "PQ4": Figures(11.3, 0.9913, None, True),
    "PQ5": Figures(11.7, 0.9963, "3/3", True),
    "PQ6": Figures(12.1, 0.9980, None, True),
    "PQ8": Figures(12.9, 0.9987, None, True),
    "PQ2-Mixed": Figures(None, None, "1/3", None),
}
PROMPTS = ("What is 2+2?", "Write a prime checker in Python", "Explain gravity briefly")
