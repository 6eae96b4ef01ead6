"""Settings are declared once: flags, help, completion, files and docs come from the declarations."""

import shlex
from pathlib import Path

import click
import pytest
import yaml

from nncift.cli.main import COMMANDS, cli
from nncift.cli.settings_pages import commented, page
from nncift.cli.shell import Command, Option
from nncift.config import PARTS, RunSettings, load, resolve
from nncift.core.declaration import declared, own
from nncift.finetune.arms import ARMS
from nncift.finetune.tune_settings import TuneSettings
from nncift.student.networks import NETWORKS
from nncift.teachers.registry import TEACHERS

pytestmark = pytest.mark.usefixtures("hastened")
ROOT = Path(__file__).parents[2]


def command(name: str) -> Command:
    found = cli.get_command(click.Context(cli), name)
    assert isinstance(found, Command)
    return found


def test_what_is_printed_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    settings = resolve(
        {
            "pool": ["a b.jsonl", "ö.jsonl"],
            "labels": "7%",
            "map": {"prompt": "q: #1"},
            "option": {"x": 2e-5},
            "limit": 10,
            "template": "chat",
        }
    )
    path = tmp_path / "settings.yaml"
    path.write_text(commented(settings), encoding="utf-8")
    assert resolve(load(path)) == settings


def test_every_setting_is_there_with_a_comment_above_it() -> None:
    lines = commented(RunSettings()).splitlines()
    for name in RunSettings.model_fields:
        (place,) = [k for k, line in enumerate(lines) if line.startswith((f"{name}:", f"# {name}:"))]
        assert lines[place - 1].startswith("# "), name
        assert "[default" not in lines[place - 1], name
    assert yaml.safe_load("\n".join(lines))["budget"] == "30%"


def test_every_setting_belongs_to_one_part() -> None:
    assert sorted(name for part in PARTS for name in own(part)) == sorted(RunSettings.model_fields)


def test_the_table_of_the_docs_is_made_from_the_declarations() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m nncift.cli.settings_pages > docs/settings.md"


@pytest.mark.parametrize(
    ("settings", "name", "known"),
    [
        (RunSettings, "teacher", set(TEACHERS) - {"column"}),
        (RunSettings, "student", set(NETWORKS)),
        (TuneSettings, "arms", set(ARMS)),
    ],
)
def test_declared_choices_are_those_that_there_are(
    settings: type[RunSettings] | type[TuneSettings], name: str, known: set[str]
) -> None:
    assert set(declared(settings)[name].choices) == known


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_what_its_help_begins_with(name: str) -> None:
    assert COMMANDS[name] == " ".join((command(name).help or "").split("\n\n")[0].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_can_be_typed(name: str) -> None:
    found = command(name)
    words = shlex.split(found.example)
    assert words[:2] == ["nncift", name]
    assert found.make_context(name, words[2:]).params
    assert f"Example: {found.example}" in " ".join(found.get_help(click.Context(found, info_name=name)).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_options_of_every_day_and_all_of_them_on_demand(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command(name)
    shown = found.get_help(click.Context(found, info_name=name))
    with pytest.raises(click.exceptions.Exit):
        found.make_context(name, ["--help-all"])
    every = capsys.readouterr().out
    options = [one for one in found.params if isinstance(one, Option) and not one.hidden]
    assert all(one.opts[0] in every for one in options)
    if not found.everyday:
        assert all(one.opts[0] in shown for one in options)
        return
    assert found.everyday <= {one.name for one in options}
    assert {one.name for one in options if f"  {one.opts[0]} " in shown} == {*found.everyday, "help_all"}
    assert f"Show all {len(options) + 1} options" in shown


def test_run_shows_eight_options() -> None:
    assert len(command("run").everyday) == 8


@pytest.mark.parametrize(
    ("name", "flag", "begun", "expected"),
    [
        ("run", "--teacher", "delift", ["delift", "delift-se"]),
        ("run", "--objective", "f", ["fl", "flmi", "fl2mi", "flcg"]),
        ("run", "--plan", "", ["block", "scatter", "active", "rows"]),
        ("run", "--student", "p", ["product", "paper", "pretrained"]),
        ("run", "--features", "", ["text", "probe"]),
        ("run", "--preset", "", ["auto", "cheap", "paper"]),
        ("run", "--engine", "", ["local", "ray"]),
        ("export", "--to", "", ["same", "trl", "axolotl", "llamafactory", "openai"]),
        ("tune", "--method", "q", ["qlora"]),
    ],
)
def test_choices_complete_in_the_shell(name: str, flag: str, begun: str, expected: list[str]) -> None:
    found = command(name)
    (option,) = [one for one in found.params if flag in one.opts]
    assert [item.value for item in option.shell_complete(click.Context(found), begun)] == expected
