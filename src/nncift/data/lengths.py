"""How long rows are for the model that is trained, so that a trainer cuts no response without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nncift.data.conversation import Conversation, Speech
from nncift.data.tokenizer_files import load_tokenizer
from nncift.errors import DataError, UsageError

if TYPE_CHECKING:
    from nncift.data.chat_rendering import ChatRenderer

WHAT_TO_DO = ("refuse", "drop")


@dataclass(frozen=True)
class LengthLimit:
    """The trainer's limit. tokens: of prompt and response together. tokenizer: a folder or hub name, None = the run's model.

    too_long: refuse = name rows beyond it and stop, drop = leave them out. Raises UsageError for other values.
    """

    tokens: int
    tokenizer: str | None = None
    too_long: str = "refuse"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageError(f"--max-length was given as {self.tokens}; expected a number of tokens, at least 1")
        if self.too_long not in WHAT_TO_DO:
            raise UsageError(f"--too-long was given as {self.too_long!r}; expected one of {', '.join(WHAT_TO_DO)}")


def token_counter(model: str | None) -> Callable[[Conversation], int]:
    """Return the function that counts a conversation's tokens, of a pair those of its longer side.

    The tokenizer's chat template is applied where it has one. Raises UsageError without a model, ResourceError where its
    tokenizer cannot be loaded.
    """
    if model is None:
        raise UsageError(
            "--max-length needs a tokenizer, and the run has no model: give --tokenizer FOLDER or a hub name"
        )
    from nncift.data.chat_rendering import ChatRenderer

    tokenizer = load_tokenizer(model)
    render = ChatRenderer(tokenizer) if getattr(tokenizer, "chat_template", None) else None

    def count(conversation: Conversation) -> int:
        sides = [conversation.turns] if conversation.rejected is None else [conversation.turns, conversation.rejected]
        # Chat templates write tool definitions in front, in one form or another.
        tools = "" if conversation.tools is None else json.dumps(conversation.tools, ensure_ascii=False)
        before = len(tokenizer(tools, add_special_tokens=False)["input_ids"]) if tools else 0
        return before + max(_length(tokenizer, render, [_plain(turn) for turn in side]) for side in sides)

    return count


def _length(tokenizer: Any, render: ChatRenderer | None, turns: list[dict[str, str]]) -> int:
    if render is not None:
        from jinja2 import TemplateError

        from nncift.data.chat_rendering import TooMuchWorkError

        try:
            return len(tokenizer(render(turns), add_special_tokens=False)["input_ids"])
        except TemplateError:
            # Templates refuse roles; the texts alone are a length from below.
            pass
        except TooMuchWorkError as error:
            raise DataError(f"the chat template of {tokenizer.name_or_path!r} is refused: {error}") from error
    text = "\n\n".join(turn["content"] for turn in turns)
    return len(tokenizer(text)["input_ids"])


def _plain(turn: Speech) -> dict[str, str]:
    """Return a turn as every chat template takes it: its texts, thought and calls are what is long in it."""
    content = turn.content or ""
    if isinstance(content, list):
        content = "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
    said = [
        turn.thought or "",
        content,
        *(f"{call.name} {call.text}" for call in turn.calls),
    ]
    return {"role": turn.role, "content": "\n".join(text for text in said if text)}
