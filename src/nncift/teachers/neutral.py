"""What may stand in front of a text without context: the token that documents begin with, and no part of a chat."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nncift.data.chat_rendering import ChatRenderer
from nncift.models.prompt_format import PromptFormat

BOUNDARIES = (
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<s>",
    "<bos>",
    "<|startoftext|>",
    "</s>",
    "<eos>",
)
"""Tokens that models were pretrained to find between documents, by name."""


def neutral_start(tokenizer: Any, wording: PromptFormat) -> tuple[int, ...]:
    """Return the ids that stand in front of a text of no context; empty where the tokenizer has none.

    What the wording begins with, unless that begins a turn of the chat template: a response behind such a mark would be read as
    somebody's turn. Then what documents are known to be parted by, a bos or eos token that is no part of a turn, or, where the
    template begins every turn with the token that begins documents, that.
    """
    marks = _turn_marks(tokenizer)
    if not marks or (wording.bos and marks.isdisjoint(wording.bos)):
        return wording.bos or wording.eos
    known = tokenizer.get_added_vocab()
    for token in (*map(known.get, BOUNDARIES), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token not in marks:
            return (int(token),)
    return wording.bos or wording.eos


def _turn_marks(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that a chat template puts around turns; one that stands at the start alone is none of them."""
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    turns = [{"role": role, "content": "?"} for role in ("user", "assistant", "user")]
    try:
        text = ChatRenderer(tokenizer)(turns, ask=True)
    except Exception:  # noqa: BLE001 - a Jinja template may raise anything
        return frozenset()
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    counts = Counter(ids)
    return frozenset(token for token in counts if token in special and (counts[token] > 1 or token != ids[0]))
