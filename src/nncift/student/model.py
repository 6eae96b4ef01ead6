"""A trained student: its weights, label scaling and fingerprints; it projects, predicts, scores, saves and loads.

Nothing here needs torch: a pair is a few steps over two projections (method.md 2, exact factorisation), which its network
(`student.networks`) takes. On disk a student is `student.safetensors` and `student.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.memory import check_room, rows_at_once
from nncift.core.pairs import LabelledPairs, Pairs, UtilityMatrix
from nncift.core.parallel import ParallelMap, ranges, serial_map
from nncift.data.examples import Examples
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import Encoder, check_encoder_is_local, create
from nncift.models.loading import check_is_local
from nncift.models.views import TEXT, Views
from nncift.storage.atomic import atomic, digest, read_json, write_sealed
from nncift.storage.vector_store import release
from nncift.student.hub import student_folder
from nncift.student.networks import Predictor, network
from nncift.student.networks.bilinear import Towers
from nncift.student.networks.tailed import tail_network, with_tail
from nncift.student.score import all_pairs

SCORE_BYTES = 1 << 26
PROJECTED = 1 << 14
"""Rows that are projected at once: the vectors themselves may be a file that memory does not hold."""

TAIL = "tail."


@dataclass(frozen=True)
class Scores:
    """Scores of rows: mean predicted utility over the run's targets, `(n,)`, with a prediction interval of 90 %.

    low and high are None where too few held-out items were there to measure an interval.
    """

    ids: tuple[str, ...]
    score: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64] | None
    high: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Student:
    """A network with its weights, in units of the labels after `mean` and `scale`.

    network: its name, see `student.networks`. weights: named float32 arrays. mean, scale: of the training labels; a prediction
    is `output * scale + mean`. encoder: description of the encoder whose vectors it reads. targets: projections of the run's
    targets `(n_targets, width)`, which scores average over. half_width: of the 90 % interval of a new row's score.
    views: what its vectors consist of; None = the embedding alone. probe: description of the probe whose features it reads
    beside the embedding; None = text alone. tail: weights of the similarity that coverage objectives see on top, see
    `for_coverage`; tail_mean: what it adds on average, taken off.
    """

    network: str
    weights: Mapping[str, Floats]
    mean: float
    scale: float
    encoder: Mapping[str, Any] = field(default_factory=dict)
    targets: Floats | None = None
    half_width: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    views: Views | None = None
    probe: Mapping[str, Any] | None = None
    tail: Mapping[str, Floats] | None = None
    tail_mean: float = 0.0
    covers: bool = False

    @cached_property
    def net(self) -> Predictor:
        """The network. Raises UsageError for an unknown name, DataError for weights that do not fit."""
        base = network(self.network)(self.weights, self.mean, self.scale, self.views)
        if not self.covers or self.tail is None:
            return base
        return with_tail(base, self.tail, self.tail_mean, self.views)

    def for_coverage(self) -> Student:
        """Return the student as coverage objectives see it: with the tail that regression takes away (`networks.tailed`).

        Its values are for selection alone, and no prediction of utilities.
        """
        return replace(self, covers=True, targets=None)

    @property
    def tail_net(self) -> Predictor | None:
        """The tail alone, over the same vectors; None where there is none."""
        return None if self.tail is None else tail_network(self.tail, self.tail_mean, self.views)

    @property
    def is_inner_product(self) -> bool:
        """Whether a prediction is the inner product of two projections, scaled up and shifted."""
        return isinstance(self.net, Towers)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(int(array.size) for array in self.weights.values())

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, width)`: what a pair needs of its target."""
        return _in_blocks(self.net.project_targets, vectors)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, width)`: what a pair needs of its source."""
        return _in_blocks(self.net.project_sources, vectors)

    def projected_sources(self, vectors: Floats) -> Iterator[tuple[slice, Floats]]:
        """Yield ranges of sources with their projections, of which only one is in memory at a time."""
        return _by_blocks(self.net.project_sources, vectors)

    def projected_targets(self, vectors: Floats) -> Iterator[tuple[slice, Floats]]:
        """Yield ranges of targets with their projections, as `projected_sources` does."""
        return _by_blocks(self.net.project_targets, vectors)

    def predict_pairs(self, pairs: Pairs, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_pairs,)` predictions; targets and sources are projections on the axes of the pairs."""
        return self.net.pairs(targets, sources, pairs.target, pairs.source)

    def predict_block(self, targets: Floats, sources: Floats) -> Floats:
        """Return predictions `(n_targets, n_sources)` for all pairs of two sets of projections, in Fortran order."""
        return self.net.block(targets, sources)

    def text_of(self, vectors: Floats) -> Floats:
        """Return the embeddings among the vectors that this student reads."""
        return vectors if self.views is None else self.views.take(vectors, TEXT)

    def mean_per_source(self, sources: Floats) -> npt.NDArray[np.float64]:
        """Return the mean prediction of each source over the run's targets, `(n_sources,)`, block by block."""
        targets = self._targets()
        step = rows_at_once(SCORE_BYTES, 4 * len(targets))
        parts = [
            self.predict_block(targets, sources[start : start + step]).mean(axis=0, dtype=np.float64)
            for start in range(0, len(sources), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def score(
        self, examples: Examples, *, encoder: Encoder | None = None, device: str = "auto", fetch: bool = False
    ) -> Scores:
        """Score new rows: from their text alone, or with one pass of the teacher's model per row where the student reads a probe.

        fetch: let the encoder and the model that the student names be fetched from the hub. Raises UsageError where they are
        not at hand, or others than the student was trained with.
        """
        cache = self._cache(encoder, device, fetch)
        with cache.aside(len(examples) > PROJECTED) as file:
            vectors = self._read(cache, examples, device, file)
            means = [self.mean_per_source(projected) for _, projected in self.projected_sources(vectors)]
        score = np.concatenate([*means, np.empty(0)])
        width = self.half_width
        return Scores(
            examples.ids, score, None if width is None else score - width, None if width is None else score + width
        )

    def vectors_of(self, examples: Examples, *, device: str = "auto", fetch: bool = False) -> Floats:
        """Return what this student reads of new rows, `(n, dim)`: embeddings, and a probe's features where it has any.

        Raises as `score` does.
        """
        return self._read(self._cache(None, device, fetch), examples, device)

    def _cache(self, encoder: Encoder | None, device: str, fetch: bool) -> EmbeddingCache:
        self._check_is_local(encoder is None, fetch)
        if encoder is None:
            encoder = create(str(self.encoder["encoder"]), device=device, load_lm=self._load_lm)
        if dict(encoder.describe()) != dict(self.encoder):
            raise UsageError(
                f"this student reads vectors of {dict(self.encoder)}; the encoder at hand is {dict(encoder.describe())}"
            )
        return EmbeddingCache(encoder)

    def _read(self, cache: EmbeddingCache, examples: Examples, device: str, into: Path | None = None) -> Floats:
        vectors = cache.embed(examples.texts, into=into).vectors
        if self.probe is None:
            return vectors
        from nncift.models.probe import features_of, probe_like

        return np.concatenate([vectors, features_of(probe_like(self.probe, device), examples).vectors], axis=1)

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON into a folder."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.array(array, np.float32, order="C") for name, array in self.weights.items()}
        arrays |= {f"{TAIL}{name}": np.array(array, np.float32) for name, array in (self.tail or {}).items()}
        if self.targets is not None:
            arrays["projected_targets"] = np.ascontiguousarray(self.targets, np.float32)
        # Its bytes are made whole before they are written.
        check_room("writing a student", sum(array.nbytes for array in arrays.values()))
        with atomic(folder / "student.safetensors") as part:
            save_file(arrays, part)
            weights = digest(part)
        described = {
            "network": self.network,
            "mean": self.mean,
            "scale": self.scale,
            "encoder": dict(self.encoder),
            "half_width": self.half_width,
            "parameters": self.parameters,
            "about": dict(self.about),
            "views": None if self.views is None else self.views.to_json(),
            "probe": None if self.probe is None else dict(self.probe),
            "tail_mean": self.tail_mean,
            "sha256": weights,
        }
        write_sealed(folder / "student.json", described)

    @classmethod
    def load(cls, folder: str | Path, *, revision: str | None = None) -> Student:
        """Read a student from a folder, the directory of a run, or the hub (`org/name`, at a revision).

        Raises DataError where a file is missing, damaged or of other shapes, ResourceError where the hub does not give it.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = student_folder(folder, revision=revision)
        try:
            record = read_json(path / "student.json")
            if record["sha256"] != digest(path / "student.safetensors"):
                raise DataError(f"the student in {str(path)!r} is damaged: its two files do not belong together")
            check_room("reading a student", (path / "student.safetensors").stat().st_size)
            arrays = load_file(path / "student.safetensors")
            targets = arrays.pop("projected_targets", None)
            tail = {name.removeprefix(TAIL): arrays.pop(name) for name in list(arrays) if name.startswith(TAIL)}
            student = cls(
                record["network"],
                arrays,
                float(record["mean"]),
                float(record["scale"]),
                dict(record["encoder"]),
                targets,
                record["half_width"],
                dict(record["about"]),
                None if record["views"] is None else Views.of(record["views"]),
                record["probe"],
                tail or None,
                float(record["tail_mean"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise DataError(f"there is no readable student in {str(path)!r}: {_reason(error)}") from error
        try:
            width = student.net.width
            _ = student.for_coverage().net
        except (DataError, UsageError) as error:
            raise DataError(f"the student in {str(path)!r} cannot be used: {error}") from error
        stored = student.targets
        if stored is not None and (stored.dtype != np.float32 or stored.ndim != 2 or stored.shape[1] != width):
            raise DataError(
                f"the student in {str(path)!r} has projected_targets of shape {stored.shape}, expected (targets, {width})"
            )
        return student

    def _targets(self) -> Floats:
        if self.targets is None:
            raise DataError("this student was saved without its run's targets and cannot score")
        return self.targets

    def _check_is_local(self, encoder: bool, fetch: bool) -> None:
        """Raise UsageError where the encoder, or a model, would be fetched without a yes. encoder: it is the student's own."""
        name, model, by = str(self.encoder.get("encoder")), self.about.get("model"), "the student"
        if encoder:
            check_encoder_is_local(name, by, fetch=fetch)
            if name == "lm" and model is not None:
                check_is_local(str(model), by, fetch=fetch)
        if self.probe is not None:
            check_is_local(str(self.probe.get("name")), by, fetch=fetch)

    def _load_lm(self) -> Any:
        from nncift.models.causal_lm import CausalLM

        model = self.about.get("model")
        if model is None:
            raise ResourceError("this student reads hidden states of a language model that its files do not name")
        return CausalLM.load(str(model))


def _in_blocks(project: Callable[[Floats], Floats], vectors: Floats) -> Floats:
    """Project vectors `(n, dim)`, of which only a block is held beside what comes out."""
    if len(vectors) <= PROJECTED:
        return project(vectors)
    out = np.empty((len(vectors), project(vectors[:1]).shape[1]), np.float32)
    for at, projected in _by_blocks(project, vectors):
        out[at] = projected
    return out


def _by_blocks(project: Callable[[Floats], Floats], vectors: Floats) -> Iterator[tuple[slice, Floats]]:
    for at in ranges(len(vectors), PROJECTED):
        projected = project(vectors[at])
        release(vectors)
        yield at, projected


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def predict_all(
    student: Student, targets: Floats, sources: Floats, calculate: ParallelMap = serial_map, *, last: bool = True
) -> Floats:
    """Return the predictions of all pairs of two sets of vectors, `(n_targets, n_sources)`, in Fortran order.

    last: see `all_pairs`. For few targets the projections of all sources would be larger than what is predicted: they are made
    part by part.
    """
    known = student.project_targets(targets)
    if len(known) >= student.net.width or len(sources) <= PROJECTED:
        return all_pairs(student, known, student.project_sources(sources), calculate, last=last)
    values = np.empty((len(sources), len(known)), np.float32)
    for at, projected in student.projected_sources(sources):
        values[at] = all_pairs(student, known, projected, calculate, last=last and at.stop >= len(sources)).T
    return values.T


def with_known(values: Floats, known: LabelledPairs, *, shared: bool) -> UtilityMatrix:
    """Return the matrix used for selection: known labels exact, the rest predicted, the diagonal masked.

    values: predictions of all pairs, `(n_targets, n_sources)`; they are overwritten. A label that the teacher could not give
    stays missing (NaN).
    """
    values[known.target, known.source] = known.value
    if shared:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(known.target_ids, known.source_ids, values)
