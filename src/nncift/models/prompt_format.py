"""How an example is worded for a language model, and which of its tokens are the response (method.md 3.1).

Example, prompt and response are tokenised separately and their ids joined, so the response's tokens never depend on what
stands before them and a prefix cache is exact. With a chat template, an example and the target are one conversation (`chat`):
the target has two forms, alone and behind an example, and so has an example, first and behind others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nncift.core.memory import check_room
from nncift.core.result_types import JsonObject
from nncift.core.texts import read_text
from nncift.data.control_tokens import Controls, Mask
from nncift.data.examples import Example, Message
from nncift.errors import UsageError
from nncift.models.chat_template import ChatTemplate, Rendered
from nncift.models.token_rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TEMPLATE = 1 << 20
"""Bytes of a template's file."""

PLAIN = "Instruction:\n{prompt}\n\nResponse:\n{response}"
SEPARATOR = "\n\n"

SHOWN = 3
"""Control tokens that are named in a note."""

CHAT_FORM = 3
"""Counts the ways in which a chat template was used: labels of another one are not mixed with these.

1: joined blocks. 2: one conversation. 3: control tokens in contents are text.
"""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a target: what the model reads before the response, and the response with its end of sequence.

    joined: why a target behind an example is not part of one conversation, but joined plainly; None where it is. partial: the
    chat template left only a part of a response. spelled: control tokens that the row's own text holds, read as text.
    scored: as in `Row`, where several turns are learned from: then `response` is all that stands from the first of them on.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    joined: str | None = None
    partial: bool = False
    spelled: tuple[str, ...] = ()
    scored: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    def row(self, before: Sequence[int] = ()) -> Row:
        """Return the tokens as a row, behind others."""
        return Row((*before, *self.prompt), self.response, self.scored)


@dataclass(frozen=True, slots=True)
class Block:
    """Token ids of an example that stands in front of a target; shortened: its prompt's start was cut.

    joined: why it is not part of one conversation, but joined plainly; None where it is.
    """

    ids: tuple[int, ...]
    shortened: bool
    joined: str | None = None


class PromptFormat:
    """Renders examples to token ids for one tokenizer.

    template: None = the model's chat template if it has one, else the plain text; `"chat"`, `"plain"`; or the path of
    a text file that holds `{prompt}` and `{response}` once each, in this order. Raises UsageError for any other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not has_chat:
            raise UsageError("--template chat was given, but this model's tokenizer has no chat template; use plain")
        self.chat = template == "chat" or (template is None and has_chat)
        self.text = "" if self.chat else _plain_template(template)
        self._template = ChatTemplate(tokenizer) if self.chat else None
        self._controls = Controls(tokenizer, self._template.frames if self._template else "")
        self.bos: tuple[int, ...] = self._start()
        self.eos: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)

    def describe(self) -> JsonObject:
        """Return what decides the tokens, for fingerprints."""
        if self._template is None:
            return {"chat": None, "text": self.text}
        return {"chat": str(self._tokenizer.chat_template), "text": self.text, "form": CHAT_FORM}

    @cached_property
    def end(self) -> tuple[int, ...]:
        """Ids that the wording itself puts behind every response, such as a chat template's end mark; mostly none or one."""
        mark = self._template.frame[1] if self._template else self.text.split("{response}", 1)[1]
        return tuple(self._ids(mark.strip()))

    def tokens(self, example: Example, *, behind: bool = False) -> Tokens:
        """Tokenise an example as a target; behind: as it reads behind an example, else as it reads alone.

        Its response's tokens are the same in both. Raises DataError where the chat template refuses its turns or leaves nothing
        of the response, ResourceError where a cap leaves no memory.
        """
        check_room("tokenising rows")
        messages, response = example.messages, example.response
        if self._template is None:
            parts = self._plain_parts(messages, response)
            ids, scored = _joined([self._ids(text) for text in parts[1:]], self.eos)
            return Tokens(tuple(self._ids(parts[0])), ids, scored=scored)
        mask = self._mask(messages, response)
        turns = (messages, response) if mask is None else (mask.messages, mask.response)
        said = self._template.conversation(*turns, behind=behind)
        # Behind an example stands the end of its response, which is what a conversation begins with or a mark of its own.
        prompt = self._controls.ids(said.parts[0], self._template.ends if behind else self._template.bos, mask)
        end = () if self._template.frame[1].strip() else self.eos
        pieces = [
            self._controls.ids(text, before, mask) for before, text in zip(said.parts[:-1], said.parts[1:], strict=True)
        ]
        ids, scored = _joined(pieces, end)
        spelled = () if mask is None else tuple(mask.of.values())
        return Tokens(tuple(prompt), ids, said.joined, said.partial, spelled, scored)

    def block(self, example: Example, limit: int, *, first: bool = True) -> Block:
        """Tokenise an example to stand in front of a target, in at most `limit` tokens where its response allows.

        first: nothing stands before it, else another example does. Too long: characters are cut from the start of its prompt,
        as few as needed; the response is never cut, so a block can stay longer than `limit` when its response alone is.
        Raises DataError where the chat template refuses the turns, whole or cut.
        """
        messages, response = example.messages, example.response
        kept = self._fitted(messages, response, limit, first=first)
        ids, joined = self._block_ids(kept, response, first=first)
        return Block(tuple(ids), kept is not messages, joined)

    def joined(self, example: Example) -> str | None:
        """Return why an example is not one conversation with a target behind it, None where it is.

        Raises DataError where the chat template refuses its turns.
        """
        return self._template.before(example.messages, example.response)[1] if self._template else None

    def shortened(self, example: Example, limit: int, *, first: bool = True) -> Example:
        """Return an example cut as `block` cuts it, or itself where nothing is cut; its original row stays whole."""
        messages = example.messages
        kept = self._fitted(messages, example.response, limit, first=first)
        if kept is messages:
            return example
        return replace(example, prompt=plain_prompt(kept), messages=tuple(kept))

    def _fitted(self, messages: Sequence[Message], response: str, limit: int, *, first: bool) -> Sequence[Message]:
        """Return the turns before the response, themselves where they fit, else less as few characters as needed."""

        def fits(turns: Sequence[Message]) -> bool:
            return len(self._block_ids(turns, response, first=first)[0]) <= limit

        low, high = 1, sum(len(message.content) for message in messages)
        if fits(messages) or not high:
            return messages
        while low < high:
            middle = (low + high) // 2
            if fits(self._cut(messages, middle)):
                high = middle
            else:
                low = middle + 1
        return self._cut(messages, low)

    def _cut(self, messages: Sequence[Message], characters: int) -> list[Message]:
        """Drop characters from the start of the turns; turns that lose all are dropped, save the last.

        Chat templates refuse to begin with an answer, so there what is left begins with a question or the system; one that
        refuses to begin without a system turn keeps an empty one.
        """
        kept: list[Message] = []
        for position, message in enumerate(messages):
            dropped = min(characters, len(message.content))
            characters -= dropped
            last = position == len(messages) - 1
            forced = position == 0 and message.role == "system" and self._template and self._template.forces_system
            opens = kept or not self.chat or message.role in ("system", "user")
            if last or forced or (opens and dropped < len(message.content)):
                # What is left of a response that was cut is none, nor is one whose question is gone.
                learned = message.learned and not dropped and any(turn.role in ("user", "tool") for turn in kept)
                kept.append(Message(message.role, message.content[dropped:], learned))
        return kept

    def _block_ids(self, messages: Sequence[Message], response: str, *, first: bool) -> tuple[list[int], str | None]:
        """Return the ids of an example in front, and why it is joined plainly, None where it is not."""
        if self._template is None:
            return self._ids(self._plain(messages, response).text), None
        mask = self._mask(messages, response)
        turns = (messages, response) if mask is None else (mask.messages, mask.response)
        text, joined = self._template.before(*turns, first=first)
        return self._controls.ids(text, self._template.bos if first else self._template.ends, mask), joined

    def _mask(self, messages: Sequence[Message], response: str) -> Mask | None:
        """Return a row with the control tokens in its contents masked, None where it holds none that can be."""
        template = self._template
        if template is None:
            return None

        def render(turns: Sequence[Message], said: str) -> str:
            return template.alone(turns, said).text + template.before(turns, said)[0]

        return self._controls.mask(messages, response, render)

    def _plain(self, messages: Sequence[Message], response: str) -> Rendered:
        """Return, in plain wording, the text before the response, the response, and what parts it from a target behind it."""
        before, between = self.text.split("{prompt}", 1)
        middle, after = between.split("{response}", 1)
        return Rendered(before + plain_prompt(messages) + middle, response + after, SEPARATOR)

    def _plain_parts(self, messages: Sequence[Message], response: str) -> list[str]:
        """Return, in plain wording, what stands before the first turn that is learned from, that turn, what follows, ..."""
        text = self._plain(messages, response)
        lead = self.text.index("{prompt}")
        parts, at = [], 0
        for place, message in enumerate(messages):
            if message.learned:
                # Turns that are learned from answer others, so all of them bear their role.
                end = lead + len(plain_prompt(messages[: place + 1]))
                parts += [text.prompt[at : end - len(message.content)], message.content]
                at = end
        return [*parts, text.prompt[at:], text.response]

    def _start(self) -> tuple[int, ...]:
        """Return the ids in front of every sequence: what the chat template begins with, else the tokenizer's habit."""
        bos = self._tokenizer.bos_token
        if self._template is not None:
            return (int(self._tokenizer.bos_token_id),) if self._template.bos else ()
        if not bos:
            return ()
        bare = self._ids("a")
        full = [int(token) for token in self._tokenizer("a")["input_ids"]]
        start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
        # Some tokenizers leave it to their chat template to put the token there.
        chat = str(getattr(self._tokenizer, "chat_template", None) or "")
        if not start and ("bos_token" in chat or (bos != self._tokenizer.eos_token and str(bos) in chat)):
            return (int(self._tokenizer.bos_token_id),)
        return tuple(full[:start])

    def _ids(self, text: str) -> list[int]:
        # Plain text of a row never becomes a control token; a chat template needs its own to be read as such.
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=not self.chat,
            return_attention_mask=False,
            verbose=False,
        )
        return [int(token) for token in encoded["input_ids"]]


class Remarks:
    """Counts rows, each once, that hold control tokens' text or lose a part of their response."""

    def __init__(self) -> None:
        self._rows: set[str] = set()
        self._partial: set[str] = set()
        self._controls: dict[str, tuple[str, ...]] = {}

    def add(self, example: Example, tokens: Tokens) -> None:
        """Look at a row that was tokenised."""
        self._rows.add(example.id)
        if tokens.partial:
            self._partial.add(example.id)
        if tokens.spelled:
            self._controls[example.id] = tokens.spelled

    def notes(self, what: str = "rows") -> tuple[str, ...]:
        """Return plain sentences. what: name of the rows."""
        found = []
        if self._controls:
            held = sorted({control for controls in self._controls.values() for control in controls})
            names = ", ".join(held[:SHOWN]) + (", ..." if len(held) > SHOWN else "")
            share = f"{len(self._controls)} of {len(self._rows)} {what}"
            found.append(f"{share} hold the text of control tokens ({names}), which is read as text.")
        if self._partial:
            found.append(
                f"{len(self._partial)} of {len(self._rows)} {what} keep only a part of their response under the model's chat "
                "template, and nothing else of it is read."
            )
        return tuple(found)


def _joined(pieces: Sequence[Sequence[int]], end: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the ids of responses and of what stands between them, the end behind the last, and the places of those that count.

    pieces: a response, what stands before the next, the next, ...; a single response counts whole, which None says.
    """
    *others, last = pieces
    every = [*others, (*last, *end)]
    ids = tuple(token for piece in every for token in piece)
    if not others:
        return ids, None
    kinds = [place % 2 == 0 for place, piece in enumerate(every) for _ in piece]
    return ids, tuple(place for place, counts in enumerate(kinds) if counts)


def plain_prompt(messages: Sequence[Message]) -> str:
    """Return the turns before the response as one text; a lone user turn stands without a role label."""
    if sum(message.role != "system" for message in messages) <= 1:
        return "\n\n".join(message.content for message in messages)
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def _plain_template(template: str | None) -> str:
    if template in (None, "plain"):
        return PLAIN
    path = Path(str(template))
    if not path.is_file():
        raise UsageError(f"--template takes chat, plain or a text file; there is no file {str(template)!r}")
    try:
        text = read_text(path, MOST_TEMPLATE)
    except (OSError, ValueError) as error:
        raise UsageError(f"the template {path.name} cannot be read as UTF-8 text: {error}") from error
    if (
        text.count("{prompt}") != 1
        or text.count("{response}") != 1
        or text.index("{prompt}") > text.index("{response}")
    ):
        raise UsageError(f"the template {path.name} must hold {{prompt}} and then {{response}}, once each")
    return text
