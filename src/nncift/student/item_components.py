"""Rows as a ridge regression sees them: principal components of their views, found over all rows at hand, labelled or not."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from nncift.core.arrays import Codes, Floats
from nncift.core.parallel import ranges
from nncift.models.views import AT_ONCE, STATS, Views, centre_of, unit
from nncift.storage.vector_store import release, rows_of
from nncift.student.networks import TrainingData

COMPONENTS = {"text": 16, "hidden": 12, "output": 16, "stats": 8}
"""Principal components of each view where there are several."""

ALONE = 32
"""Components where a view is the only one."""

POINTWISE = 128
"""Components of each view where there are no products of two items."""

WEIGHT = {STATS: 0.7}
"""Size of a view's components beside the others'; statistics of few tokens are noisy."""


@dataclass(frozen=True)
class Items:
    """Rows of both axes as the regression sees them.

    used: codes of the rows that are here, ascending; None = all. target, source: components `(n, rank)`. target_alike,
    source_alike: by view, vectors of length 1. weight, bias: the linear map from views to components, `(dim, rank)` and
    `(rank,)`.
    """

    used: tuple[Codes, Codes] | None
    target: Floats
    source: Floats
    target_alike: dict[str, Floats]
    source_alike: dict[str, Floats]
    weight: Floats
    bias: Floats
    centres: dict[str, Floats]

    def places(self, target: Codes, source: Codes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return where the rows with these codes are."""
        if self.used is None:
            return target.astype(np.intp), source.astype(np.intp)
        return np.searchsorted(self.used[0], target), np.searchsorted(self.used[1], source)


@dataclass(frozen=True)
class _Map:
    """The linear map from views to components, `(dim, rank)`, its shift `(rank,)`, and the views' centres."""

    weight: Floats
    bias: Floats
    centres: dict[str, Floats]


@dataclass(frozen=True)
class _Found:
    """The map of some rows, found before. targets, sources: their vectors, as long as anybody holds them; ids: of the axes."""

    targets: weakref.ref[Floats]
    sources: weakref.ref[Floats]
    ids: tuple[tuple[str, ...], ...]
    views: Views
    map: _Map

    def is_of(self, training_data: TrainingData) -> bool:
        train = training_data.train
        return (
            self.targets() is training_data.targets
            and self.sources() is training_data.sources
            and self.ids == (train.target_ids, train.source_ids)
            and self.views == training_data.views
        )


_last: list[_Found] = []
"""The map that was found last: a run fits its student dozens of times on other labels of the same rows."""


def describe(training_data: TrainingData, used: tuple[Codes, Codes] | None = None) -> Items:
    """Return rows of both axes in principal components over all items; used: codes of those that are returned, None = all."""
    views, pointwise = training_data.views, not training_data.targets.shape[1]
    found = next((one.map for one in _last if one.is_of(training_data)), None)
    if found is None:
        found = _map_of(training_data)
        train = training_data.train
        both = weakref.ref(training_data.targets), weakref.ref(training_data.sources)
        _last[:] = [_Found(*both, (train.target_ids, train.source_ids), views, found)]
    weight, bias, centres = found.weight, found.bias, found.centres
    target, source = used or tuple(
        np.arange(len(axis), dtype=np.int32) for axis in (training_data.targets, training_data.sources)
    )
    sources, source_alike = _described(training_data.sources, source, views, centres, weight, bias)
    if pointwise:
        return Items(used, np.zeros((len(target), 0), np.float32), sources, {}, {}, weight, bias, centres)
    targets, target_alike = _described(training_data.targets, target, views, centres, weight, bias)
    return Items(used, targets, sources, target_alike, source_alike, weight, bias, centres)


def _map_of(training_data: TrainingData) -> _Map:
    """Return the map of all rows to their principal components."""
    views, pointwise = training_data.views, not training_data.targets.shape[1]
    axes = (
        [training_data.sources]
        if pointwise or training_data.targets is training_data.sources
        else [training_data.targets, training_data.sources]
    )
    ids = (
        [training_data.train.source_ids]
        if len(axes) == 1
        else [training_data.train.target_ids, training_data.train.source_ids]
    )
    # Summed in the order of ids: that of the rows decides nothing, not even in the last bit.
    order = np.argsort([item for part in ids for item in part], kind="stable")
    centres: dict[str, Floats] = {}
    weight, bias, rank = np.zeros((views.dim, 0), np.float32), np.zeros(0, np.float32), 0
    for name in views.names:
        raw = [views.take(axis, name) for axis in axes]
        if name in views.similar:
            centres[name] = centre_of(name, raw)
        most = POINTWISE if pointwise else ALONE if len(views.names) == 1 else COMPONENTS.get(name, ALONE)
        size = WEIGHT.get(name, 1.0) / np.sqrt(len(views.names))
        own, shift = _components(raw, centres.get(name), order, most, size)
        weight = np.concatenate([weight, np.zeros((views.dim, own.shape[1]), np.float32)], axis=1)
        weight[views.place(name), rank:] = own
        bias = np.concatenate([bias, shift])
        rank += own.shape[1]
    return _Map(weight, bias, centres)


def _described(
    axis: Floats, rows: Codes, views: Views, centres: Mapping[str, Floats], weight: Floats, bias: Floats
) -> tuple[Floats, dict[str, Floats]]:
    """Return the components `(n, rank)` of rows of an axis, and by view their vectors of length 1.

    Calculated in blocks of the whole axis: the last bits of a row are then the same whichever rows are asked for.
    """
    found = np.empty((len(rows), weight.shape[1]), np.float32)
    alike = {name: np.empty((len(rows), centre.shape[0]), np.float32) for name, centre in centres.items()}
    for at in ranges(len(axis), AT_ONCE):
        first, last = np.searchsorted(rows, [at.start, at.stop])
        if first == last:
            continue
        part = rows[first:last] - at.start
        parts = {name: views.take(axis[at], name) for name in views.names}
        parts |= {name: unit(parts[name], centre) for name, centre in centres.items()}
        found[first:last] = (np.concatenate(list(parts.values()), axis=1) @ weight + bias)[part]
        for name, vectors in alike.items():
            vectors[first:last] = parts[name][part]
        release(axis)
    return found, alike


def _components(
    parts: Sequence[Floats], centre: Floats | None, order: npt.NDArray[np.intp], most: int, size: float
) -> tuple[Floats, Floats]:
    """Return the linear map `(d, k)` and shift `(k,)` to at most `most` principal components of mean squared length size^2.

    parts: rows one after the other, summed in this order, block by block: a million rows are never held. centre: what is taken
    off before they are scaled to length 1; None = they are taken as they are.
    """
    blocks = [order[at] for at in ranges(len(order), AT_ONCE)]
    width = parts[0].shape[1]
    mean = np.zeros(width)
    for block in blocks:
        mean += _rows(parts, centre, block).mean(axis=0, dtype=np.float64) * (len(block) / len(order))
    covariance = np.zeros((width, width))
    for block in blocks:
        centred = _rows(parts, centre, block) - mean
        covariance += centred.T @ centred
    covariance /= len(order)
    values, axes = linalg.eigh(covariance)
    kept = np.flatnonzero(values > max(float(values[-1]), 0.0) * 1e-7)[::-1][:most]
    if not len(kept):
        return np.zeros((width, 0), np.float32), np.zeros(0, np.float32)
    found = axes[:, kept] * (size / np.sqrt(float(values[kept].sum())))
    return found.astype(np.float32), (-mean @ found).astype(np.float32)


def _rows(parts: Sequence[Floats], centre: Floats | None, places: npt.NDArray[np.intp]) -> Floats:
    """Return the rows at these places of parts that stand one after the other."""
    first = parts[0]
    if len(parts) == 1:
        found = rows_of(first, places)
    else:
        found = np.empty((len(places), first.shape[1]), first.dtype)
        inside = places < len(first)
        found[inside] = rows_of(first, places[inside])
        found[~inside] = rows_of(parts[1], places[~inside] - len(first))
    return found if centre is None else unit(found, centre)
