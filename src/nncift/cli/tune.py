"""`nncift tune`: whether the selected subset trains as well as what it is set against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import assignment, command, memory_option, offline_option, progress, typed
from nncift.errors import UsageError


@click.command(name="tune")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--test", multiple=True, help="File of rows that judge every arm, seen by none; may be repeated.")
@click.option("--format", help="Of the test files, as in run.  [default: auto]")
@click.option("--map", "map_", multiple=True, metavar="NAME=COLUMN", help="As in run, for the test files.")
@click.option("--limit-test", type=int, help="Test rows: a seeded sample of so many.")
@click.option(
    "--drop-seen", is_flag=True, default=None, help="Leave out test rows that the run has seen, not refuse them."
)
@click.option(
    "--arms",
    help="Of selected, teacher, small-teacher, random, stratified, longest, embedding, rds, full, none, with commas.  "
    "[default: selected,random,longest,embedding,full,none]",
)
@click.option(
    "--budget", multiple=True, help="Select again at this budget; may be repeated.  [default: the run's selection]"
)
@click.option("--small-model", help="The smaller model that labels for the arm small-teacher.")
@click.option("--model", help="The model that is trained.  [default: the run's]")
@click.option("--template", help="chat, plain, or a text file with {prompt} and {response}.  [default: the run's]")
@click.option("--context", type=int, help="Cap on the tokens of a row in training.  [default: the model's]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--method", help="auto, lora, qlora or whole.  [default: auto: whole for small models, else lora]")
@click.option("--qlora", is_flag=True, help="The same as --method qlora.")
@click.option("--equal", help="steps, tokens or both.  [default: both]")
@click.option("--epochs", type=float, help="Passes over the run's selection, which set the measure for all arms.")
@click.option("--steps", type=int, help="The same in optimiser steps.")
@click.option("--learning-rate", type=float, help="Highest learning rate.  [default: by method and size]")
@click.option("--batch", type=int, help="Rows of an optimiser step.  [default: 4]")
@click.option("--rank", type=int, help="Of LoRA's matrices.  [default: 8]")
@click.option("--alpha", type=float, help="LoRA's scale.  [default: 16]")
@click.option("--dropout", type=float, help="LoRA's dropout.  [default: 0.05]")
@click.option("--seeds", type=int, help="Training runs of every arm.  [default: 3]")
@click.option("--seed", type=int, help="The first of them.  [default: 0]")
@click.option(
    "--metrics", help="Of loss, exact, rouge1, rougeL, embedding, choice, judge, with commas.  [default: loss,exact]"
)
@click.option("--questions", help="File of multiple-choice questions, for the metric choice.")
@click.option("--max-new-tokens", type=int, help="Longest answer.  [default: 150]")
@click.option("--in-context", type=int, help="Also judge the untrained model with so many rows of each arm in front.")
@click.option("--judge", multiple=True, metavar="NAME=VALUE", help="An option of the metric judge; may be repeated.")
@click.option("--device", help="auto, cpu, cuda, cuda:0 or mps.  [default: auto]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder; one that exists is continued.  [default: RUN/tune]"
)
@offline_option
@memory_option
@command
def tune_command(
    show: bool, run: Path, qlora: bool, map_: tuple[str, ...], out: Path | None, **flags: Any
) -> dict[str, Any]:
    """Train a model on the rows of RUN's selection and on rival subsets alike, and judge them by rows none has seen."""
    from nncift.finetune.experiment import tune

    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name in ("arms", "metrics"):
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    if map_:
        given["map"] = dict(assignment("--map", item) for item in map_)
    if "judge" in given:
        assigned = [assignment("--judge", item) for item in flags["judge"]]
        given["judge"] = {name: typed(name, value) for name, value in assigned}
    if qlora:
        if given.get("method", "qlora") != "qlora":
            raise UsageError(f"--qlora and --method {given['method']} were given; give one of them")
        given["method"] = "qlora"
    summary = tune(run, given, out, progress(show))
    if show:
        from nncift.cli.display_tune import show_tune

        show_tune(summary, run / "tune" if out is None else out)
    return summary
