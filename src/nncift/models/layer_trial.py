"""What an encoder would take, without its weights: one layer of its shape, with random numbers, run as often as it has layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from nncift.models.encoders import SentenceEncoder
from nncift.models.loading import resolve_device
from nncift.models.sentence_model import plan_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 64
"""Tokens of the stand-in, so that no table of embeddings is made."""


@dataclass(frozen=True)
class EncoderTrial:
    """One layer in the shape of an encoder's. layers: how many the encoder has."""

    model: PreTrainedModel
    layers: int

    @classmethod
    def of(cls, encoder: SentenceEncoder, device: str = "auto") -> Self | None:
        """Make the stand-in from an encoder's configuration; None where that does not tell its shape."""
        if plan_of(encoder.files) is None:
            return None
        from transformers import AutoConfig, AutoModel

        try:
            config = copy.deepcopy(AutoConfig.from_pretrained(encoder.files, trust_remote_code=False))
            layers = int(config.num_hidden_layers)
            config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, VOCABULARY, 0
            model = AutoModel.from_config(config, dtype=config.dtype, trust_remote_code=False)
        except (AttributeError, TypeError, ValueError, KeyError, RuntimeError):
            # A configuration of layers that differ, or that must keep its vocabulary.
            return None
        return cls(model.eval().requires_grad_(False).to(resolve_device(device)), layers)

    def run(self, lengths: Sequence[int]) -> None:
        """Take as long as encoding texts of so many tokens, padded together, takes."""
        import torch

        ids = torch.ones((len(lengths), max(lengths)), dtype=torch.long, device=self.model.device)
        with torch.inference_mode():
            for _ in range(self.layers):
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.sum().item()
