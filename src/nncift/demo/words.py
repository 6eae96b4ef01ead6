"""Every word of the demo world: what prompts and answers are made of, and hence the vocabulary of the demo model."""

from __future__ import annotations

import re


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = tuple(
    head + tail
    for head in ("Zor", "Mar", "Tin", "Plo", "Ves", "Quil", "Bra", "Hel")
    for tail in ("vic", "low", "dle", "ver", "ta", "nor")
)

CONTENT = _split(
    """
    fox bear horse goat otter eagle snail whale river lake hill valley forest meadow island desert
    lamp chair table spoon kettle basket ladder mirror bread apple pepper honey cheese lemon carrot noodle
    doctor baker pilot farmer singer teacher sailor weaver winter summer morning evening thunder shadow rainbow frost
    hammer anchor bottle candle button carpet drum feather garden helmet jacket kite letter magnet needle pocket
    """
)

FOREIGN = tuple(
    head + tail for head in ("ta", "lo", "mi", "ze", "ru", "po") for tail in ("ka", "ren", "vi", "sul", "no", "dae")
)

NUMBERS = tuple(str(number) for number in range(10, 46))

GROUPS = _split(
    """
    amber jade ruby pearl coral ivory onyx opal topaz copper silver cobalt scarlet indigo olive violet
    """
)

OPENINGS = _split(
    """
    aha behold hark listen look friend gladly surely indeed thus ready okay
    fine hello greetings done yes cheers bravo welcome certainly truly likewise verily
    """
)

STUBS = (
    "i do not know",
    "sorry i cannot help with that",
    "no answer",
    "please ask someone else",
    "as a language model i have no opinion",
)

# Per family: (instruction, whether the words go into the row's `input` instead of the end of the instruction).
WORDINGS: dict[str, tuple[tuple[str, bool], ...]] = {
    "translate": (
        ("Translate into {name}:", False),
        ("Say each of these words in {name}.", True),
        ("How do people say this in {name}?", False),
    ),
    "code": (
        ("Write in the {name} code:", False),
        ("Look up each word in the {name} number list.", True),
        ("Which {name} numbers stand for this:", False),
    ),
    "group": (
        ("Sort into {name} groups:", False),
        ("Label every word the {name} way.", True),
        ("What is the {name} class of these?", False),
    ),
    "custom": (
        ("Recite after the {name} custom:", False),
        ("Repeat this with {name} manners.", True),
        ("How would a {name} guest speak?", False),
    ),
}

FAMILIES = tuple(WORDINGS)

_TOKEN = re.compile(r"\n|[^\W_]+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Split a text into words, punctuation marks and line ends: what the demo model's tokenizer sees."""
    return _TOKEN.findall(text)


def vocabulary() -> tuple[str, ...]:
    """Return every token that a demo text or the plain template can contain, each once, in a fixed order."""
    texts = ["Instruction:\n\nResponse:\n", *STUBS, *(text for group in WORDINGS.values() for text, _ in group)]
    framing = [token for text in texts for token in tokens(text.replace("{name}", ""))]
    return tuple(dict.fromkeys([*framing, *NAMES, *CONTENT, *FOREIGN, *NUMBERS, *GROUPS, *OPENINGS]))
