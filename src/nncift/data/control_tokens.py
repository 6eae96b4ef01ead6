"""Control tokens in rows' texts: under a chat template the frame alone holds them, contents are read as text (method.md 3.1).

Where a row's own text holds one, such as `<|im_end|>`, it is masked by a character that stands nowhere else in the row while the
chat template is rendered, and spelled as text when the rendering is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from nncift.data.examples import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

ANCHOR = "\ue000"
"""A character of private use: what a tokenizer puts before the start of a text stands before it, and it merges with nothing."""

MASKS = range(0xF0000, 0x10FFFE)
"""Characters of private use that masks are taken from."""

COMMON = re.compile(
    r"<\|[A-Za-z0-9_ /]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
)
"""Control tokens of widespread models, for files whose model is not known yet."""


@dataclass(frozen=True)
class Mask:
    """Characters that stand for control tokens' text, and turns and response in which they do."""

    of: Mapping[str, str]
    messages: tuple[Message, ...]
    response: str

    def lifted(self, text: str) -> str:
        """Return a text with the control tokens' own text."""
        for char, control in self.of.items():
            text = text.replace(char, control)
        return text


class Controls:
    """The control tokens of a tokenizer, and how texts are tokenised of which only some may become such.

    frame: texts of a chat template, whose added tokens control a conversation whatever the tokenizer calls them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frame: str) -> None:
        self._tokenizer = tokenizer
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= {token for token in tokenizer.get_added_vocab() if token in frame}
        self.texts = tuple(sorted((text for text in special if text.strip()), key=lambda text: (-len(text), text)))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._spelled: dict[str, Ids] = {}

    def found(self, messages: Sequence[Message], response: str) -> tuple[str, ...]:
        """Return the control tokens whose text stands in turns or a response."""
        texts = [*(message.content for message in messages), response]
        return tuple(dict.fromkeys(hit for text in texts for hit in self._pattern.findall(text)))

    def mask(
        self, messages: Sequence[Message], response: str, render: Callable[[Sequence[Message], str], str]
    ) -> Mask | None:
        """Return turns and response with control tokens masked, None where there are none to mask.

        render: what the chat template makes of turns and a response. What it reads itself in a text, such as the end of a
        thought that it cuts, is left as it is: masked, the rendering would be another one.
        """
        controls = self.found(messages, response)
        if not controls:
            return None
        plain = render(messages, response)
        whole = self._masked(controls, messages, response)
        if whole.lifted(render(whole.messages, whole.response)) == plain:
            return whole
        kept: list[str] = []
        for control in controls:
            tried = self._masked((*kept, control), messages, response)
            if tried.lifted(render(tried.messages, tried.response)) == plain:
                kept.append(control)
        return self._masked(kept, messages, response) if kept else None

    def ids(self, text: str, before: str, mask: Mask | None) -> list[int]:
        """Tokenise a text of a chat template: its control tokens are read as such, masked ones are spelled.

        before: what stands before it and is tokenised apart from it.
        """
        if mask is None:
            return self._piece(text, before)
        found: list[int] = []
        for part in re.split(f"([{''.join(mask.of)}])", text):
            if part in mask.of:
                found += self._spell(mask.of[part])
            elif part:
                found += self._piece(part, before)
            before = part or before
        return found

    def _masked(self, controls: Sequence[str], messages: Sequence[Message], response: str) -> Mask:
        used = {char for text in [*(message.content for message in messages), response] for char in text}
        free = (chr(code) for code in MASKS if chr(code) not in used)
        chars = dict(zip(controls, free, strict=False))
        pattern = re.compile("|".join(map(re.escape, sorted(controls, key=lambda text: (-len(text), text)))))

        def hide(text: str) -> str:
            return pattern.sub(lambda hit: chars[hit.group()], text)

        turns = tuple(replace(message, content=hide(message.content)) for message in messages)
        return Mask({char: control for control, char in chars.items()}, turns, hide(response))

    def _piece(self, text: str, before: str) -> list[int]:
        """Tokenise a text as it reads behind another one, control tokens as such."""
        if not self._begins_texts:
            return self._encode(text)
        anchor = next((control for control in self.texts if before.endswith(control)), ANCHOR if before else "")
        return self._behind(anchor, text, split=False)

    def _behind(self, anchor: str, text: str, *, split: bool) -> list[int]:
        """Return the ids of a text behind another one, those that it has alone where the two cannot be separated."""
        front, both = self._encode(anchor, split=split), self._encode(anchor + text, split=split)
        return both[len(front) :] if both[: len(front)] == front else self._encode(text, split=split)

    def _spell(self, control: str) -> Ids:
        """Return the ids of a control token's text, read as text."""
        if control not in self._spelled:
            found = self._behind(ANCHOR if self._begins_texts else "", control, split=True)
            if self._ids_of_controls.intersection(found):
                # Added tokens that are not called special are never split: no part of their text is one.
                found = [token for char in control for token in self._encode(char, split=True)]
            self._spelled[control] = tuple(found)
        return self._spelled[control]

    @cached_property
    def _ids_of_controls(self) -> frozenset[int]:
        return frozenset(token for text in self.texts for token in self._encode(text)[-1:])

    @cached_property
    def _begins_texts(self) -> bool:
        """Whether the tokenizer puts something before a text that is not there inside a text, as many do with a space."""
        front, both = self._encode(ANCHOR), self._encode(ANCHOR + "a")
        return both[: len(front)] == front and both[len(front) :] != self._encode("a")

    def _encode(self, text: str, *, split: bool = False) -> list[int]:
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=split, return_attention_mask=False, verbose=False
        )
        return [int(token) for token in encoded["input_ids"]]
