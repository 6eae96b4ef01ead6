"""The stages of a run: each reads what is finished, computes what is missing, and leaves files (design.md).

A stage's fingerprint is a hash of what it depends on, so that an extended run repeats only what has to change: labels
are added chunk by chunk, vectors come from the cache, and the student is trained again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import EncoderSettings, LabelSettings, RunSettings, StudentSettings, TeacherSettings
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.encode import EmbeddingCache, Encoder, create
from nncift.errors import DataError, ResourceError, UsageError
from nncift.evaluate.baselines import fit_baselines, predict_quadrants
from nncift.evaluate.fidelity import measure
from nncift.evaluate.intervals import interval_of_mean_utility
from nncift.files import atomic, fingerprint, write_json
from nncift.labels import LabelStore, combine
from nncift.lm import CausalLM
from nncift.memory import free_memory
from nncift.pairs import LabelledPairs, UtilityMatrix
from nncift.plan import LabelPlan, Wish, grow, parse_labels, refuse_small
from nncift.progress import Progress, silent
from nncift.rundir import RunDir
from nncift.seeds import derive
from nncift.select import parse_budget
from nncift.student.model import Student, hybrid_matrix
from nncift.teachers import Teacher

Floats = npt.NDArray[np.float32]
TEACHER = "labels/teacher.json"
QUADRANT_OF = {"q1": "train", "q2": "q2", "q3": "q3", "q4": "test"}


@dataclass
class Work:
    """What every stage works with. keys: fingerprints of the stages so far."""

    directory: RunDir
    settings: RunSettings
    teacher: Teacher
    encoder: Encoder | None = None
    progress: Progress = silent
    keys: dict[str, str] = field(default_factory=dict)

    def key(self, stage: str, *parts: Any) -> str:
        """Set and return the fingerprint of a stage."""
        self.keys[stage] = fingerprint(stage, *parts)
        return self.keys[stage]


def usable_rows(work: Work, pool: Examples) -> tuple[Examples, tuple[Rejection, ...]]:
    """Return the rows that the teacher can label, rows of an earlier plan first, and all rejected rows.

    Raises DataError where none is left, UsageError where a row of the run that is being extended is gone or changed.
    """
    settings = work.settings
    plan = LabelStore.open(work.directory.file("labels")).plan
    planned = plan.source_ids if plan else ()
    _refuse_lost_rows(work.directory, pool, planned)
    key = work.key("check", _identity(pool), settings.part(TeacherSettings))
    with work.directory.stage("check", key, ("unusable.json", "pool.json")) as stage:
        if not stage.done:
            reasons = {(refused.source, refused.line): refused.reason for refused in work.teacher.prepare(pool)}
            # By id: the same rows may stand on other lines the next time.
            by_id = {row.id: reasons[row.source, row.line] for row in pool if (row.source, row.line) in reasons}
            write_json(work.directory.file("unusable.json"), by_id)
            write_json(work.directory.file("pool.json"), {example.id: example.content_hash for example in pool})
    out: dict[str, str] = work.directory.read_json("unusable.json")
    refused = tuple(Rejection(row.source, row.line, out[row.id]) for row in pool if row.id in out)
    usable = {example.id: example for example in pool if example.id not in out}
    if not usable:
        raise DataError(
            f"none of the {len(pool)} rows can be labelled by the teacher {work.teacher.name}; the first: "
            f"{refused[0].source} line {refused[0].line} {refused[0].reason}"
        )
    ordered = [usable.pop(example_id) for example_id in planned] + list(usable.values())
    return Examples(tuple(ordered)), (*pool.rejected, *refused)


def refuse_impossible(settings: RunSettings, pool: Examples) -> None:
    """Refuse wishes that cannot be met, before anything is loaded or written.

    Raises DataError for too few rows, UsageError and InfeasibleError for labels and budgets.
    """
    parse_labels(settings.labels)
    refuse_small(len(pool))
    parse_budget(settings.budget, len(pool))


def embed(work: Work, pool: Examples) -> tuple[Floats, int]:
    """Return the vectors of all rows `(n, dim)`, and how many rows the encoder truncates.

    Raises DataError where those of an earlier session cannot be read.
    """
    vectors_file = work.directory.file("embeddings.npy")
    # An encoder given as an object may differ from the one that its name stands for.
    given = dict(work.encoder.describe()) if work.encoder else None
    key = work.key("embed", _identity(pool), work.settings.part(EncoderSettings), given)
    with work.directory.stage("embed", key, ("embeddings.npy", "embeddings.json")) as stage:
        if not stage.done:
            encoder = work.encoder or create(
                work.settings.encoder, device=work.settings.device, load_lm=lambda: language_model(work.teacher)
            )
            with work.progress("embedding rows", len(pool)) as advance:
                embedded = EmbeddingCache(encoder).embed([example.text for example in pool], advance)
            stage.cost.model_tokens += embedded.tokens
            stage.cost.model_passes += embedded.fresh
            with atomic(vectors_file) as part, part.open("wb") as stream:
                np.save(stream, embedded.vectors, allow_pickle=False)
            about = {"truncated": embedded.truncated, "encoder": dict(encoder.describe()), "ids": pool.ids}
            write_json(work.directory.file("embeddings.json"), about)
    about = work.directory.read_json("embeddings.json")
    try:
        vectors: Floats = np.load(vectors_file, allow_pickle=False)
        place = {item: row for row, item in enumerate(about["ids"])}
        # The vectors lie in the order of the session that made them.
        return vectors[[place[item] for item in pool.ids]], int(about["truncated"])
    except (ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{str(vectors_file)!r} is damaged ({error}); delete it and run again") from error


def plan_labels(work: Work, pool: Examples) -> LabelPlan:
    """Return the plan that these settings ask for, grown from the run's; nothing is written.

    Raises UsageError where the wish is below what exists, or where the teacher at hand is not the one that labelled
    before; DataError where too few rows are usable.
    """
    settings, teacher = work.settings, work.teacher
    key = work.key(
        "label", _identity(pool), settings.part(LabelSettings), settings.part(TeacherSettings), settings.seed
    )
    previous = LabelStore.open(work.directory.file("labels")).plan
    if work.directory.is_done("label", key):
        if previous is None:
            raise DataError("the labels of this run are gone; use another --out")
        return previous
    grown = grow(previous, pool.ids, pool.ids, wish_of(settings), settings.seed, shared=True, relative=teacher.relative)
    _refuse_other_teacher(work)
    return grown


def wish_of(settings: RunSettings) -> Wish:
    """Return how much the settings ask to label. Raises UsageError or InfeasibleError."""
    share, count = parse_labels(settings.labels)
    return Wish(share, count, settings.plan, settings.test_items, settings.validation_items)


def label(work: Work, pool: Examples, plan: LabelPlan) -> dict[str, LabelledPairs]:
    """Label what is still pending of the plan (of `plan_labels`), chunk by chunk, and return the utilities by split."""
    teacher = work.teacher
    store = LabelStore.open(work.directory.file("labels"))
    with work.directory.stage("label", work.keys["label"]) as stage:
        if not stage.done:
            write_json(work.directory.file(TEACHER), dict(teacher.describe()))
            store.adopt(plan)
            before = store.progress()
            pending = list(store.pending())
            named = {item for _, chunk, _ in pending for item in (*chunk.targets, chunk.source) if item is not None}
            teacher.prepare(pool.subset(sorted(named)))
            with work.progress("labelling pairs", sum(len(chunk.targets) for _, chunk, _ in pending)) as advance:
                for generation, chunk, positions in pending:
                    began = time.perf_counter()
                    labels = teacher.label(chunk)
                    store.write(generation, chunk, positions, labels, time.perf_counter() - began)
                    advance(len(chunk.targets))
            now = store.progress()
            stage.cost.seconds = max(stage.cost.seconds, before.seconds)
            stage.cost.model_tokens, stage.cost.model_passes = now.tokens, now.passes
    return store.utilities(relative=teacher.relative)


def fit_student(work: Work, vectors: Floats, labels: dict[str, LabelledPairs]) -> tuple[Student, dict[str, Any]]:
    """Train the student, measure its fidelity beside the baselines, and save both."""
    settings = work.settings
    key = work.key("fit", work.keys["label"], work.keys["embed"], settings.part(StudentSettings), settings.seed)
    folder = work.directory.file("student")
    left = ("student/student.json", "student/student.safetensors", "fidelity.json")
    with work.directory.stage("fit", key, left) as stage:
        if not stage.done:
            from nncift.student.fit import RECIPES, fit

            recipe = RECIPES[settings.recipe]
            with work.progress("fitting the student", recipe.epochs) as advance:
                fitted = fit(
                    labels["train"], labels["validation"], vectors, vectors, recipe=recipe,
                    seed=derive(settings.seed, "student"), advance=lambda epoch: advance(1),
                )  # fmt: skip
            student, told = _measured(work, fitted.student, vectors, labels)
            told["course"] = {
                "epochs": len(fitted.train_loss), "best_epoch": fitted.best_epoch,
                "train_mse": [_number(x) for x in fitted.train_loss],
                "validation_mse": [_number(x) for x in fitted.validation_loss],
            }  # fmt: skip
            student.save(folder)
            write_json(work.directory.file("fidelity.json"), told)
    return Student.load(folder), work.directory.read_json("fidelity.json")


def predict(student: Student, vectors: Floats, labels: dict[str, LabelledPairs], *, shared: bool) -> UtilityMatrix:
    """Return the hybrid matrix: known labels exact, the rest predicted, the diagonal masked (method.md 1).

    Raises ResourceError where it does not fit in memory.
    """
    needed = 4 * len(vectors) ** 2 * 2
    free = free_memory()
    if free is not None and needed > free:
        raise ResourceError(
            f"selecting from {len(vectors)} rows takes {needed / 1e9:.1f} GB of memory for the matrix and its working "
            f"copy, and {free / 1e9:.1f} GB are free; use --limit, or a machine with more memory"
        )
    return hybrid_matrix(
        student, student.project_targets(vectors), student.project_sources(vectors), combine(labels), shared=shared
    )


def _measured(
    work: Work, student: Student, vectors: Floats, labels: dict[str, LabelledPairs]
) -> tuple[Student, dict[str, Any]]:
    """Return the student with all it needs to score alone, and its fidelity as JSON."""
    targets, sources = student.project_targets(vectors), student.project_sources(vectors)
    quadrants = {name: labels[split].present() for name, split in QUADRANT_OF.items()}
    predictions = predict_quadrants(fit_baselines(labels["train"], labels["validation"], vectors, vectors), quadrants)
    predictions["student"] = {name: student.predict_pairs(pairs, targets, sources) for name, pairs in quadrants.items()}
    train_mean = float(quadrants["q1"].value.mean(dtype=np.float64))
    fidelity = measure(quadrants, predictions, train_mean, derive(work.settings.seed, "fidelity"))
    held_out = combine(labels, ("validation", "test")).present()
    interval = interval_of_mean_utility(held_out, student.predict_pairs(held_out, targets, sources))
    encoder = work.directory.read_json("embeddings.json")["encoder"]
    about = {"teacher": work.teacher.name, "model": work.settings.model, "interval": interval.note()}
    whole = Student(
        student.network, student.weights, student.mean, student.scale, encoder, targets, interval.half_width, about
    )
    told = {**fidelity.to_json(), "train_mean": train_mean, "interval": interval.note()}
    return whole, told


def _identity(pool: Examples) -> list[list[str]]:
    """Return what a stage over these rows depends on; the order of rows carries no meaning."""
    return sorted([example.id, example.content_hash] for example in pool)


def _refuse_lost_rows(directory: RunDir, pool: Examples, planned: Sequence[str]) -> None:
    before: dict[str, str] = directory.read_json("pool.json", {})
    now = {example.id: example.content_hash for example in pool}
    lost = [item for item in planned if item not in now or before.get(item, now[item]) != now[item]]
    if lost:
        raise UsageError(
            f"{len(lost)} of the {len(planned)} rows that this run has labels for are gone or changed, the first "
            f"{lost[0]!r}; a run can be extended by rows, not cut. Use another --out"
        )


def _refuse_other_teacher(work: Work) -> None:
    before = work.directory.read_json(TEACHER)
    if before is None:
        return
    described = dict(work.teacher.describe())
    if before != described:
        changed = ", ".join(sorted(name for name in {*before, *described} if before.get(name) != described.get(name)))
        raise UsageError(
            f"the labels of this run were made by another teacher: {changed} differ (are the model's files the same?). "
            "Use another --out"
        )


def language_model(teacher: Teacher) -> CausalLM:
    """Return the teacher's language model. Raises UsageError where it has none."""
    lm = getattr(teacher, "lm", None)
    if not isinstance(lm, CausalLM):
        raise UsageError(f"--encoder lm needs a teacher with a language model; {teacher.name} has none")
    return lm


def _number(value: float) -> float | None:
    return None if value != value else round(value, 8)
