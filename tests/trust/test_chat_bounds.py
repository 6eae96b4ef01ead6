"""Chat templates are programs of strangers: their rendering is bounded in work and in size, and that of models is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nncift.data import chat_rendering
from nncift.data.chat_rendering import ChatRenderer, TooMuchWorkError
from nncift.data.examples import Message
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.chat_template import ChatTemplate
from nncift.models.prompt_format import PromptFormat

TURNS = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def tokenizer(llama_folder: Path) -> Any:
    """Return a tokenizer whose chat template a test may set."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_folder)


LOOP = "{% for a in range(99999) %}"
DOUBLED = "{% set n = namespace(x='ab', l=[1]) %}" + LOOP
HOSTILE = {
    "nested loops": LOOP * 3 + "{% set x = 1 %}" + "{% endfor %}" * 3,
    "a loop that writes much": LOOP + "x" * 5000 + "{% endfor %}",
    "a loop in a set block": "{% set x %}" + LOOP + "x" * 5000 + "{% endfor %}{% endset %}",
    "a literal in a loop": LOOP + "{{ '" + "x" * 5000 + "' }}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{% set a = m(n-1) %}{% set a = m(n-1) %}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "repeated text": "{{ 'x' * 10**9 }}",
    "repeated text, turned round": "{% set x = 10**9 * 'x' %}",
    "a repeated list": "{% set x = [0] * 10**9 %}",
    "doubled text": DOUBLED + "{% set n.x = n.x + n.x %}{% endfor %}",
    "joined text": DOUBLED + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a doubled list": DOUBLED + "{% set n.l = n.l + n.l %}{% endfor %}",
    "a list of lists as text": DOUBLED + "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
    "a list of lists as JSON": "{% set n = namespace(l=[1]) %}{% for a in range(50) %}{% set n.l = [n.l, n.l] %}{% endfor %}"
    "{{ n.l | tojson }}",
    "lists of lists that are compared": "{% set n = namespace(l=[1], m=[1]) %}{% for a in range(50) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l == n.m }}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.x = [n, n] %}{{ n }}",
    "a great power": "{{ 10 ** (10 ** 8) }}",
    "a great product": "{% set n = namespace(x=3) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}",
    "center": "{{ 'x' | center(10**9) }}",
    "str.center": "{{ 'x'.center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(10**9) }}",
    "replace": "{% set x = 'x' * 9999 %}{{ x.replace('x', x).replace('x', x) }}",
    "replace, filter": "{% set x = 'x' * 9999 %}{{ x | replace('x', x) | replace('x', x) }}",
    "join": "{{ (['x'] * 9999) | join('x' * 9999) }}",
    "str.join": "{{ ('x' * 9999).join(['x'] * 9999) }}",
    "str.join of a generator": "{{ ('x' * 9999).join(range(9999) | map('string')) }}",
    "translate": "{{ ('x' * 9999).translate({120: 'y' * 9999}) }}",
    "a width in %": "{{ '%999999999d' % 1 }}",
    "a width of a value in %": "{{ '%*d' % (999999999, 1) }}",
    "a width behind a key in brackets": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "many widths in %": "{% set x = '%999d' * 9999 %}{{ x % ([1] * 9999) }}",
    "many values in %": "{{ ('%(a)s' * 9999) % {'a': 'x' * 9999} }}",
    "format, filter": "{{ '%999999999d' | format(1) }}",
    "str.format": "{{ '{:999999999}'.format(1) }}",
    "str.format of a value": "{{ '{:{}}'.format(1, 999999999) }}",
    "str.format, many fields": "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "str.format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "indent": "{{ ('x\n' * 9999) | indent(9999) }}",
    "tojson with indent": "{{ ([1] * 9999) | tojson(indent=9999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "wordwrap": "{{ ('x ' * 9999) | wordwrap(1, wrapstring='y' * 9999) }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "lorem ipsum": "{{ lipsum(10**6) }}",
    "to_bytes": "{{ (1).to_bytes(10**9) }}",
    "slices": "{% set x = 'x' * 99999 %}" + LOOP + "{% set y = x[1:] %}{% endfor %}",
    "searched again and again": "{% set x = 'x' * 99999 %}" + LOOP + "{% set y = 'ab' in x %}{% endfor %}",
    "lists that are searched": "{% set x = range(99999) | list %}" + LOOP + "{% set y = 'a' in x %}{% endfor %}",
    "mapped generators": "{{ range(99999) | map('center', 9999) | list | length }}",
    "the counter, by name": "{% set x = [-10**9] | map('nncift step') | list %}"
    + LOOP * 2
    + "{% endfor %}{% endfor %}",
    "very long": "x" * (chat_rendering.MOST_SOURCE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_rendering_ends_within_its_bound(tokenizer: Any, name: str) -> None:
    with pytest.raises(TooMuchWorkError, match=r"it (takes|computes|formats|writes|has)"):
        ChatRenderer(tokenizer, HOSTILE[name])(TURNS)


CONVERSATIONS = (
    TURNS,
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2"},
        {"role": "user", "content": "Thanks & <b>bye</b>"},
    ],
    [{"role": ("user", "assistant")[at % 2], "content": f"{at} " * 100} for at in range(9)],
)


def _templates() -> list[Path]:
    trl = pytest.importorskip("trl")
    found = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    return [path for path in found if not path.stem.endswith("_training")]


def _theirs(tokenizer: Any, source: str, turns: list[dict[str, str]], ask: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False, add_generation_prompt=ask)
        )
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        return f"{type(error).__name__}: {error}"


def _ours(tokenizer: Any, source: str, turns: list[dict[str, str]], ask: bool) -> str:
    try:
        return ChatRenderer(tokenizer, source)(turns, ask=ask)
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        return f"{type(error).__name__}: {error}"


def test_templates_of_models_render_as_transformers_renders_them(tokenizer: Any) -> None:
    found = 0
    for path in _templates():
        source = path.read_text(encoding="utf-8")
        for turns in CONVERSATIONS:
            for ask in (False, True):
                wanted = _theirs(tokenizer, source, turns, ask)
                assert _ours(tokenizer, source, turns, ask) == wanted, path.name
                found += "Error: " not in wanted[:30]
    assert found > 100


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ '%-10s|' % m.role }}{{ '{:>8}'.format(m.content) }}{% endfor %}",
        "{{ messages | map(attribute='content') | join(', ') | indent(2) | upper }}{{ bos_token }}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content[1:] | center(40) }}{% endfor %}",
        "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + m.content | length %}{% endfor %}{{ n.k * 2 }}",
        "{{ messages | tojson(indent=2) }}{{ (messages | batch(2) | list)[0] }}{{ '-' * 40 }}{{ 1.26 | round(1) }}",
        "{% macro m(t) %}{{ caller(t) }}{% endmacro %}{% call(t) m(3) %}{{ t }}{% endcall %}{{ messages == [] }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}"
        "{% endfor %}",
        "{{ 'a' in messages[0].content }}{{ none }}{{ nothing }}{{ [1, 'x'] }}{{ {'a': 1} }}{{ (1, 2) ~ 'x' ~ 3 }}",
        "{{ '**%s** of 123456 * %s' % ('a', 'b') }}{{ '%(a)s 20240726' % {'a': 1} }}{{ '{} * {{}} 12345'.format('a') }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content.__class__ }}",
        "{% for %}",
    ],
)
def test_everything_else_is_as_in_transformers(tokenizer: Any, source: str) -> None:
    for turns in CONVERSATIONS:
        assert _ours(tokenizer, source, turns, False) == _theirs(tokenizer, source, turns, False)


def test_a_hostile_template_of_a_model_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = HOSTILE["nested loops"]
    with pytest.raises(UsageError, match=r"takes more than .* use --template plain"):
        PromptFormat(tokenizer)
    assert PromptFormat(tokenizer, "plain").chat is False


def test_one_that_waits_for_rows_is_given_up(tokenizer: Any) -> None:
    trap = "{% if 'trap' in messages[0].content %}" + HOSTILE["repeated text"] + "{% endif %}"
    tokenizer.chat_template = trap + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template = ChatTemplate(tokenizer)
    assert template.alone([Message("user", "Hi")], "Yes").prompt
    for _ in range(chat_rendering.MOST_REFUSALS):
        with pytest.raises(DataError, match="refuses these turns: it takes more than"):
            template.alone([Message("user", "a trap")], "Yes")
    with pytest.raises(ResourceError, match="given up after 20 conversations"):
        template.alone([Message("user", "a trap")], "Yes")
