"""`nncift study`: run every analysis of a study, and write its records, tables and figures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject
from nncift.core.texts import parsed_file
from nncift.errors import DataError, NnciftError, UsageError
from nncift.models.encoders import check_encoder_is_local
from nncift.models.environment import examine
from nncift.models.loading import check_is_local
from nncift.runs.report.report_tables import as_csv
from nncift.storage.atomic import write_json, write_text
from nncift.storage.outputs import check_replaces_nothing
from nncift.studies.analyses import CONFIGURATIONS, bad_data, layers, sweep, tune_arms
from nncift.studies.grid import PRESETS, Analysis, Study, check, load, rehearsed
from nncift.studies.lds_analysis import retrain_arms, retrain_page
from nncift.studies.study_report import Page, bad_data_page, layers_page, sweep_page, tune_page
from nncift.studies.workspace import DEMO, Workspace, prepare

Records = list[JsonObject]
KINDS: Mapping[str, tuple[Callable[[Workspace, Analysis, range], Records], Callable[[Analysis, Records], Page]]] = {
    "sweep": (sweep, sweep_page),
    "layers": (layers, layers_page),
    "tune": (tune_arms, tune_page),
    "bad-data": (bad_data, bad_data_page),
    "retrain": (retrain_arms, retrain_page),
}


SET = "write a name such as $model in its place, and give --set model=NAME"


def preset(name: str) -> Path:
    """Return the file of a preset. Raises UsageError for one that there is not."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in PRESETS.glob("*.yaml")))
        raise UsageError(f"there is no preset {name!r}; there are {known}")
    return path


def plan(study: Study) -> JsonObject:
    """Return what a study would compute: cells of every analysis, and what is left out."""
    return {
        "study": study.grid.name,
        "analyses": {
            analysis.name: {
                "kind": analysis.kind,
                "pool": analysis.pool,
                "seeds": len(study.seeds(analysis)),
                "runs": analysis.runs * len(study.seeds(analysis)),
                **({"networks": len(CONFIGURATIONS)} if analysis.kind == "layers" else {}),
            }
            for analysis in study.grid.analyses
        },
        "left_out": dict(study.left_out),
    }


def study(
    path: Path,
    out: Path,
    *,
    given: Mapping[str, list[str]] | None = None,
    only: Collection[str] = (),
    rehearse: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> JsonObject:
    """Run a study, or some of its analyses, and write `study.json` and for each analysis `NAME.json`, `.csv`, `.md` and figures.

    What is finished in `out` is not computed again. given: see `grid.load`. rehearse: all of it over so many rows alone (see
    `grid.rehearsed`). Where an analysis fails the others are run, and then the first one's error is raised, naming
    all. Raises the errors of `nncift.errors`.
    """
    found = load(path, given or {})
    if rehearse is not None:
        found = rehearsed(found, rehearse)
    names = [analysis.name for analysis in found.grid.analyses]
    if unknown := sorted(set(only) - set(names) - set(found.left_out)):
        raise UsageError(f"--only {unknown[0]}: the study has no such analysis; it has {', '.join(names)}")
    if lacking := sorted(set(only) & set(found.left_out)):
        raise UsageError(f"--only {lacking[0]}: {found.left_out[lacking[0]]}")
    wanted = [analysis for analysis in found.grid.analyses if not only or analysis.name in only]
    _check_is_local(f"the study {path.name}", found, wanted, given or {})
    _check_outputs(path, out, found)
    out.mkdir(parents=True, exist_ok=True)
    pools = {
        name: prepare(name, found.grid.pools[name], out / "pools" / name)
        for name in dict.fromkeys(analysis.pool for analysis in wanted)
    }
    workspace = Workspace(out, pools, device, progress)
    # What was found before stays in the summary.
    record = _recorded_before(out, names)
    failed: dict[str, NnciftError] = {}
    for analysis in wanted:
        began = time.perf_counter()
        compute, describe = KINDS[analysis.kind]
        try:
            records = compute(workspace, analysis, found.seeds(analysis))
        except NnciftError as error:
            # What one analysis lacks is no reason to lose the night for the others.
            failed[analysis.name] = error
            continue
        page = describe(analysis, records)
        record[analysis.name] = _write(out, analysis, records, page, time.perf_counter() - began)
    summary: JsonObject = {
        "study": found.grid.name,
        "analyses": record,
        "left_out": dict(found.left_out),
        "machine": examine().to_json(),
    }
    if rehearse is not None:
        summary["rehearsal"] = rehearse
    if failed:
        summary["failed"] = {name: str(error) for name, error in failed.items()}
    write_json(out / "study.json", summary)
    if failed:
        said = "; ".join(f"{name}: {error}" for name, error in failed.items())
        rest = f"the other {len(wanted) - len(failed)} are in {out}" if len(failed) < len(wanted) else "none is done"
        raise type(next(iter(failed.values())))(f"{len(failed)} of {len(wanted)} analyses failed, {rest}. {said}")
    return summary


def _check_is_local(by: str, study: Study, wanted: Sequence[Analysis], given: Mapping[str, list[str]]) -> None:
    """Raise UsageError where analyses need a model or an encoder that the file names, nobody typed, and is not at hand."""
    typed = {DEMO, *itertools.chain.from_iterable(given.values())}
    for analysis in wanted:
        pool = study.grid.pools[analysis.pool]
        judge = analysis.options.get("judge")
        judge = judge if isinstance(judge, Mapping) and "base_url" not in judge else {}
        for name in {pool.model, pool.small_model, analysis.options.get("model"), judge.get("model")} - {None, *typed}:
            check_is_local(str(name), by, yes=SET)
        for chosen in analysis.combinations():
            if (encoder := check(analysis, chosen.settings).encoder) not in typed:
                check_encoder_is_local(encoder, by, yes=SET)


def _check_outputs(path: Path, out: Path, study: Study) -> None:
    """Raise UsageError where what a study writes would take the place of what it reads."""
    inputs = [path]
    for pool in study.grid.pools.values():
        inputs += [Path(name) for name in (*pool.files, *([pool.test] if pool.test else []))]
    for name in [
        "study.json",
        *(f"{one.name}.{kind}" for one in study.grid.analyses for kind in ("json", "csv", "md")),
    ]:
        check_replaces_nothing(out / name, inputs)


def write_page(out: Path, analysis: Analysis, page: Page, note: str = "") -> None:
    """Write an analysis's page and figures into a folder."""
    pictures = "".join(f"\n![{analysis.name}]({name})\n" for name in page.figures)
    parts = [f"# {analysis.name}", *filter(None, (analysis.about, note)), page.text + pictures]
    write_text(out / f"{analysis.name}.md", "\n\n".join(parts))
    for name, svg in page.figures.items():
        write_text(out / name, svg)


def page_of(path: Path) -> tuple[Analysis, Records, Page]:
    """Return an analysis with its records and page from the JSON that it left. Raises DataError where that cannot be read."""
    try:
        record = parsed_file(path)
        analysis, records = Analysis(**record["analysis"]), record["records"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} holds no analysis of a study: {error}") from error
    return analysis, records, KINDS[analysis.kind][1](analysis, records)


def _recorded_before(out: Path, names: Collection[str]) -> JsonObject:
    try:
        known = parsed_file(out / "study.json")["analyses"]
        return {name: known[name] for name in names if name in known}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write(out: Path, analysis: Analysis, records: Records, page: Page, seconds: float) -> JsonObject:
    """Write what an analysis found, and return its part of the summary. seconds: of this call; what was stored costs none."""
    files = [f"{analysis.name}.{kind}" for kind in ("json", "csv", "md")] + list(page.figures)
    write_json(out / files[0], {"analysis": analysis.model_dump(mode="json"), "records": records})
    write_text(out / files[1], as_csv(records))
    write_page(out, analysis, page)
    return {"kind": analysis.kind, "records": len(records), "files": files, "seconds": round(seconds, 1)}
