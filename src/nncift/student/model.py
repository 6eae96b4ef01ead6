"""A trained student: its weights, label scaling and fingerprints; it projects, predicts, scores, saves and loads.

Nothing here needs torch: a pair is a few steps over two projections (method.md 2, exact factorisation). On disk a student
is `student.safetensors` and `student.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Examples
from nncift.encode import EmbeddingCache, Encoder, create
from nncift.errors import DataError, ResourceError, UsageError
from nncift.files import atomic, write_json
from nncift.pairs import Pairs, UtilityMatrix
from nncift.student.kernels import relu_block, relu_pairs

Floats = npt.NDArray[np.float32]
SHAPES = {
    "target_weight": ("target_dim", "hidden"),
    "source_weight": ("source_dim", "hidden"),
    "hidden_bias": ("hidden",),
    "output_weight": ("hidden",),
    "output_bias": (),
}
SCORE_BLOCK = 1 << 24


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
    """The InfluenceNetwork `v relu(W_t e_t + W_s e_s + b) + c`, in units of the labels after `mean` and `scale`.

    weights: named arrays, see SHAPES. mean, scale: of the training labels; a prediction is `output * scale + mean`.
    encoder: description of the encoder whose vectors it reads. targets: projections of the run's targets
    `(n_targets, hidden)`, which scores average over. half_width: of the 90 % interval of a new row's score.
    """

    network: str
    weights: Mapping[str, Floats]
    mean: float
    scale: float
    encoder: Mapping[str, Any] = field(default_factory=dict)
    targets: Floats | None = None
    half_width: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(int(array.size) for array in self.weights.values())

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, hidden)`: what a pair needs of its target, the hidden bias included."""
        return np.asarray(vectors @ self.weights["target_weight"] + self.weights["hidden_bias"], np.float32)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, hidden)`: what a pair needs of its source."""
        return np.asarray(vectors @ self.weights["source_weight"], np.float32)

    def predict_pairs(self, pairs: Pairs, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_pairs,)` predictions; targets and sources are projections on the axes of the pairs."""
        return relu_pairs(targets, sources, pairs.target, pairs.source, *self._output())

    def predict_block(self, targets: Floats, sources: Floats) -> Floats:
        """Return predictions `(n_targets, n_sources)` for all pairs of two sets of projections, in Fortran order."""
        return relu_block(targets, sources, *self._output()).T

    def mean_per_source(self, sources: Floats) -> npt.NDArray[np.float64]:
        """Return the mean prediction of each source over the run's targets, `(n_sources,)`, block by block."""
        targets = self._targets()
        step = max(1, SCORE_BLOCK // len(targets))
        parts = [
            self.predict_block(targets, sources[start : start + step]).mean(axis=0, dtype=np.float64)
            for start in range(0, len(sources), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def score(self, examples: Examples, *, encoder: Encoder | None = None, device: str = "auto") -> Scores:
        """Score new rows from their text alone; no language model is loaded unless it was the encoder.

        Raises UsageError where the encoder at hand is not the one that the student was trained with.
        """
        if encoder is None:
            encoder = create(str(self.encoder["encoder"]), device=device, load_lm=self._load_lm)
        if dict(encoder.describe()) != dict(self.encoder):
            raise UsageError(
                f"this student reads vectors of {dict(self.encoder)}; the encoder at hand is {dict(encoder.describe())}"
            )
        vectors = EmbeddingCache(encoder).embed([example.text for example in examples]).vectors
        score = self.mean_per_source(self.project_sources(vectors))
        width = self.half_width
        return Scores(
            examples.ids, score, None if width is None else score - width, None if width is None else score + width
        )

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON into a folder."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.array(array, np.float32, order="C") for name, array in self.weights.items()}
        if self.targets is not None:
            arrays["projected_targets"] = np.ascontiguousarray(self.targets, np.float32)
        with atomic(folder / "student.safetensors") as part:
            save_file(arrays, part)
            digest = _digest(part)
        described = {
            "network": self.network, "mean": self.mean, "scale": self.scale, "encoder": dict(self.encoder),
            "half_width": self.half_width, "parameters": self.parameters, "about": dict(self.about),
            "sha256": digest,
        }  # fmt: skip
        write_json(folder / "student.json", described)

    @classmethod
    def load(cls, folder: str | Path) -> Student:
        """Read a student from a folder. Raises DataError where a file is missing, damaged or of other shapes."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(folder)
        try:
            told = json.loads((path / "student.json").read_text(encoding="utf-8"))
            if told["sha256"] != _digest(path / "student.safetensors"):
                raise DataError(f"the student in {str(path)!r} is damaged: its two files do not belong together")
            arrays = load_file(path / "student.safetensors")
            targets = arrays.pop("projected_targets", None)
            student = cls(
                told["network"], arrays, float(told["mean"]), float(told["scale"]), dict(told["encoder"]), targets,
                told["half_width"], dict(told["about"]),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise DataError(f"there is no readable student in {str(path)!r}: {_reason(error)}") from error
        _check_shapes(student, path)
        return student

    def _output(self) -> tuple[Floats, float]:
        """Return the output layer in label units."""
        weight = self.weights["output_weight"] * np.float32(self.scale)
        return weight, float(self.weights["output_bias"]) * self.scale + self.mean

    def _targets(self) -> Floats:
        if self.targets is None:
            raise DataError("this student was saved without its run's targets and cannot score")
        return self.targets

    def _load_lm(self) -> Any:
        from nncift.lm import CausalLM

        model = self.about.get("model")
        if model is None:
            raise ResourceError("this student reads hidden states of a language model that its files do not name")
        return CausalLM.load(str(model))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _check_shapes(student: Student, path: Path) -> None:
    """Refuse arrays that do not agree: compiled code would read beyond their ends."""
    arrays, shapes = dict(student.weights), dict(SHAPES)
    if student.targets is not None:
        arrays["projected_targets"], shapes["projected_targets"] = student.targets, ("targets", "hidden")
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        found = arrays[name].shape if name in arrays and arrays[name].dtype == np.float32 else None
        expected = found is not None and len(found) == len(axes)
        if expected and found is not None:
            expected = all(sizes.setdefault(axis, size) == size for axis, size in zip(axes, found, strict=True))
        if not expected:
            raise DataError(f"the student in {str(path)!r} has {name} of shape {found}, expected {axes} to agree")


def hybrid_matrix(student: Student, targets: Floats, sources: Floats, known: Any, *, shared: bool) -> UtilityMatrix:
    """Return the matrix used for selection: known labels exact, the rest predicted, the diagonal masked.

    targets, sources: projections on the axes of `known` (LabelledPairs). A label that the teacher could not give stays
    missing (NaN). Shape `(n_targets, n_sources)`.
    """
    values = student.predict_block(targets, sources)
    values[known.target, known.source] = known.value
    if shared:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(known.target_ids, known.source_ids, values)
