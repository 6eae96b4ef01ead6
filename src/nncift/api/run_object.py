"""A finished run as an object: what was selected, how sure that is, and what can be done with it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nncift.config import RunSettings
from nncift.core.result_types import JsonObject
from nncift.data import Examples
from nncift.errors import DataError, ResourceError, UsageError
from nncift.runs.finished import FinishedRun

if TYPE_CHECKING:
    import datasets
    import pandas

    from nncift.evaluation.run_verdict import Verdict
    from nncift.student.model import Student

SELECTION = ("id", "source", "rank", "selected", "gain", "would_add", "score", "stability", "reason")


class Run:
    """A finished run. Everything is read from its directory when it is first asked for.

    path: the run's directory. A run that was given no `out` lies in a temporary folder, which goes with this object.
    """

    def __init__(self, path: str | Path, temporary: TemporaryDirectory[str] | None = None) -> None:
        self.path = Path(path)
        self._temporary = temporary
        self._finished = FinishedRun(self.path)

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `nncift run --json` prints."""
        return self._finished.summary

    @property
    def fidelity(self) -> Mapping[str, Any]:
        """How well the student predicts, by quadrant, beside its baselines."""
        return self._finished.fidelity.to_json()

    @property
    def ledger(self) -> Mapping[str, Any]:
        """Cost by stage, against the full teacher (`saving`) and against training on all rows (`share_of_training`)."""
        ledger: Mapping[str, Any] = self.summary["ledger"]
        return ledger

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user has to know, in plain sentences."""
        return tuple(self.summary["warnings"])

    @property
    def verdict(self) -> Mapping[str, Any]:
        """Whether the selection agrees with the teacher, whether it trains better, why, and what to type next."""
        return self._verdict.to_json()

    @property
    def _verdict(self) -> Verdict:
        from nncift.runs.renew_verdict import verdict

        return verdict(self._finished)

    @property
    def skill(self) -> float | None:
        """Skill of what selects on held-out labels (1 = as the full teacher, 0 = as at random); None where not measured."""
        gate = self.summary["gate"]
        found = gate["skill"].get(gate["used"])
        return None if found is None else float(found["skill"])

    @property
    def skill_interval(self) -> tuple[float, float] | None:
        """The 90 % interval of `skill`."""
        gate = self.summary["gate"]
        found = gate["skill"].get(gate["used"])
        return None if found is None else (float(found["interval"][0]), float(found["interval"][1]))

    @property
    def spearman(self) -> float | None:
        """Rank correlation of predictions with the teacher on pairs of rows that the student has not seen (Q4)."""
        found = self.summary["fidelity"].get("q4", {}).get("spearman")
        return None if found is None else float(found)

    @cached_property
    def subset(self) -> Examples:
        """The selected rows in rank order."""
        return self._finished.rows.examples.subset(self.selected_ids)

    @property
    def selected_ids(self) -> tuple[str, ...]:
        """Ids of the selected rows, in rank order."""
        return self._finished.chosen

    @cached_property
    def selected_indices(self) -> tuple[int, ...]:
        """Numbers of the selected rows among those that were given, from 0, in rank order.

        Raises UsageError for a pool of several files, whose rows have no common number: use `selected_ids`.
        """
        if len({row.source for row in self.subset}) > 1:
            raise UsageError(
                "the pool of this run has several files, and their rows no common number; use selected_ids"
            )
        return tuple(row.line - 1 for row in self.subset)

    @property
    def student(self) -> Student:
        """The trained student; `student.score(rows)` scores new rows."""
        return self._finished.student

    def to_pandas(self) -> pandas.DataFrame:
        """Return every row of the pool with its texts and what became of it, selected rows first by rank.

        Raises ResourceError without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ResourceError("to_pandas needs pandas: pip install pandas") from error
        choices, pool = self._finished.choices, self._finished.rows.examples
        ids = [*self.selected_ids, *self._finished.dropped]
        columns: dict[str, list[Any]] = {name: [getattr(choices[item], name) for item in ids] for name in SELECTION}
        texts = {row.id: (row.prompt, row.response) for row in pool}
        columns["prompt"], columns["response"] = (
            list(part) for part in zip(*(texts[item] for item in ids), strict=True)
        )
        found = pd.DataFrame(columns)
        return found.astype({"rank": "Int64"})

    def to_dataset(self) -> datasets.Dataset:
        """Return the selected rows as they were given, in rank order, as a Hugging Face dataset.

        Raises ResourceError without `datasets`, DataError where a column holds values of different kinds.
        """
        try:
            import datasets
        except ImportError as error:
            raise ResourceError("to_dataset needs the package datasets: pip install datasets") from error
        import pyarrow as pa

        rows = [json.loads(row.raw) for row in self.subset]
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"the selected rows cannot be columns of a dataset: {error}. A column holds values of different kinds; use "
                "run.export(out='subset.jsonl')"
            ) from error
        return datasets.Dataset(table)

    def explain(
        self,
        example_id: str | None = None,
        *,
        rank: int | None = None,
        search: str | None = None,
        why_not: bool = False,
    ) -> JsonObject:
        """Tell why a row was chosen or dropped, and what would have to change; see `nncift.explain`."""
        from nncift.runs.explain import explain_found

        return explain_found(self._finished, example_id, rank=rank, search=search, why_not=why_not).to_json()

    def query(self, rows: Any, *, top: int = 10, exact: int = 0, device: str = "auto") -> JsonObject:
        """Tell which rows of the pool push a model to the responses of some rows; see `nncift.query`."""
        from nncift.data import rows_from
        from nncift.runs.query import Question, query

        read = rows_from(rows, turns=self._finished.settings.turns)
        return query(self._finished, read, Question(top, exact, device)).to_json()

    def select(self, *, out: str | Path | None = None, **settings: Any) -> Mapping[str, Any]:
        """Select again, with another budget, objective or other constraints; no model is loaded.

        out: a new directory; without it this run's selection is replaced. Returns what `nncift select --json` prints.
        """
        from nncift.api.functions import select

        found = select(self.path, out=out, **settings)
        if out is None:
            self._finished = FinishedRun(self.path)
            for name in ("subset", "selected_indices"):
                self.__dict__.pop(name, None)
        return found

    def export(self, *, out: str | Path, to: str = "same", **options: Any) -> Mapping[str, Any]:
        """Write the selected rows as a trainer loads them; see `nncift.export`."""
        from nncift.api.functions import export

        return export(self.path, out=out, to=to, **options)

    def evaluate(
        self, *, full_teacher: bool = False, device: str = "auto", trust_remote_code: bool = False, fetch: bool = False
    ) -> Mapping[str, Any]:
        """Measure the student: quadrants beside baselines, what more labels gave, and skill under the full teacher."""
        from nncift.api.functions import evaluate

        return evaluate(
            self.path, full_teacher=full_teacher, device=device, trust_remote_code=trust_remote_code, fetch=fetch
        )

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""
        return self._finished.settings

    def tune(self, test: str | Path | Sequence[str | Path] | None = None, **settings: Any) -> Mapping[str, Any]:
        """Train on the selection and on rival subsets alike, and judge them by test rows that none has seen.

        test: files of test rows, None = the rows that the run has set aside (`holdout`).
        """
        from nncift.api.functions import tune

        return tune(self.path, test, **settings)

    def report(self) -> Path:
        """Make the report anew where it is missing or old, and return its path."""
        from nncift.runs.report import write_report

        return write_report(self._finished)

    def __repr__(self) -> str:
        """Return the run in one line."""
        skill = "skill not measured" if self.skill is None else f"skill {self.skill:.2f}"
        return (
            f"<nncift.Run {str(self.path)!r}: {self.summary['selected']} of {self.summary['pool']} rows by "
            f"{self.summary['teacher']}, {skill}>"
        )

    def _repr_html_(self) -> str:
        """Return the run as a notebook shows it."""
        between = self.skill_interval
        skill = (
            "not measured"
            if self.skill is None or between is None
            else f"{self.skill:.2f} (90 % interval {between[0]:.2f} to {between[1]:.2f})"
        )
        ledger, verdict = self.ledger, self._verdict
        rows = {
            "selected": f"{self.summary['selected']:,} of {self.summary['pool']:,} rows",
            "teacher": self.summary["teacher"],
            "skill on held-out labels": skill,
            "saving against the full teacher": f"{100 * ledger['saving']:.1f} %",
            "share of training on all rows": f"{100 * ledger['share_of_training']:.1f} %",
            "report": str(self.path / "report.html"),
        }
        head = f"<p><b>{html.escape(verdict.headline)}</b> {html.escape(verdict.why)}</p>"
        table = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in self.warnings)
        return f"{head}<table>{table}</table>" + (f"<ul>{notes}</ul>" if notes else "")
