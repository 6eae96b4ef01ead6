"""The stages of a run: each reads what is finished, computes what is missing, and leaves files (design.md).

A stage's fingerprint is a hash of what it depends on, so that an extended run repeats only what has to change: labels
are added chunk by chunk, vectors come from the cache, and the student is trained again.
"""

from __future__ import annotations

import time
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
from nncift.plan import LabelPlan, Wish, grow, parse_labels
from nncift.progress import Progress, silent
from nncift.rundir import RunDir
from nncift.seeds import derive
from nncift.student.model import Student, hybrid_matrix
from nncift.teachers import Teacher

Floats = npt.NDArray[np.float32]
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
    key = work.key("check", _identity(pool), settings.part(TeacherSettings))
    with work.directory.stage("check", key) as stage:
        if not stage.done:
            _refuse_lost_rows(work.directory, pool)
            refused = work.teacher.prepare(pool)
            write_json(work.directory.file("unusable.json"), [[r.source, r.line, r.reason] for r in refused])
            contents = {example.id: example.content_hash for example in pool}
            write_json(work.directory.file("pool.json"), contents)
    refused = tuple(Rejection(*item) for item in work.directory.read_json("unusable.json"))
    out = {(rejection.source, rejection.line) for rejection in refused}
    usable = {example.id: example for example in pool if (example.source, example.line) not in out}
    if not usable:
        raise DataError(
            f"none of the {len(pool)} rows can be labelled by the teacher {work.teacher.name}; the first: "
            f"{refused[0].source} line {refused[0].line} {refused[0].reason}"
        )
    plan = LabelStore.open(work.directory.file("labels")).plan
    planned = plan.source_ids if plan else ()
    ordered = [usable.pop(example_id) for example_id in planned] + list(usable.values())
    return Examples(tuple(ordered)), (*pool.rejected, *refused)


def embed(work: Work, pool: Examples) -> tuple[Floats, int]:
    """Return the vectors of all rows `(n, dim)`, and how many rows the encoder truncates."""
    vectors_file = work.directory.file("embeddings.npy")
    key = work.key("embed", _identity(pool), work.settings.part(EncoderSettings))
    with work.directory.stage("embed", key) as stage:
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
    vectors: Floats = np.load(vectors_file, allow_pickle=False)
    return vectors, int(about["truncated"])


def label(work: Work, pool: Examples) -> tuple[LabelPlan, dict[str, LabelledPairs]]:
    """Plan what is still to be labelled, label it chunk by chunk, and return the utilities by split.

    Raises UsageError where the teacher at hand is not the one that labelled before.
    """
    settings, teacher = work.settings, work.teacher
    store = LabelStore.open(work.directory.file("labels"))
    share, count = parse_labels(settings.labels)
    wish = Wish(share, count, settings.plan, settings.test_items, settings.validation_items)
    key = work.key(
        "label", _identity(pool), settings.part(LabelSettings), settings.part(TeacherSettings), settings.seed
    )
    with work.directory.stage("label", key) as stage:
        if not stage.done:
            store.adopt(
                grow(store.plan, pool.ids, pool.ids, wish, settings.seed, shared=True, relative=teacher.relative)
            )
            before = store.progress()
            pending = list(store.pending())
            named = {item for _, chunk, _ in pending for item in (*chunk.targets, chunk.source) if item is not None}
            teacher.prepare(pool.subset(sorted(named)))
            _same_teacher(work)
            with work.progress("labelling pairs", sum(len(chunk.targets) for _, chunk, _ in pending)) as advance:
                for generation, chunk, positions in pending:
                    began = time.perf_counter()
                    labels = teacher.label(chunk)
                    store.write(generation, chunk, positions, labels, time.perf_counter() - began)
                    advance(len(chunk.targets))
            now = store.progress()
            stage.cost.seconds = max(stage.cost.seconds, before.seconds)
            stage.cost.model_tokens, stage.cost.model_passes = now.tokens, now.passes
    plan = store.plan
    if plan is None:
        raise DataError("the labels of this run are gone; use another --out")
    return plan, store.utilities(relative=teacher.relative)


def fit_student(work: Work, vectors: Floats, labels: dict[str, LabelledPairs]) -> tuple[Student, dict[str, Any]]:
    """Train the student, measure its fidelity beside the baselines, and save both."""
    settings = work.settings
    key = work.key("fit", work.keys["label"], work.keys["embed"], settings.part(StudentSettings), settings.seed)
    folder = work.directory.file("student")
    with work.directory.stage("fit", key) as stage:
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


def _refuse_lost_rows(directory: RunDir, pool: Examples) -> None:
    before: dict[str, str] = directory.read_json("pool.json", {})
    now = {example.id: example.content_hash for example in pool}
    lost = [example_id for example_id, content in before.items() if now.get(example_id) != content]
    if lost:
        raise UsageError(
            f"{len(lost)} of the {len(before)} rows that this run was made for are gone or changed, the first {lost[0]!r}; "
            "a run can be extended by rows, not cut. Use another --out"
        )


def _same_teacher(work: Work) -> None:
    described = dict(work.teacher.describe())
    before = work.directory.read_json("labels/teacher.json")
    if before is None:
        write_json(work.directory.file("labels/teacher.json"), described)
    elif before != described:
        changed = ", ".join(name for name in described if before.get(name) != described[name])
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
