"""The rules that keep the package readable (docs/architecture.md): layers, sizes, names, words."""

import ast
import importlib
import pkgutil
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nncift

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nncift"
MODULES = sorted(file for file in SOURCE.rglob("*.py"))
AT_THE_ROOT = {"__init__.py", "__main__.py", "config.py", "errors.py", "pipeline.py", "testing.py"}
PRIVATE = set(
    "told wish wishes ground grounds climb climbs rung rungs hand hands pupil pupils lesson lessons exam exams bench benches "
    "shadow hire hired lent labourer labourers beckon beckons".split()
)
"""Words that earlier names were made of and that no reader of the field knows."""
PHRASES = re.compile(
    r"\b(told apart|wish(es)?|climbs?|rungs?|pupils?|lessons?|exams?|labourers?|hired|beckons?)\b", re.IGNORECASE
)
"""What no docstring, help or error says either."""
LONGEST = 400
"""Lines of a module."""


def dotted(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def identifiers(file: Path) -> Iterator[str]:
    """Yield the names that a module gives: variables, arguments, attributes, functions, classes, modules."""
    yield file.stem
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def words(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def exists(name: str) -> bool:
    """Tell whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            return False
    return True


def test_few_modules_lie_at_the_root() -> None:
    assert {file.name for file in SOURCE.glob("*.py")} <= AT_THE_ROOT


def test_no_two_modules_share_a_name() -> None:
    # Modules of the command line mirror the functions that they call.
    names = Counter(f.stem for f in MODULES if f.stem not in {"__init__", "__main__"} and f.parent.name != "cli")
    assert not [name for name, count in names.items() if count > 1]


def test_no_package_exports_a_function_named_like_one_of_its_modules() -> None:
    for file in MODULES:
        if file.name == "__init__.py" and file.parent != SOURCE:
            inside = {module.name for module in pkgutil.iter_modules([str(file.parent)])}
            given = ast.parse(file.read_text(encoding="utf-8")).body
            imported = {a.asname or a.name for node in given if isinstance(node, ast.ImportFrom) for a in node.names}
            defined = {node.name for node in given if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert not inside & (imported | defined), f"{dotted(file)}: {inside & (imported | defined)}"


def test_modules_are_short() -> None:
    sizes = {dotted(file): len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert not {name: size for name, size in sizes.items() if size > LONGEST}


def test_identifiers_use_the_words_of_the_field() -> None:
    found = {(dotted(file), name) for file in MODULES for name in identifiers(file) if PRIVATE & set(words(name))}
    assert not sorted(found)


def test_sentences_use_the_words_of_the_field() -> None:
    texts = [
        (dotted(file), node.lineno, found.group())
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for found in PHRASES.finditer(node.value)
    ]
    assert not texts


def test_a_private_word_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def hire(wishList: int) -> None:\n    worker.hands = told_before = wishList\n")
    found = {word for name in identifiers(tmp_path / "x.py") for word in PRIVATE & set(words(name))}
    assert found == {"hire", "wish", "hands", "told"}


def test_every_layer_is_a_package_and_every_package_a_layer() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    there = {f"nncift.{module.name}" for module in pkgutil.iter_modules(nncift.__path__)} - {"nncift.__main__"}
    assert layers == there
    picture = (ROOT / "docs" / "layers.svg").read_text(encoding="utf-8")
    shown = [re.split(r" · ", text) for text in re.findall(r'class="ink">([^<]+)<', picture)]
    assert {f"nncift.{name}" for names in shown for name in names} | {"nncift.testing"} == there


def test_every_name_on_the_page_of_the_architecture_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(nncift(?:\.\w+)+)`", page))
    assert len(named) > 30
    assert not sorted(name for name in named if not exists(name))


def test_the_glossary_has_the_words_that_code_must_use() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    known = {word.strip() for row in rows for word in row.split(",")}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    asked = re.search(r"says what each means: (.*?)\.", text, flags=re.DOTALL)
    assert asked
    assert not {" ".join(word.split()) for word in asked.group(1).split(",")} - known - {"budget"}
