"""Rating prompts of SelectIT: how they are read from a file, and how they look in a model's tokens (method.md 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

from nncift.core.texts import first_line
from nncift.core.yaml_text import read_yaml
from nncift.data.chat_rendering import ChatRenderer
from nncift.errors import UsageError
from nncift.models.prompt_format import PromptFormat

Ids = tuple[int, ...]

GRADES = 5
"""K where nothing says otherwise."""

MARKS = ("\ue000", "\ue001")
"""Where prompt and response will stand while a chat template is rendered: characters of private use."""


@dataclass(frozen=True)
class Rating:
    """What a model is asked. texts: the rating prompts. words: the grades' own words, lowest first; None = 1, 2, 3, ..."""

    texts: tuple[str, ...]
    words: tuple[str, ...] | None = None

    def grades(self, wanted: int | None) -> tuple[str, ...]:
        """Return what is written for every grade, lowest first. Raises UsageError where the file has another number of them."""
        if self.words is None:
            return tuple(str(grade) for grade in range(1, (wanted or GRADES) + 1))
        if wanted not in (None, len(self.words)):
            raise UsageError(
                f"the rating prompts have {len(self.words)} words for grades ({', '.join(self.words)}), and the option grades "
                f"asks for {wanted}; leave it out or change the words"
            )
        return self.words


def read_prompts(path: str | Path | None = None) -> Rating:
    """Return the rating prompts of a YAML file, or those that this package ships under a name (`rating` is the default).

    A file holds a list of texts, or `prompts`, such a list, and `grades`, a list of 2 to 9 words, lowest first. Raises
    UsageError for a file that cannot be read and for unfit prompts or grades.
    """
    shipped = files("nncift.teachers") / "prompts" / f"{path or 'rating'}.yaml"
    file = shipped if path is None or (str(path).isidentifier() and shipped.is_file()) else Path(path)
    try:
        held = read_yaml(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"the rating prompts {str(path)!r} cannot be read: {first_line(error)}") from error
    words = None
    if isinstance(held, dict):
        if set(held) != {"grades", "prompts"}:
            raise UsageError(
                f"the rating prompts {str(path)!r} must hold grades and prompts, not {', '.join(map(str, held)) or 'nothing'}"
            )
        words, held = _words(held["grades"], path), held["prompts"]
    if not isinstance(held, list) or not held or not all(isinstance(text, str) for text in held):
        raise UsageError(f"the rating prompts {str(path)!r} must be a YAML list of texts, at least one")
    for number, text in enumerate(held, start=1):
        once = text.count("{prompt}") == text.count("{response}") == 1
        if not once or text.index("{prompt}") > text.index("{response}") or text.rstrip().endswith("{response}"):
            raise UsageError(
                f"rating prompt {number} of {str(path)!r} must hold {{prompt}} and then {{response}}, once each, and "
                "end with words that a grade can follow"
            )
    return Rating(tuple(text.strip() for text in held), words)


def _words(held: Any, path: str | Path | None) -> tuple[str, ...]:
    # YAML reads a bare yes or no as true or false.
    texts = isinstance(held, list) and all(isinstance(word, str) and word.strip() for word in held)
    if not texts or not 2 <= len(held) <= 9 or len(set(held)) < len(held):
        raise UsageError(
            f"the grades in the rating prompts {str(path)!r} must be a list of 2 to 9 different words in quotes, lowest "
            f"first, not {held!r}"
        )
    return tuple(word.strip() for word in held)


@dataclass(frozen=True)
class Form:
    """A rating prompt in a model's tokens, around a row's prompt and response.

    head: up to the prompt, the same for all rows. ending: from the response to where the grades part. grades: the
    tokens of every grade from there on, K of them.
    """

    head: Ids
    middle: Ids
    ending: Ids
    grades: tuple[Ids, ...]

    @cached_property
    def branches(self) -> list[Ids]:
        """What is read behind the ending to see every grade's last token predicted: `[()]` for grades of one token.

        Grades of several tokens give the tokens before their last one, unless these begin another branch.
        """
        inner = {grade[:-1] for grade in self.grades}
        return sorted(ids for ids in inner if not any(ids != other and other[: len(ids)] == ids for other in inner))

    @property
    def size(self) -> int:
        """Tokens beside the row's own."""
        return len(self.head) + len(self.middle) + len(self.ending) + max(map(len, self.branches))


def make_form(wording: PromptFormat, tokenizer: Any, text: str, grades: Sequence[str]) -> Form:
    """Put a rating prompt into tokens. Raises UsageError where two grades have the same tokens.

    grades: what is written for each, lowest first; `{best}` and `{worst}` in the text stand for the last and the first.
    Prompt and response are tokenised apart from it, so that its tokens are the same for every row. The tokens that all
    grades begin with (often a lone space) belong to the ending: their probability is common to all and cancels.
    """
    text = text.replace("{best}", grades[-1]).replace("{worst}", grades[0])
    for mark, name in zip(MARKS, ("{prompt}", "{response}"), strict=True):
        text = text.replace(name, mark)
    gap = " "
    if wording.chat:
        text, gap = _as_turn(tokenizer, text), ""
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        raise UsageError("the model's chat template changes the rating prompt; use --template plain")
    head, rest = text.split(MARKS[0])
    middle, ending = rest.split(MARKS[1])
    encode = encoder(tokenizer, special=wording.chat)
    whole = encode([f"{ending}{gap}{grade}" for grade in grades])
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*whole, strict=False)))
    tails = tuple(ids[shared:] for ids in whole)
    unknown = any(tokenizer.unk_token_id in tail for tail in tails) and tokenizer.unk_token_id is not None
    alike = any(a == b[: len(a)] for i, a in enumerate(tails) for j, b in enumerate(tails) if i != j)
    if unknown or alike:
        found = tokenizer.convert_ids_to_tokens(list(whole[0]))[-4:]
        raise UsageError(
            f"this model's tokenizer cannot tell the grades {', '.join(grades)} apart: behind the rating prompt, {grades[0]} "
            f"reads {found}. Use another model, or rating prompts of your own with words for grades that this model knows "
            "(--option rating_prompts=FILE; rating_prompts=demo are those for the demo's model)"
        )
    heads, middles = encode([head, middle])
    return Form((*wording.bos, *heads), middles, whole[0][:shared], tails)


def encoder(tokenizer: Any, *, special: bool) -> Callable[[Sequence[str]], list[Ids]]:
    """Return a function from texts to ids, nothing put around them. special: control tokens in a text are read as such."""

    def encode(texts: Sequence[str]) -> list[Ids]:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not special,
            return_attention_mask=False,
            verbose=False,
        )
        return [tuple(map(int, ids)) for ids in encoded["input_ids"]]

    return encode


def _as_turn(tokenizer: Any, text: str) -> str:
    try:
        rendered = ChatRenderer(tokenizer)([{"role": "user", "content": text}], ask=True)
    except Exception as error:
        # A Jinja template may raise anything.
        raise UsageError(f"the model's chat template refuses a user's turn: {error}; use --template plain") from error
    return rendered.removeprefix(str(tokenizer.bos_token)) if tokenizer.bos_token else rendered
