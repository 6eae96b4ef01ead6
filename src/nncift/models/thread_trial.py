"""How many threads of the CPU a language model is fastest with, here and now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nncift.core.threads import best_threads
from nncift.models.token_rows import Prefix, Row

if TYPE_CHECKING:
    from nncift.models.causal_lm import CausalLM

TRIED_TOKENS = 32
"""Tokens that are read to choose the number of threads."""


def try_threads(lm: CausalLM) -> int | None:
    """Return the threads that a model is fastest with, by reading a few tokens; None on another device than the CPU."""
    import torch

    if lm.device.type != "cpu":
        return None
    most, size = torch.get_num_threads(), int(lm.model.config.get_text_config().vocab_size)
    rows = [Row([7 % size], [(7 * k + 3) % size for k in range(TRIED_TOKENS - 1)])]
    try:
        return best_threads(
            lambda: lm.log_probabilities(Prefix((), None), rows), most, lambda some: torch.set_num_threads(some)
        )
    finally:
        torch.set_num_threads(most)
