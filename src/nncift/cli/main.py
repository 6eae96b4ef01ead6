"""The command line: parses, calls one library function, prints (docs/cli.md)."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from nncift import __version__
from nncift.cli.compare import compare_command
from nncift.cli.evaluate import evaluate_command
from nncift.cli.explain import explain_command
from nncift.cli.export import export_command
from nncift.cli.inspect import inspect_command
from nncift.cli.select import select_command
from nncift.cli.shell import (
    assignment,
    command,
    engine_options,
    memory_option,
    offline_option,
    progress,
    selection_options,
    typed,
)
from nncift.cli.study import study_command
from nncift.cli.tune import tune_command
from nncift.errors import NnciftError, ResourceError, UsageError

MEMORY = "nncift: memory ran out; use --limit, --neighbours, a higher --max-mem, or a machine with more"

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=HELP)
@click.version_option(__version__)
def cli() -> None:
    """Tell which instruction examples are worth training on, by influence learned from a few percent of labels."""


@cli.command(name="run")
@click.argument("pool", nargs=-1, type=str)
@click.option("--target", multiple=True, help="File of examples that show the behaviour wanted; may be repeated.")
@click.option("--existing", multiple=True, help="File of examples that were trained on already; may be repeated.")
@click.option(
    "--against", multiple=True, help="File of test rows that must not be in POOL: exit code 5; may be repeated."
)
@click.option("--decontaminate", is_flag=True, default=None, help="Leave out rows that test rows of --against are in.")
@click.option(
    "--teacher",
    help="delift, delift-se, less, selectit, ifd, loss, rds, length, random, column:NAME.  [default: less]",
)
@click.option(
    "--preset",
    help="What is not given: auto, by evidence; cheap, embeddings alone; paper, as published.  [default: auto]",
)
@click.option("--model", help="The teacher's language model: a local folder, a hub name, a .gguf file, or smollm2.")
@click.option("--encoder", help="minilm, bge-large, lm, hash, a local folder or a hub name.  [default: minilm]")
@click.option(
    "--labels",
    help="Share of each axis (5%), number of pairs (of rows, for a teacher that is paid by the row), or auto: until more bring "
    "nothing.  [default: 5%]",
)
@click.option(
    "--cost",
    help="Cap on labels, probe and embedding, as a share of training on the pool: 10%.  [default: 10% or 3,000 passes]",
)
@click.option("--time", help="The same cap as a time, from timed passes: 30m, 2h, 90s.")
@click.option("--plan", help="scatter, active, block or rows.  [default: what fits the teacher]")
@click.option("--student", help="Network: product, towers or paper.  [default: product]")
@click.option("--recipe", help="How it is trained: default or paper.  [default: default]")
@click.option(
    "--features",
    help="What it reads: text, or probe, one pass of the model per row.  [default: probe where it is cheap]",
)
@click.option("--gate/--no-gate", default=None, help="Use free similarity where it selects better.  [default: gate]")
@click.option("--min-spearman", type=float, help="Stop with exit code 5 below this rank correlation on unseen items.")
@click.option("--min-skill", type=float, help="Stop with exit code 5 below this selection skill on held-out items.")
@click.option("--max-labels", help="How far labels may grow for these, or with --labels auto: 10% or 20000.")
@click.option("--objective", help="fl, flmi, fl2mi, flcg, rr, max, topk or random.  [default: what fits]")
@selection_options
@click.option("--format", help="auto, messages, sharegpt, alpaca or prompt.  [default: auto]")
@click.option(
    "--map", "map_", multiple=True, metavar="NAME=COLUMN", help="Read a field from a column: prompt=question."
)
@click.option("--strict", is_flag=True, default=None, help="Stop at the first unusable row.")
@click.option("--limit", type=int, help="Rows in all: a seeded sample over all files in proportion.")
@click.option("--template", help="chat, plain, or a text file with {prompt} and {response}.")
@click.option("--variant", help="DELIFT's distance: probability or logprob.  [default: probability]")
@click.option("--option", multiple=True, metavar="NAME=VALUE", help="An option of the teacher alone: projection=4096.")
@click.option("--context", type=int, help="Cap on the tokens of one sequence.  [default: the model's]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--load-in", help="4bit or 8bit: quantise the model through bitsandbytes (extra quantised).")
@click.option("--device-map", help="auto: spread the model over all GPUs (extra quantised).")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Allow code that comes with the model.")
@click.option("--device", help="auto, cpu, cuda, cuda:0 or mps.  [default: auto]")
@click.option("--seed", type=int, help="One seed for everything.  [default: 0]")
@click.option("--config", "config_", type=click.Path(path_type=Path), help="Settings file (YAML); flags override it.")
@click.option("--print-config", is_flag=True, help="Print all settings as commented YAML for --config, and stop.")
@click.option("--dry-run", is_flag=True, help="Say what the run would cost, from a few timed pairs, and stop.")
@engine_options
@click.option(
    "--shard", metavar="I/K", help="Do part I of K of a run's work, beside others; then run without, which selects."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; one that exists is continued or extended.")
@offline_option
@memory_option
@command
def run_command(
    show: bool,
    config_: Path | None,
    print_config: bool,
    dry_run: bool,
    shard: str | None,
    engine: str,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    out: Path | None,
    map_: tuple[str, ...],
    **flags: Any,
) -> dict[str, Any]:
    """Select rows of POOL files that are worth training on."""
    from nncift import config

    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if map_:
        given["map"] = dict(assignment("--map", item) for item in map_)
    if given.get("option"):
        assigned = [assignment("--option", item) for item in flags["option"]]
        given["option"] = {name: typed(name, value) for name, value in assigned}
    settings = config.resolve(given, config_)
    if print_config:
        from nncift.cli.options import commented

        if show:
            click.echo(commented(settings, run_command), nl=False)
        return settings.model_dump(mode="json")
    if out is None and not dry_run:
        raise UsageError("--out DIR is missing: a run needs a directory of its own")
    from nncift import pipeline
    from nncift.core.parallel import Incomplete
    from nncift.distributed.start import executor_of
    from nncift.stages.request import Request

    executor = executor_of(engine, shard, address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    if dry_run:
        from nncift.stages.estimate import estimate

        result = estimate(Request.resolve(settings))
        if show:
            from nncift.cli.display import show_estimate

            show_estimate(result)
        return result
    request = Request.resolve(settings, out=out)
    try:
        run = pipeline.execute(request, Path(str(out)), progress=progress(show), executor=executor)
    except Incomplete as part:
        if show:
            from nncift.cli.display_shard import show_shard

            show_shard(part.report)
        return dict(part.report)
    if show:
        from nncift.cli.display import show_run

        show_run(run)
    return dict(run.summary)


@cli.command(name="score")
@click.argument("new", nargs=-1, required=True, type=str)
@click.option("--run", "run_", required=True, type=click.Path(path_type=Path), help="Directory of a finished run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write.")
@click.option("--format", "format_", default="auto", help="As in run.")
@click.option("--map", "map_", multiple=True, metavar="NAME=COLUMN", help="As in run.")
@click.option("--limit", type=int, help="As in run.")
@click.option("--device", default="auto", help="Device of the encoder.")
@offline_option
@memory_option
@command
def score_command(
    show: bool,
    new: tuple[str, ...],
    run_: Path,
    out: Path,
    format_: str,
    map_: tuple[str, ...],
    limit: int | None,
    device: str,
) -> dict[str, Any]:
    """Score NEW rows with a finished run's student; no language model is loaded."""
    from nncift.data import read
    from nncift.stages.finish import score_file

    pool = read(*new, format=format_, map=dict(assignment("--map", item) for item in map_), limit=limit)
    result = score_file(pool, run_, out, device=device).to_json()
    if show:
        from nncift.cli.display import show_scores

        show_scores(result)
    return result


@cli.command(name="demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
@click.option("--rows", type=click.IntRange(min=50), default=200, show_default=True, help="Rows of the world.")
@click.option("--labels", default="20%", show_default=True, help="As in run.")
@click.option("--budget", default="10%", show_default=True, help="As in run.")
@click.option("--encoder", default="hash", show_default=True, help="As in run.")
@click.option("--seed", type=int, default=0, show_default=True, help="One seed for world and run.")
@command
def demo_command(show: bool, out: Path, **settings: Any) -> dict[str, Any]:
    """Watch the whole idea on a generated world where the truth is known."""
    from nncift.demo.play import play

    result = play(out, progress=progress(show), **settings)
    if show:
        from nncift.cli.display import show_demo

        show_demo(result, out)
    return result


@cli.command(name="doctor")
@command
def doctor_command(show: bool) -> dict[str, Any]:
    """Show versions, devices, memory and missing extras."""
    from nncift.models.environment import examine

    result = examine()
    if show:
        from nncift.cli.display import show_doctor

        show_doctor(result)
    return result


for further in (
    compare_command,
    evaluate_command,
    explain_command,
    export_command,
    inspect_command,
    select_command,
    study_command,
    tune_command,
):
    cli.add_command(further)


def main() -> None:
    """Run the command line; every way to fail has its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _say("interrupted; the same command goes on where it was", 130)
    except KeyboardInterrupt:
        code = _say("interrupted; the same command goes on where it was", 130)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except NnciftError as error:
        code = _say(f"nncift: {error}", error.exit_code)
    except MemoryError:
        code = _say(MEMORY, ResourceError.exit_code)
    except OSError as error:
        code = _say(f"nncift: {error}", ResourceError.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort turns any defect into exit code 1
        if type(error).__name__ == "OutOfMemoryError":
            # torch's; its class cannot be named without loading torch.
            sys.exit(
                _say(
                    "nncift: the device's memory ran out; use --device cpu, or a device with more",
                    ResourceError.exit_code,
                )
            )
        traceback.print_exc()
        code = _say("nncift: this is a defect of nncift; please report it with the lines above and the command", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code
