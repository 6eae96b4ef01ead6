"""How two selections over one pool differ: overlap, coverage of the pool, shifts by source, length and cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.result_types import Record
from nncift.core.seeds import derive, shuffled
from nncift.errors import DataError, UsageError
from nncift.labels.vectors import VectorFiles
from nncift.models.views import TEXT
from nncift.storage import checksums
from nncift.storage.atomic import read_json
from nncift.storage.selection_folder import RECORD, read_selection

_BLOCK = 1 << 24


@dataclass(frozen=True)
class Selection:
    """A selection on disk. source, length, selected: by id, for every row of its pool; run: where its embeddings lie."""

    path: Path
    run: Path
    source: dict[str, str]
    length: dict[str, int]
    selected: frozenset[str]

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read `selection.parquet` of a run or of `nncift select --out`. Raises DataError where it cannot be read."""
        checksums.verify(path, RECORD)
        table = read_selection(path, ("length",))
        ids = table["id"].to_pylist()
        try:
            record = read_json(path / RECORD)
            return cls(
                path,
                Path(record.get("run", path)),
                dict(zip(ids, table["source"].to_pylist(), strict=True)),
                dict(zip(ids, table["length"].to_pylist(), strict=True)),
                frozenset(item for item, chosen in zip(ids, table["selected"].to_pylist(), strict=True) if chosen),
            )
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"there is no readable selection in {str(path)!r} ({error}); give a run or an output of `nncift select`"
            ) from error


@dataclass(frozen=True)
class Overlap(Record):
    """Rows selected by each way and by both. both_by_chance: what two draws of these sizes would share."""

    a: int
    b: int
    both: int
    jaccard: float
    both_by_chance: float


@dataclass(frozen=True)
class Shift(Record):
    """The share of a group in the pool and in both selections."""

    group: str
    pool: float
    a: float
    b: float


@dataclass(frozen=True)
class Comparison(Record):
    """How two selections differ on the `pool` rows that both pools have.

    only_in_pool: rows of one pool alone, by way. coverage, median_length: by way, beside `random` and `pool`; None of no row.
    shifts: by source, length and cluster.
    """

    a: str
    b: str
    pool: int
    only_in_pool: Mapping[str, int]
    overlap: Overlap
    coverage: Mapping[str, float | None]
    median_length: Mapping[str, float | None]
    shifts: Mapping[str, tuple[Shift, ...]]


def compare(a: Path, b: Path, *, clusters: int = 10, seed: int = 0) -> Comparison:
    """Compare two selections on the rows that both pools have.

    Coverage is the mean over these rows of the highest cosine with a selected row, by the embeddings of A's run, beside that of
    a random selection of A's size. Raises DataError where a directory holds no selection, UsageError where no row is shared.
    """
    one, other = Selection.load(a), Selection.load(b)
    ids = sorted(one.source.keys() & other.source.keys())
    if not ids:
        raise UsageError(f"{str(a)!r} and {str(b)!r} have no row in common; compare selections from one pool")
    in_a, in_b = (np.array([item in way.selected for item in ids]) for way in (one, other))
    files = VectorFiles(one.run)
    vectors = files.views.take(files.of(ids), TEXT)
    drawn = set(shuffled(ids, seed, "compare")[: int(in_a.sum())])
    lengths = np.array([one.length[item] for item in ids])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75]))
    label, centre = _clusters(vectors, min(clusters, len(ids)), derive(seed, "clusters") % 2**32)
    named = [f"{c} (like {_middle(ids, vectors, label, centre, c)})" for c in range(len(centre))]
    random = np.array([item in drawn for item in ids])
    return Comparison(
        a=str(a),
        b=str(b),
        pool=len(ids),
        only_in_pool={"a": len(one.source) - len(ids), "b": len(other.source) - len(ids)},
        overlap=_overlap(in_a, in_b),
        coverage={name: _coverage(vectors, mask) for name, mask in (("a", in_a), ("b", in_b), ("random", random))},
        median_length={
            name: _median(lengths[mask]) for name, mask in (("a", in_a), ("b", in_b), ("pool", lengths >= 0))
        },
        shifts={
            "source": _shares([one.source[item] for item in ids], in_a, in_b),
            "length": _shares([_bin(edges, length) for length in lengths], in_a, in_b),
            "cluster": _shares([named[c] for c in label], in_a, in_b),
        },
    )


def _overlap(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Overlap:
    both, either = int((a & b).sum()), int((a | b).sum())
    by_chance = float(a.sum()) * float(b.sum()) / len(a)
    return Overlap(int(a.sum()), int(b.sum()), both, both / either if either else 1.0, by_chance)


def _coverage(vectors: Floats, chosen: npt.NDArray[np.bool_]) -> float | None:
    if not chosen.any():
        return None
    picked = np.ascontiguousarray(vectors[chosen])
    step = max(1, _BLOCK // len(picked))
    best = [(vectors[start : start + step] @ picked.T).max(axis=1) for start in range(0, len(vectors), step)]
    return float(np.concatenate(best).mean(dtype=np.float64))


def _shares(group: Sequence[str], a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> tuple[Shift, ...]:
    """Return the share of each group in the pool and in both selections, the greatest shift first."""
    names, code = np.unique(np.array(group, dtype=object).astype(str), return_inverse=True)
    everything = np.ones(len(group), bool)
    share = {
        name: np.bincount(code[mask], minlength=len(names)) / max(int(mask.sum()), 1)
        for name, mask in (("pool", everything), ("a", a), ("b", b))
    }
    order = sorted(range(len(names)), key=lambda g: (-abs(share["b"][g] - share["a"][g]), names[g]))
    return tuple(Shift(str(names[g]), **{name: float(values[g]) for name, values in share.items()}) for g in order)


def _clusters(vectors: Floats, k: int, seed: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the cluster of every row and the clusters' centres, by k-means on the embeddings."""
    from scipy.cluster.vq import kmeans2

    centre, label = kmeans2(vectors.astype(np.float64), k, minit="++", rng=np.random.default_rng(seed))
    return label.astype(np.int64), centre.astype(np.float32)


def _middle(ids: Sequence[str], vectors: Floats, label: npt.NDArray[np.int64], centre: Floats, cluster: int) -> str:
    members = np.flatnonzero(label == cluster)
    if not len(members):
        return "no row"
    return ids[int(members[((vectors[members] - centre[cluster]) ** 2).sum(axis=1).argmin()])]


def _bin(edges: npt.NDArray[np.float64], length: int) -> str:
    place = int(np.searchsorted(edges, length, side="right"))
    low = "0" if place == 0 else f"{edges[place - 1]:.0f}"
    return f"{low} characters and more" if place == len(edges) else f"{low} to {edges[place]:.0f} characters"


def _median(lengths: npt.NDArray[np.int64]) -> float | None:
    return float(np.median(lengths)) if len(lengths) else None
