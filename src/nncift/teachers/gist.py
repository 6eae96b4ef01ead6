"""GIST: LESS in the directions of the targets' own gradients (`less` with `projection_kind=target`; arXiv 2602.18584).

With `G` the plain gradients of the N target rows, `(N, D)`, and `G G' = U S^2 U'`, a row's feature is `g G' U_k S_k^-1`: its
coordinates in the k <= 150 directions that the targets span, for which a target's own are `U_k S_k`. `utility[t, s]` is their
cosine, at every checkpoint, averaged by learning rate. There is no Adam, and of a measured row no full gradient is kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from nncift.core.arrays import Doubles, Floats
from nncift.core.fingerprints import fingerprint
from nncift.data.examples import Examples
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import Row
from nncift.models.checkpoints import Checkpoint, read_json
from nncift.models.per_sample_gradients import Piece
from nncift.models.response_reader import AnyModel, AnyTokenizer
from nncift.storage.atomic import reporting_full_disk, write_sealed
from nncift.teachers.kept_rows import Kept, contents, on_record, put
from nncift.teachers.less import Less
from nncift.teachers.less_options import LessSettings

DIRECTIONS = 150
"""Directions at most, as published."""
SMALLEST = 1e-3
"""Size of a direction beside the largest below which float32 says nothing of it."""
COLUMNS = 1 << 16
"""Coordinates of all directions that are put together at once."""


class Gist(Less):
    """The GIST teacher: what `Less` becomes with `projection_kind="target"`; `aim` gives it the target set.

    projection: directions at most. Keeps `directions x trained parameters` numbers, in the workspace where there is one: LoRA
    of a low rank keeps them few. Settings: those of `Less`, without Adam.
    """

    needs_targets = True

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[LessSettings],
    ) -> None:
        if settings.get("adam", "none") != "none":
            raise UsageError(
                f"projection_kind=target takes plain gradients; adam={settings['adam']} does not go with it"
            )
        plain: Any = {"projection": DIRECTIONS, **settings, "adam": "none", "projection_kind": "sketch"}
        super().__init__(model, tokenizer, seed=seed, workspace=workspace, **plain)
        self.most = self.projection.dimension
        self.options = {**self.options, "projection_kind": "target"}
        self._aimed_at: Kept | None = None
        self._bases: dict[int, Mapping[str, Floats]] = {}

    def aim(self, targets: Examples) -> None:
        """Take the rows of the target set, whose gradients span the directions."""
        rows = {item: self._rows[item] for item in targets.ids if item in self._rows}
        if not rows:
            raise UsageError(
                "projection_kind=target takes the directions of prepared target rows, and none is among these"
            )
        self._aimed_at, self._bases = put(self._in_workspace("gist-targets.json"), self._target_key, rows), {}
        self._set_width()

    @property
    def warm_up_passes(self) -> int:
        """Passes of the warm-up, and one of every target at every checkpoint."""
        return super().warm_up_passes + self.n_checkpoints * len(self._targets() or ())

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes."""
        return super().warm_up_tokens + self.n_checkpoints * sum(map(len, (self._targets() or {}).values()))

    def without_warm_up(self) -> Less:
        """Return LESS on the model as it is with as many numbers a row: its passes cost what those of this teacher do."""
        options = {name: value for name, value in self.options.items() if name not in ("teacher", "model")}
        plain = Less(self.reader.source, **{**options, "device": self.reader.device, "projection_kind": "sketch"})
        plain.reader.lm = self.lm
        return plain.without_warm_up()

    def notes(self) -> tuple[str, ...]:
        """Return sentences about rows, warm-up and what the directions take."""
        rows = len(self._targets() or ())
        return (
            *super().notes(),
            f"GIST keeps {min(self.most, rows)} directions of the gradients of {rows} targets at every checkpoint, and takes "
            "as many numbers of float32 as there are trained parameters for each (a lower LoRA rank makes them fewer).",
        )

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values, the target set among it."""
        found = {**super().describe(), "targets": contents(self._targets())}
        return {**found, "projection": {"kind": "target", "dimension": self.most}}

    def _at(self, checkpoint: Checkpoint, rows: Sequence[Row]) -> Floats:
        place = next(place for place, own in enumerate(self.warm_up()) if own is checkpoint)
        if place not in self._bases:
            self._bases[place] = self._basis(place, checkpoint)
        found = self._coordinates(self._bases[place], checkpoint, rows)
        return np.stack([found, found])

    def _coordinates(self, basis: Mapping[str, Floats], checkpoint: Checkpoint, rows: Sequence[Row]) -> Floats:
        """Return the coordinates of rows in directions, `(n, k)`, added up module by module."""
        import torch

        found = torch.zeros((len(rows), self.projection.dimension), device=self.lm.device)

        def consume(piece: Piece, places: Sequence[int]) -> None:
            end = piece.start + piece.gradients.shape[1]
            directions = torch.from_numpy(np.array(basis[piece.name][:, piece.start : end])).to(found.device)
            found[list(places)] += piece.gradients @ directions.T

        self._pass(checkpoint, rows, consume)
        return np.asarray(found.cpu().numpy(), np.float32)

    def _pass(
        self, checkpoint: Checkpoint, rows: Sequence[Row], consume: Callable[[Piece, Sequence[int]], None]
    ) -> None:
        """Hand the gradients of every parameter to `consume`, piece by piece, with the places of a piece's rows."""
        with self.trainable.merged_at(checkpoint.weights):

            def measure(places: Sequence[int]) -> Sequence[int]:
                self._gradients.run([rows[place] for place in places], lambda piece: consume(piece, places[piece.rows]))
                return places

            for batch in self._batches(rows):
                self.lm.fits.run(batch, lambda place: len(rows[place]), measure)

    def _basis(self, place: int, checkpoint: Checkpoint) -> Mapping[str, Floats]:
        """Return the directions at a checkpoint, `(k, size)` by parameter, from the workspace where they are there."""
        rows = list(self._needed().values())
        key = fingerprint(self._training(), self._sample_key(), list(self._kept), contents(self._targets()), self.most)
        folder = self._in_workspace(f"gist-{place}")
        if folder is not None and (about := read_json(folder / "basis.json")) is not None and about["key"] == key:
            files = [folder / f"{number}.npy" for number in range(len(about["names"]))]
            return {name: np.load(file, mmap_mode="r") for name, file in zip(about["names"], files, strict=True)}
        self._check_room(folder, len(rows))
        with _Arrays.under(folder) as kept:
            sizes = {name: value.numel() for name, value in self.trainable.parameters.items()}
            gradients = {name: kept.empty(f"g{at}", (len(rows), size)) for at, (name, size) in enumerate(sizes.items())}

            def consume(piece: Piece, places: Sequence[int]) -> None:
                end = piece.start + piece.gradients.shape[1]
                gradients[piece.name][list(places), piece.start : end] = piece.gradients.cpu().numpy()

            self._pass(checkpoint, rows, consume)
            gram = _gram(gradients.values(), len(rows))
            self.reader.check_not_nan(list(self._needed()), gram.diagonal(), "the gradient of target")
            mix = _mix(gram, self.projection.dimension)
            found = {
                name: kept.product(str(at), mix, gradients.pop(name), f"g{at}") for at, name in enumerate(list(sizes))
            }
            kept.finish({"key": key, "names": list(sizes)})
        return found

    def _check_room(self, folder: Path | None, rows: int) -> None:
        """Raise ResourceError where the targets' gradients do not fit on the disk."""
        if folder is None:
            return
        numbers = sum(value.numel() for value in self.trainable.parameters.values())
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = 4 * numbers * (rows + min(rows, self.most)), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise ResourceError(
                f"projection_kind=target keeps the gradients of {rows} targets with respect to {numbers:,} parameters: "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {str(folder.parent)!r}; take a lower LoRA rank "
                "(--option rank=8), fewer targets, or another folder"
            )

    def _set_width(self) -> None:
        self.projection.dimension = min(self.most, len(self._aimed_at or ()))

    def _needed(self) -> Kept:
        found = self._targets()
        if found is None:
            raise UsageError(
                "projection_kind=target is about a target set, and was given none; give --target FILE, or call aim() from Python"
            )
        return found

    def _targets(self) -> Kept | None:
        if self._aimed_at is None:
            self._aimed_at = on_record(self._in_workspace("gist-targets.json"), lambda: self._target_key)
            if self._aimed_at is not None:
                self._set_width()
        return self._aimed_at

    @property
    def _target_key(self) -> str:
        return fingerprint(self._training())


class _Arrays:
    """Arrays by name: in memory, or in files of a folder that appears when all are there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._part = None if folder is None else folder.with_name(f"{folder.name}.{os.getpid()}.part")

    @classmethod
    @contextmanager
    def under(cls, folder: Path | None) -> Iterator[_Arrays]:
        """Begin a folder, and leave nothing of it where it was not finished."""
        made = cls(folder)
        try:
            if made._part is not None:
                shutil.rmtree(made._part, ignore_errors=True)
                made._part.mkdir(parents=True)
                with reporting_full_disk(made._part):
                    yield made
            else:
                yield made
        finally:
            if made._part is not None:
                shutil.rmtree(made._part, ignore_errors=True)

    def empty(self, name: str, shape: tuple[int, int]) -> Floats:
        """Return room for an array."""
        if self._part is None:
            return np.empty(shape, np.float32)
        return np.lib.format.open_memmap(self._part / f"{name}.npy", "w+", np.float32, shape)

    def product(self, name: str, mix: Floats, values: Floats, old: str) -> Floats:
        """Return `mix @ values`, a block of columns at a time, in the place of the array `old`."""
        found = self.empty(name, (len(mix), values.shape[1]))
        for start in range(0, values.shape[1], COLUMNS):
            found[:, start : start + COLUMNS] = mix @ values[:, start : start + COLUMNS]
        if self._part is not None:
            (self._part / f"{old}.npy").unlink()
        return found

    def finish(self, about: Mapping[str, Any]) -> None:
        """Give the folder its name."""
        if self._part is None or self._folder is None:
            return
        write_sealed(self._part / "basis.json", about)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.replace(self._part, self._folder)


def _gram(gradients: Any, rows: int) -> Doubles:
    """Return all inner products of rows `(n, n)`, added up parameter by parameter."""
    total = np.zeros((rows, rows))
    for values in gradients:
        for start in range(0, values.shape[1], COLUMNS):
            part = np.asarray(values[:, start : start + COLUMNS])
            total += part @ part.T
    return total


def _mix(gram: Doubles, k: int) -> Floats:
    """Return `S_k^-1 U_k'`, `(k, n)`, of `G G' = U S^2 U'`; a direction that float32 says nothing of is 0."""
    squares, vectors = np.linalg.eigh(gram)
    sizes = np.sqrt(np.maximum(squares[::-1], 0.0))[:k]
    there = sizes > SMALLEST * (sizes[0] if len(sizes) else 0.0)
    inverse = np.where(there, 1.0 / np.where(there, sizes, 1.0), 0.0)
    return np.asarray(inverse[:, None] * vectors[:, ::-1][:, :k].T, np.float32)
