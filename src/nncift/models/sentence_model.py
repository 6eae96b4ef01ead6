"""Sentence encoders that are a transformer and a pooling, by transformers alone: sentence-transformers takes seconds to import.

What a folder's files say is compared with what this module does. Where they say anything else, `plan_of` gives None, and
sentence-transformers runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.texts import parsed_file
from nncift.models.model_folder import MOST_BYTES, check_built
from nncift.models.quiet import without_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Ways of pooling by their old names in a folder's files, in the order in which several are joined."""

_TRANSFORMER = "sentence_bert_config.json"
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_PLAIN: Mapping[str, Any] = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": _TEXT,
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
    "model_kwargs": {},
    "processor_kwargs": {},
    "config_kwargs": {},
    "unpad_inputs": None,
    "query_expansion": None,
    "query_length": None,
    "document_length": None,
}
"""What the transformer's own file may say beside `max_seq_length`."""
_FOREIGN = (
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files of models that read more than text, or lie on another one."""


@dataclass(frozen=True)
class SentencePlan:
    """How a text becomes a vector. longest: tokens that are read at most, None = as the tokenizer says. poolings: joined."""

    longest: int | None
    poolings: tuple[str, ...]
    width: int

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return len(self.poolings) * self.width


def plan_of(folder: Path) -> SentencePlan | None:
    """Return what a folder's files ask for, None where it is more than a transformer, a pooling and a unit norm."""
    try:
        parts = _json(folder / "modules.json")
        kinds = [str(part["type"]).rpartition(".")[2] for part in parts]
        known = all(str(part["type"]).startswith("sentence_transformers.") for part in parts)
        keys = {key for part in parts for key in part}
        if not known or kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            return None
        if keys > {"idx", "name", "path", "type"} or parts[0]["path"] or not _is_plain(folder):
            return None
        own = _json(folder / _TRANSFORMER)
        if any(key != "max_seq_length" and (key not in _PLAIN or _PLAIN[key] != own[key]) for key in own):
            return None
        # A norm that reads or writes something else says so in a file of its own.
        if (
            kinds[2:]
            and (folder / parts[2]["path"] / "config.json").exists()
            and _json(folder / parts[2]["path"] / "config.json")
            not in ({}, {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})
        ):
            return None
        longest = own.get("max_seq_length")
        pooling = _json(folder / parts[1]["path"] / "config.json")
        width = pooling.get("embedding_dimension", pooling.get("word_embedding_dimension"))
        return SentencePlan(None if longest is None else int(longest), _poolings(pooling), int(width))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _is_plain(folder: Path) -> bool:
    """Tell whether nothing but a text model without code of its own and without a standing prompt lies in a folder."""
    config, about = _json(folder / "config.json"), folder / "config_sentence_transformers.json"
    said = _json(about) if about.exists() else {}
    others = [path for path in folder.glob("sentence_*_config.json") if path.name != _TRANSFORMER]
    return not (
        others
        or any((folder / name).exists() for name in _FOREIGN)
        or config.get("auto_map")
        or config.get("is_encoder_decoder")
        or config.get("output_hidden_states")
        or said.get("default_prompt_name")
        or said.get("truncate_dim")
        or said.get("model_type", "SentenceTransformer") != "SentenceTransformer"
    )


def _poolings(pooling: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how tokens are pooled. Raises ValueError for a way that is not known here."""
    found = pooling.get("pooling_mode")
    if found is None:
        found = [name for key, name in POOLINGS.items() if pooling.get(key)] or ["mean"]
    found = (found,) if isinstance(found, str) else tuple(found)
    if not found or not set(found) <= set(POOLINGS.values()):
        raise ValueError(f"poolings {found}")
    return found


def _json(path: Path) -> Any:
    return parsed_file(path, MOST_BYTES)


class SentenceModel:
    """A transformer and a pooling, with what `SentenceEncoder` takes of a model of sentence-transformers."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: SentencePlan) -> None:
        self.model, self.tokenizer, self.plan = model, tokenizer, plan
        self.max_seq_length: int = tokenizer.model_max_length

    @classmethod
    @without_bars()
    def load(cls, folder: Path, plan: SentencePlan, device: str) -> Self:
        """Load a folder that `plan_of` knows. Raises what transformers raises for damaged files."""
        from transformers import AutoConfig, AutoModel

        tokenizer, config = load_tokenizer(folder, plan), AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        check_built(folder, AutoModel)
        model: Any = AutoModel.from_pretrained(folder, config=config, use_safetensors=True, trust_remote_code=False)
        if model.config.hidden_size != plan.width:
            raise ValueError(f"its pooling is of {plan.width} numbers, its model of {model.config.hidden_size}")
        return cls(model.eval().requires_grad_(False).to(device), tokenizer, plan)

    def get_embedding_dimension(self) -> int:
        """Return the size of a vector."""
        return self.plan.dim

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, **_: Any) -> Floats:
        """Return vectors of unit norm, `(n, dim)` float32; texts go through in batches of like length, the longest first."""
        import torch

        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        found = np.empty((len(texts), self.plan.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                given = self.tokenizer(
                    [texts[place] for place in batch], padding=True, truncation="longest_first", return_tensors="pt"
                ).to(self.model.device)
                states = self.model(**given).last_hidden_state
                mask = given.get("attention_mask", torch.ones(states.shape[:2], device=states.device))
                pooled = torch.cat([pool(name, states, mask) for name in self.plan.poolings], dim=1)
                found[batch] = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return found


def load_tokenizer(folder: Path, plan: SentencePlan) -> PreTrainedTokenizerBase:
    """Return an encoder's tokenizer, which knows how many tokens are read at most."""
    from transformers import AutoConfig, AutoTokenizer

    given = {} if plan.longest is None else {"model_max_length": plan.longest}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **given)
    most = getattr(AutoConfig.from_pretrained(folder, trust_remote_code=False), "max_position_embeddings", -1)
    if plan.longest is None and most != -1:
        tokenizer.model_max_length = min(tokenizer.model_max_length, most)
    return tokenizer


def pool(name: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return one vector per text, `(n, width)`. states: `(n, tokens, width)`; mask: 1 where a token stands, `(n, tokens)`."""
    import torch

    texts, tokens, _ = states.shape
    there = mask.bool()
    place = torch.arange(tokens, device=states.device).expand(texts, tokens)
    first = there.int().argmax(dim=1)
    if name == "cls":
        return states[torch.arange(texts, device=states.device), first]
    if name == "lasttoken":
        return states[torch.arange(texts, device=states.device), (place * there).argmax(dim=1)]
    if name == "max":
        return states.masked_fill(~there[..., None], float("-inf")).max(dim=1).values
    weights = there.float()
    if name == "weightedmean":
        weights = weights * (place - first[:, None] + 1)
    total = (states.float() * weights[..., None]).sum(dim=1)
    size = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return (total / (size.sqrt() if name == "mean_sqrt_len_tokens" else size)).to(states.dtype)
