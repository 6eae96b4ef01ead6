"""Rendering of chat templates, which come with models and are programs of strangers, within a bound of work.

Jinja's sandbox, as transformers sets it up, bounds neither time nor memory. Here every turn of a loop, call, filter and operation
that makes or reads a text is counted before it is done, and a rendering ends in an error at a limit that follows from what it is
given. No clock is asked, so a template that is refused is refused everywhere.
"""

from __future__ import annotations

import functools
import re
import string
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from nncift.errors import DataError, ResourceError

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from transformers import PreTrainedTokenizerBase

MOST_SOURCE = 1 << 18
"""Characters of a template; those of models have up to some ten thousand."""

BASE, PER_TURN, PER_CHARACTER = 500_000, 20_000, 64
"""Work that a rendering may take: in all, for each turn, and for each character of the turns. Those of models take 1 to 8 %."""

MOST_REFUSALS = 20
"""Conversations that may take too much work, each set aside; a template that goes on so is given up."""

STEP, ITEM = 10, 3
"""Work of a turn of a loop or of a call, and of an item that is looked at; a character that is made counts 1, one read 1/16."""

MOST_BITS, MOST_WIDTH = 10_000, 1000
"""Of whole numbers that are multiplied, and of the width of a field in a format."""

_BUDGET: ContextVar[Budget] = ContextVar("budget")
_STEP_FILTER, _READ_FILTER, _TEXT_FILTER, _MADE_FILTER = "nncift step", "nncift read", "nncift text", "nncift made"
_ITEMS: Any = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))")
_WIDTH, _NESTED_KEY = re.compile(r"\d{4,}|[*{]"), re.compile(r"%\([^)]*\(")

_OF_SIZE_OF_INPUT = frozenset(
    "strip lstrip rstrip split rsplit splitlines startswith endswith lower upper title capitalize casefold swapcase find rfind "
    "index rindex count partition rpartition removeprefix removesuffix encode decode isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper get items keys values copy".split()
)
"""Methods whose result is never larger than what they are given."""

_LOOKS_AT_NOTHING = frozenset(
    "length count first last default d list map select reject selectattr rejectattr items attr reverse random".split()
)
"""Filters that look at no more than the outermost of a value, or hand on item by item."""

_OF_SIZE_OF_VALUE = _LOOKS_AT_NOTHING | frozenset(
    "abs capitalize dictsort e escape float forceescape groupby int lower max min pprint safe sort string striptags title trim "
    "unique upper urlencode wordcount filesizeformat tojson".split()
)
"""Filters whose result grows with their value alone, whatever their other arguments."""

_FREE_TESTS = frozenset(
    "defined undefined none boolean false true integer float string mapping number sequence iterable callable sameas".split()
)


class TooMuchWorkError(DataError):
    """A chat template takes more work than a rendering may."""


class Budget:
    """Work that is left of a rendering."""

    def __init__(self, given: int) -> None:
        self.given = self.left = given

    def spend(self, work: int) -> None:
        """Take work off. Raises TooMuchWorkError where less is left."""
        self.left -= work
        if self.left < 0:
            raise TooMuchWorkError(
                f"it takes more than {self.given:,} characters and steps, which no template of a model needs for such turns"
            )


class ChatRenderer:
    """Renders conversations as `tokenizer.apply_chat_template` does, within a bound of work. template: None = its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = str(tokenizer.get_chat_template(template))
        self._refusals = 0

    def __call__(self, turns: Sequence[Mapping[str, str]], *, ask: bool = False) -> str:
        """Return the text of turns, each with `role` and `content`; ask: with what stands before a response that is due.

        Raises TooMuchWorkError, ResourceError where that has come too often, and whatever the template raises.
        """
        try:
            return self._rendered(turns, ask)
        except TooMuchWorkError as error:
            self._refusals += 1
            if self._refusals > MOST_REFUSALS:
                raise ResourceError(
                    f"the model's chat template is given up after {MOST_REFUSALS} conversations: {error}. Use --template plain, "
                    "or a model with a template that you trust"
                ) from error
            raise

    def _rendered(self, turns: Sequence[Mapping[str, str]], ask: bool) -> str:
        characters = sum(len(text) for turn in turns for text in turn.values())
        per_turn = PER_TURN + 2 * len(self._source)
        token = _BUDGET.set(Budget(BASE + per_turn * (len(turns) + 1) + PER_CHARACTER * characters))
        try:
            said = [dict(turn) for turn in turns]
            if self._template is None:
                return str(self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=ask))
            given = {"messages": said, "tools": None, "documents": None, "add_generation_prompt": ask}
            return self._template.render({**self._tokenizer.special_tokens_map, **given})
        finally:
            _BUDGET.reset(token)

    @cached_property
    def _template(self) -> Template | None:
        """The compiled template; None where the tokenizer renders by code of its own, which is no template's."""
        from transformers import PreTrainedTokenizerBase

        if type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
            return None
        return _compiled(self._source)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    if len(source) > MOST_SOURCE:
        raise TooMuchWorkError(f"it has {len(source):,} characters; the most is {MOST_SOURCE:,}")
    return _environment().from_string(_Counting().visit(_environment().parse(source)))


@functools.cache
def _environment() -> _BoundedEnvironment:
    """Return the environment that transformers renders in, with every filter, test and output counted."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs: Environment = _compile_jinja_template("").environment
    ours = _BoundedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
        optimized=False,  # nothing is computed when a template is compiled: all is counted when it is rendered
        finalize=_finalize,
    )
    ours.globals.update(theirs.globals)
    for name, filter_ in theirs.filters.items():
        ours.filters[name] = _counted_filter(name, filter_)
    tests: dict[str, Any] = theirs.tests
    ours.tests.update({name: _counted_test(tests[name]) for name in tests.keys() - _FREE_TESTS})
    ours.filters |= {_STEP_FILTER: _step, _READ_FILTER: _read, _TEXT_FILTER: _text, _MADE_FILTER: _made}
    return ours


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts calls and operators before they are done."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(STEP)
        if operator in ("*", "**"):
            _check_product(operator, left, right, budget)
        elif operator == "%" and isinstance(left, str):
            _check_percents(left, budget)
            budget.spend((1 + left.count("%")) * weight(right, budget))
        elif operator == "+" and not isinstance(left, int | float):
            budget.spend(_made_size(left) + _made_size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        budget = _BUDGET.get()
        budget.spend(STEP)
        method = getattr(__obj, "__wrapped__", __obj)
        if isinstance(method, types.BuiltinMethodType) and not isinstance(method.__self__, types.ModuleType | None):
            args = _checked_method(method, args, kwargs, budget)
        elif getattr(__obj, "__name__", "") == "generate_lorem_ipsum":
            budget.spend(_product("", args, kwargs, budget))
        return _made(super().call(__context, __obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Puts counting into a template: turns of loops and macros, literal text, what is joined, compared and cut."""

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802 - as Jinja calls it
        self.generic_visit(node)
        literal = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        return [_counter(literal, node.lineno), node] if literal else [node]

    def visit_For(self, node: Any) -> Any:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _counter(0, node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(child, _TEXT_FILTER) for child in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE_FILTER) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        searched = any(operand.op in ("in", "notin") for operand in node.ops)
        if not searched and any(isinstance(side, nodes.Const) for side in sides):
            return node  # what is compared with a literal is looked at no further than that
        node.expr = _filtered(node.expr, _READ_FILTER)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _READ_FILTER)
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counter(work: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_filtered(nodes.Const(work, lineno=line), _STEP_FILTER), lineno=line)


def _step(work: Any) -> None:
    # Templates can name filters by text: none gives work back.
    _BUDGET.get().spend(STEP + (work if isinstance(work, int) and work > 0 else 0))


def _read(value: Any) -> Any:
    """Count what a comparison looks at."""
    budget = _BUDGET.get()
    budget.spend(STEP + _read_size(value, budget))
    return value


def _text(value: Any) -> Any:
    """Count what becomes text."""
    budget = _BUDGET.get()
    budget.spend(len(value) if isinstance(value, str) else weight(value, budget))
    return value


@pass_context
def _finalize(context: Any, value: Any) -> Any:
    # A context is asked for, or literals would be taken into the compiled template uncounted.
    return _text(value)


def _made(value: Any) -> Any:
    """Count a value that was made; what is made item by item is counted so."""
    if isinstance(value, types.GeneratorType):
        return _counted_items(value)
    if size := _made_size(value):
        _BUDGET.get().spend(size)
    return value


def _made_size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def _counted_items(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        _BUDGET.get().spend(STEP + _made_size(item))
        yield item


def _read_size(value: Any, budget: Budget) -> int:
    return len(value) >> 4 if isinstance(value, str | bytes) else weight(value, budget)


def weight(value: Any, budget: Budget) -> int:
    """Return about how many characters a value has as text, with all that is inside; more than is left ends the count.

    Raises TooMuchWorkError for what may hold itself.
    """
    total, stack = 0, [value]
    while stack and total <= budget.left:
        one = stack.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, _ITEMS):
            stack += one
        elif isinstance(one, int):
            total += one.bit_length() // 3
        elif type(one).__name__.endswith("Namespace"):
            raise TooMuchWorkError("it writes or compares a namespace as a whole, which may hold itself")
        total += ITEM
    return total


def _product(value: Any, args: Sequence[Any], kwargs: Mapping[str, Any], budget: Budget) -> int:
    """Return a bound of what a function makes of a value that repeats, fills up or puts in: arguments count as numbers."""
    found = 1 + weight(value, budget)
    for value in (*args, *kwargs.values()):
        found *= 1 + (abs(value) if isinstance(value, int) else weight(value, budget))
        if found > budget.left:
            break
    return found


def _check_product(operator: str, left: Any, right: Any, budget: Budget) -> None:
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            budget.spend(max(0, times) * max(1, _made_size(one)))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            raise TooMuchWorkError(f"it computes a whole number of more than {MOST_BITS:,} bits")


def _check_percents(template: str, budget: Budget) -> None:
    """Raise TooMuchWorkError for a format by `%` with a field of great or unknown width."""
    _check_width(template, (_WIDTH if _NESTED_KEY.search(template) else _PERCENT_WIDTH).search(template))
    budget.spend(len(template) + MOST_WIDTH * len(re.findall(r"\d\d", template)))


def _check_width(template: str, found: re.Match[str] | None) -> None:
    if found is not None:
        raise TooMuchWorkError(f"it formats {template[:40]!r}, with a width from {MOST_WIDTH:,} on or of a value")


def _checked_method(
    method: types.BuiltinMethodType, args: tuple[Any, ...], kwargs: Mapping[str, Any], budget: Budget
) -> tuple[Any, ...]:
    """Count what a method of a text, list or number will do; return its arguments, with items counted."""
    me, name = method.__self__, method.__name__
    if name == "join" and len(args) == 1 and not isinstance(args[0], str):
        parts = list(args[0])
        budget.spend(weight(parts, budget) + len(me) * len(parts))  # type: ignore[arg-type]
        return (parts,)
    if name == "replace" and isinstance(me, str) and len(args) >= 2 and all(isinstance(one, str) for one in args[:2]):
        budget.spend(len(me) + me.count(args[0]) * len(args[1]))
    elif name in ("format", "format_map") and isinstance(me, str):
        fields = [found for found in string.Formatter().parse(me) if found[1] is not None]
        _check_width(me, _WIDTH.search(" ".join(str(found[2]) for found in fields)))
        budget.spend(len(me) + len(fields) * (MOST_WIDTH + weight((*args, *kwargs.values()), budget)))
    elif name in _OF_SIZE_OF_INPUT:
        budget.spend(sum(_read_size(one, budget) for one in (me, *args, *kwargs.values()) if not isinstance(one, dict)))
    else:
        budget.spend(_product(me, args, kwargs, budget))
    return args


def _counted_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @functools.wraps(filter_)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(STEP)
        value, others = args[first], args[first + 1 :]
        if name == "join":
            value = list(value)
            between = weight(others[0] if others else kwargs.get("d", ""), budget)
            budget.spend(weight(value, budget) + len(value) * between)
        elif name == "replace" and len(others) >= 2:
            old, new = str(others[0]), str(others[1])
            budget.spend(weight(value, budget) + str(value).count(old) * len(new))
        elif name == "format":
            _check_percents(str(value), budget)
            budget.spend((1 + str(value).count("%")) * weight((*others, *kwargs.values()), budget))
        elif name not in _OF_SIZE_OF_VALUE or (name == "tojson" and (others or kwargs)):
            budget.spend(_product(value, others, kwargs, budget))
        elif name not in _LOOKS_AT_NOTHING:
            budget.spend(_read_size(value, budget))
        return _made(filter_(*args[:first], value, *others, **kwargs))

    return counted


def _counted_test(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(STEP + sum(_read_size(one, budget) for one in (*args, *kwargs.values())))
        return test(*args, **kwargs)

    return counted
