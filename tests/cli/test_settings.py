from pathlib import Path

import click
import yaml

from nncift.cli.main import run_command
from nncift.cli.options import commented
from nncift.config import RunSettings, load, resolve


def text_of(settings: RunSettings) -> str:
    assert isinstance(run_command, click.Command)
    return commented(settings, run_command)


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
    path.write_text(text_of(settings), encoding="utf-8")
    assert resolve(load(path)) == settings


def test_every_setting_is_there_with_a_comment_above_it() -> None:
    lines = text_of(RunSettings()).splitlines()
    for name in RunSettings.model_fields:
        (place,) = [k for k, line in enumerate(lines) if line.startswith((f"{name}:", f"# {name}:"))]
        assert lines[place - 1].startswith("# "), name
        assert "[default" not in lines[place - 1], name
    assert yaml.safe_load("\n".join(lines))["budget"] == "30%"
