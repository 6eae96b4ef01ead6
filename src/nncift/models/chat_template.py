"""What a chat template makes of an example: alone, in front of a target, and behind one (method.md 3.1).

An example and a target are one conversation. It is rendered once, with a made-up target behind the example and a made-up
example in front of the target, and cut where the target's part begins, so that neither part depends on what the other says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from nncift.data.chat_rendering import ChatRenderer
from nncift.data.examples import Message
from nncift.errors import DataError, ResourceError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DAY = (
    "{%- macro strftime_now(format) -%}"
    "{%- if format == '%Y-%m-%d' -%}2024-07-26{%- else -%}26 Jul 2024{%- endif -%}"
    "{%- endmacro -%}"
)
"""Jinja text that makes every day the same."""

Turns = Sequence[Message]

SYSTEM = Message("system", "nncift-system")
SHOWN = (Message("user", "nncift-question"), Message("assistant", "nncift-response"))
ASKED = (Message("user", "nncift-target"), Message("user", "another nncift target"))
"""Made-up targets: what stands in front must read the same before each of them."""

REFUSES = "the chat template refuses turns behind those of an example"
CHANGES = "the chat template words turns differently when others follow or precede them"
ONE_SYSTEM = "the chat template takes a system turn only at the start of a conversation"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Turns as text: what stands before the response, the response with its end mark, what parts it from a turn behind it.

    joined: why they stand in a conversation as they would stand alone, joined plainly; None where they are part of it.
    """

    prompt: str
    response: str
    gap: str
    joined: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return self.prompt + self.response + self.gap


@dataclass(frozen=True, slots=True)
class Said:
    """A conversation as text in parts: what stands before a response that counts, the response, what stands before the next, ...

    joined: as in `Rendered`. partial: the template left only a part of a response.
    """

    parts: tuple[str, ...]
    joined: str | None
    partial: bool


class _RefusedError(DataError):
    """A template refuses turns."""


class _ChangedError(DataError):
    """A template words turns differently when others follow or precede them."""


@dataclass(frozen=True)
class _Border:
    """A made-up example in front of made-up targets, cut where the targets' part begins.

    front: the example's text, the same before every target. behind: each target's text, up to where its response is due.
    """

    turns: tuple[Message, ...]
    front: str
    behind: tuple[str, ...]


class ChatTemplate:
    """A tokenizer's chat template. Raises UsageError for one that takes no question.

    bos: the token that every rendering begins with, as text, which all methods leave out where a conversation begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.get_chat_template())
        # A template that names the day would give other values tomorrow.
        self._render = ChatRenderer(tokenizer, (FIXED_DAY if "strftime_now" in template else "") + template)
        self._opening, start = self._first_rendering()
        bos = str(tokenizer.bos_token or "")
        self.bos = bos if bos and start.startswith(bos) else ""

    @cached_property
    def frames(self) -> str:
        """Renderings of made-up conversations, alone and of several turns: all that usually stands around contents."""
        turns = (*self._opening, *SHOWN)
        border = self._border
        return self._raw(turns, ask=False) + (border.front + "".join(border.behind) if border else "")

    @property
    def forces_system(self) -> bool:
        """Whether every conversation must begin with a system turn."""
        return bool(self._opening)

    def alone(self, messages: Turns, response: str) -> Rendered:
        """Render turns and the response to them as a conversation of their own. Raises DataError where they are refused."""
        return self._rendered((), "", messages, response)

    def behind(self, messages: Turns, response: str) -> Rendered:
        """Render a target as it reads behind every example; its response is worded as in `alone`. Raises DataError as there."""
        alone = self.alone(messages, response)
        if self._border is None:
            return self._joined(alone, str(self._no_border))
        if any(message.role == "system" for message in messages) and not self._takes_later_system:
            return self._joined(alone, ONE_SYSTEM)
        try:
            found = self._rendered(self._border.turns, self._border.front, messages, response)
        except DataError as error:
            return self._joined(alone, CHANGES if isinstance(error, _ChangedError) else REFUSES)
        return found if found.response == alone.response else self._joined(alone, CHANGES)

    def conversation(self, messages: Turns, response: str, *, behind: bool) -> Said:
        """Return a target in parts; behind: as it reads behind every example, which may show in its first part alone.

        Raises DataError where turns are refused, where the template leaves nothing of a response, and where it words one that is
        learned from differently once others follow.
        """
        learned = [place for place, message in enumerate(messages) if message.learned]
        answers = [*((messages[:place], messages[place].content) for place in learned), (messages, response)]
        rendered = [self.alone(*answer) for answer in answers]
        left = [self.left(one, text) for one, (_, text) in zip(rendered, answers, strict=True)]
        if "nothing" in left:
            raise DataError("the chat template leaves nothing of the response")
        whole, at, parts = rendered[-1], 0, list[str]()
        for one in rendered[:-1]:
            prompt, said = self._within(whole.prompt, one)
            parts += [whole.prompt[at : len(prompt)], said]
            at = len(prompt) + len(said)
        parts += [whole.prompt[at:], whole.response]
        if not behind:
            return Said(tuple(parts), None, "part" in left)
        opening = self.behind(*answers[0])
        lead = opening.prompt.endswith(self.frame[0]) and rendered[0].prompt != parts[0]
        first = opening.prompt.removesuffix(self.frame[0]) if lead else opening.prompt
        return Said((first, *parts[1:]), opening.joined, "part" in left)

    def _within(self, whole: str, one: Rendered) -> tuple[str, str]:
        """Return what stands before an earlier response in a whole conversation, and the response there.

        one: the conversation up to it. Some templates put a mark of its own, or an empty thought, to the last response alone.
        Raises DataError where the response is worded otherwise.
        """
        lead, ended = self.frame[0], self.frame[1].rstrip()
        for prompt in dict.fromkeys((one.prompt, one.prompt.removesuffix(lead))):
            for said in dict.fromkeys((one.response, one.response.removesuffix(ended))):
                if whole.startswith(prompt + said):
                    return prompt, said
        raise DataError(
            "the chat template words an earlier response differently once others follow; with --turns last, the last alone is "
            "scored"
        )

    def before(self, messages: Turns, response: str, *, first: bool = True) -> tuple[str, str | None]:
        """Return an example as it reads before every target, and why it is joined plainly, None where it is not.

        first: it begins the conversation; else it stands behind other examples. Raises DataError as `alone` does.
        """
        text, reason = None, self._no_border
        if self._border is not None:
            later_system = not first and any(message.role == "system" for message in messages)
            if later_system and not self._takes_later_system:
                reason = ONE_SYSTEM
            else:
                text, reason = self._between(messages, response, first=first)
        if text is not None:
            return (text.removeprefix(self.bos) if first else text), None
        alone = self.alone(messages, response)
        return (alone if first else self._joined(alone, str(reason))).text, reason

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What the template puts around every response: before it, behind the generation prompt, and after it."""
        question, answer = SHOWN
        turns = (*self._opening, question)
        prompt = self._raw(turns, ask=True)
        whole = self._raw((*turns, answer), ask=False)
        lead, found, tail = whole.removeprefix(prompt).partition(answer.content)
        # A lone space stays with the response: many tokenizers read both as one token.
        return (lead.rstrip(" "), tail) if found and whole.startswith(prompt) else ("", "")

    def left(self, rendered: Rendered, response: str) -> Literal["all", "part", "nothing"]:
        """Tell how much of a response the template left: some cut a thought out of it. White space does not count."""
        said = rendered.response.rstrip().removesuffix(self.frame[1].strip())
        kept, whole = (len("".join(text.split())) for text in (said, response))
        if kept >= whole:
            return "all"
        return "part" if kept else "nothing"

    @cached_property
    def ends(self) -> str:
        """What every example in front ends with: the end of its response, from the response on."""
        return self._border.front.partition(SHOWN[1].content)[2] if self._border else self.frame[1]

    def _rendered(self, shown: Turns, front: str, messages: Turns, response: str) -> Rendered:
        """Render turns behind others, whose text is `front`, and the response to them."""
        prompt = self._raw((*shown, *messages), ask=True)
        whole = self._raw((*shown, *messages, Message("assistant", response)), ask=False)
        if not whole.startswith(prompt):
            raise _ChangedError(
                "the model's chat template words the prompt differently once the response follows; use --template plain"
            )
        if not prompt.startswith(front):
            raise _ChangedError(CHANGES)
        lead, tail = self.frame
        answer = whole[len(prompt) :]
        prompt = prompt[len(front) :] if shown else prompt.removeprefix(self.bos)
        if answer.startswith(lead):
            prompt, answer = prompt + lead, answer[len(lead) :]
        gap = tail[len(tail.rstrip()) :]
        answer, gap = (answer.removesuffix(gap), gap) if answer.endswith(gap) else (answer, "")
        return Rendered(prompt, answer, gap)

    def _between(self, messages: Turns, response: str, *, first: bool) -> tuple[str | None, str | None]:
        """Return the text between the start, or an example, and every target; None and the reason where there is none."""
        border = self._border
        if border is None:
            return None, self._no_border
        shown, front = ((), "") if first else (border.turns, border.front)
        turns = (*shown, *messages, Message("assistant", response))
        try:
            wholes = [self._raw((*turns, asked), ask=True) for asked in ASKED]
        except _RefusedError:
            return None, REFUSES
        text = wholes[0].removesuffix(border.behind[0])
        same = all(whole == text + behind for whole, behind in zip(wholes, border.behind, strict=True))
        return (text[len(front) :], None) if same and text.startswith(front) else (None, CHANGES)

    def _joined(self, alone: Rendered, reason: str) -> Rendered:
        """Return turns as they are put behind others where they are no part of their conversation."""
        prompt = (self.bos if self._bos_opens_turns else "") + alone.prompt
        return Rendered(prompt, alone.response, alone.gap, reason)

    @cached_property
    def _border(self) -> _Border | None:
        turns = (*self._opening, *SHOWN)
        question, answer = (message.content for message in SHOWN)
        try:
            ended = self._raw(turns, ask=False)
            wholes = [self._raw((*turns, asked), ask=True) for asked in ASKED]
        except _RefusedError:
            return None
        places = [wholes[0].find(text) for text in (question, answer, ASKED[0].content)]
        if not 0 <= places[0] < places[1] < places[2]:
            return None
        end = places[1] + len(answer)
        cut = end + self._cut(wholes[0][end : places[2]], ended.partition(answer)[2])
        front = wholes[0][:cut]
        if not all(whole.startswith(front) for whole in wholes):
            return None
        return _Border(turns, front, tuple(whole[cut:] for whole in wholes))

    @cached_property
    def _no_border(self) -> str | None:
        """Why there is no border, None where there is one."""
        if self._border is not None:
            return None
        try:
            self._raw((*self._opening, *SHOWN, ASKED[0]), ask=True)
        except _RefusedError:
            return REFUSES
        return CHANGES

    def _cut(self, between: str, tail: str) -> int:
        """Return where a target's part begins in what stands between a response and the next question.

        tail: what stands behind the response where the conversation ends. A template may end the last turn with more, such as
        an end of sequence: then the border is the last edge of a control token up to which both are the same.
        """
        if between.startswith(tail):
            return len(tail)
        shorter = min(len(between), len(tail))
        same = next((at for at in range(shorter) if between[at] != tail[at]), shorter)
        edges = [0]
        for token in self._tokenizer.get_added_vocab():
            at = between.find(token)
            while token and at >= 0:
                edges += [at, at + len(token)]
                at = between.find(token, at + 1)
        return max(edge for edge in edges if edge <= same)

    @cached_property
    def _takes_later_system(self) -> bool:
        """Whether a system turn may stand in the middle of a conversation, and is worded there."""
        border = self._border
        if border is None:
            return False
        try:
            whole = self._raw((*border.turns, SYSTEM, ASKED[0]), ask=True)
        except _RefusedError:
            return False
        return whole.startswith(border.front) and SYSTEM.content in whole[len(border.front) :]

    @cached_property
    def _bos_opens_turns(self) -> bool:
        """Whether the token that begins a conversation also begins a later question, rather than standing once."""
        if self._border is not None:
            return bool(self.bos) and self._border.behind[0].startswith(self.bos)
        try:
            whole = self._raw((*self._opening, *SHOWN, ASKED[0]), ask=True)
        except _RefusedError:
            return False
        return bool(self.bos) and whole.count(self.bos) > 1

    def _first_rendering(self) -> tuple[tuple[Message, ...], str]:
        """Return what must stand before a first question, nothing or a system turn, and such a question's rendering."""
        try:
            return (), self._raw(SHOWN[:1], ask=True)
        except _RefusedError as error:
            try:
                return (SYSTEM,), self._raw((SYSTEM, SHOWN[0]), ask=True)
            except _RefusedError:
                raise UsageError(f"even for a single question, {error}; use --template plain") from error

    def _raw(self, turns: Turns, *, ask: bool) -> str:
        """Render turns; ask: with what stands before a response that is due. Raises _RefusedError."""
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._render(said, ask=ask)
        except ResourceError:
            raise
        except Exception as error:
            # A Jinja template may raise anything.
            raise _RefusedError(f"the model's chat template refuses these turns: {error}") from error
