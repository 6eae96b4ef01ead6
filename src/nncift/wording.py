"""How an example is worded for a language model, and which of its tokens are the response (method.md 3.1).

One wording serves every condition: the target reads the same with and without an example in front. Example block,
prompt and response are tokenised separately and their ids joined, so the response's tokens never depend on what
stands before them and a prefix cache is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.data.examples import Example, Message
from nncift.errors import DataError, UsageError
from nncift.memory import refuse_tight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "Instruction:\n{prompt}\n\nResponse:\n{response}"
SEPARATOR = "\n\n"

PROBE = "nncift-response"
FIXED_DAY = (
    "{%- macro strftime_now(format) -%}"
    "{%- if format == '%Y-%m-%d' -%}2024-07-26{%- else -%}26 Jul 2024{%- endif -%}"
    "{%- endmacro -%}"
)
"""Jinja text that makes every day the same."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a target: what the model reads before the response, and the response with its end of sequence."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class Block:
    """Token ids of an example that stands in front of a target; shortened: its prompt's start was cut."""

    ids: tuple[int, ...]
    shortened: bool


class Wording:
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
        self.bos: tuple[int, ...] = self._start()
        self.eos: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)

    def describe(self) -> dict[str, Any]:
        """Return what decides the tokens, for fingerprints."""
        return {"chat": str(self._tokenizer.chat_template) if self.chat else None, "text": self.text}

    @cached_property
    def end(self) -> tuple[int, ...]:
        """Ids that the wording itself puts behind every response, such as a chat template's end mark; mostly none or one."""
        mark = self._frame[1] if self.chat else self.text.split("{response}", 1)[1]
        return tuple(self._ids(mark.strip()))

    def tokens(self, example: Example) -> Tokens:
        """Tokenise an example as a target.

        Raises DataError where the chat template refuses its turns, ResourceError where a cap leaves no memory.
        """
        refuse_tight("tokenising rows")
        prompt, response, _ = self._parts(example.messages, example.response)
        has_end_mark = self.chat and self._frame[1].strip()
        return Tokens(tuple(self._ids(prompt)), (*self._ids(response), *(() if has_end_mark else self.eos)))

    def block(self, example: Example, limit: int) -> Block:
        """Tokenise an example to stand in front of a target, in at most `limit` tokens where its response allows.

        Too long: characters are cut from the start of its prompt, as few as needed; the response is never cut, so a
        block can stay longer than `limit` when its response alone is. Raises DataError where the chat template refuses
        the turns, whole or cut.
        """
        messages, response = example.messages, example.response
        kept = self._fitted(messages, response, limit)
        return Block(tuple(self._block_ids(kept, response)), shortened=kept is not messages)

    def shortened(self, example: Example, limit: int) -> Example:
        """Return an example cut as `block` cuts it, or itself where nothing is cut; its original row stays whole."""
        messages = example.messages
        kept = self._fitted(messages, example.response, limit)
        if kept is messages:
            return example
        return replace(example, prompt=plain_prompt(kept), messages=tuple(kept))

    def _fitted(self, messages: Sequence[Message], response: str, limit: int) -> Sequence[Message]:
        """Return the turns before the response, themselves where they fit, else less as few characters as needed."""
        low, high = 1, sum(len(message.content) for message in messages)
        if len(self._block_ids(messages, response)) <= limit or not high:
            return messages
        while low < high:
            middle = (low + high) // 2
            if len(self._block_ids(self._cut(messages, middle), response)) <= limit:
                high = middle
            else:
                low = middle + 1
        return self._cut(messages, low)

    def _cut(self, messages: Sequence[Message], characters: int) -> list[Message]:
        """Drop characters from the start of the turns; turns that lose all are dropped, save the last.

        Chat templates refuse to begin with an answer, so there what is left begins with a question or the system.
        """
        kept: list[Message] = []
        for position, message in enumerate(messages):
            dropped = min(characters, len(message.content))
            characters -= dropped
            last = position == len(messages) - 1
            opens = kept or not self.chat or message.role in ("system", "user")
            if last or (opens and dropped < len(message.content)):
                kept.append(Message(message.role, message.content[dropped:]))
        return kept

    def _block_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        return self._ids("".join(self._parts(messages, response)))

    def _parts(self, messages: Sequence[Message], response: str) -> tuple[str, str, str]:
        """Return the text before the response, the response, and what parts it from a target behind it.

        With a chat template the response includes its end mark, and only white space parts it from the next turn. What a
        template puts before every response, such as an empty thought, belongs to the prompt.
        """
        if not self.chat:
            before, between = self.text.split("{prompt}", 1)
            middle, after = between.split("{response}", 1)
            return before + plain_prompt(messages) + middle, response + after, SEPARATOR
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            prompt = self._render(turns, add_generation_prompt=True)
            whole = self._render([*turns, {"role": "assistant", "content": response}], add_generation_prompt=False)
        except Exception as error:
            raise DataError(f"the model's chat template refuses these turns: {error}") from error
        if not whole.startswith(prompt):
            raise DataError(
                "the model's chat template words the prompt differently once the response follows; use --template plain"
            )
        lead, tail = self._frame
        answer = whole[len(prompt) :]
        if answer.startswith(lead):
            prompt, answer = prompt + lead, answer[len(lead) :]
        gap = tail[len(tail.rstrip()) :]
        answer, gap = (answer.removesuffix(gap), gap) if answer.endswith(gap) else (answer, "")
        return prompt, answer, gap

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What the chat template puts around every response: before it, behind the generation prompt, and after it."""
        turns = [{"role": "user", "content": "?"}]
        prompt = self._render(turns, add_generation_prompt=True)
        whole = self._render([*turns, {"role": "assistant", "content": PROBE}], add_generation_prompt=False)
        lead, found, tail = whole.removeprefix(prompt).partition(PROBE)
        # A lone space stays with the response: many tokenizers read both as one token.
        return (lead.rstrip(" "), tail) if found and whole.startswith(prompt) else ("", "")

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        text = self._raw(turns, add_generation_prompt=add_generation_prompt)
        bos = self._tokenizer.bos_token
        return text.removeprefix(str(bos)) if bos else text

    def _raw(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        template = str(self._tokenizer.get_chat_template())
        # A template that names the day would give other values tomorrow.
        template = (FIXED_DAY if "strftime_now" in template else "") + template
        return str(
            self._tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _start(self) -> tuple[int, ...]:
        """Return the ids in front of every sequence: what the chat template begins with, else the tokenizer's habit."""
        bos = self._tokenizer.bos_token
        if self.chat:
            try:
                text = self._raw([{"role": "user", "content": "?"}], add_generation_prompt=True)
            except Exception as error:
                raise UsageError(
                    f"the model's chat template refuses even a single question: {error}; use --template plain"
                ) from error
            return (int(self._tokenizer.bos_token_id),) if bos and text.startswith(str(bos)) else ()
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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {path.name} cannot be read as UTF-8 text: {error}") from error
    if (
        text.count("{prompt}") != 1
        or text.count("{response}") != 1
        or text.index("{prompt}") > text.index("{response}")
    ):
        raise UsageError(f"the template {path.name} must hold {{prompt}} and then {{response}}, once each")
    return text
