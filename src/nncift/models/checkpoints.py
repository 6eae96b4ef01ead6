"""Checkpoints: weights and optimiser state by parameter name, our own and those that a user brings (method.md 3.3).

Behind one, `Adam` gives the update that would be made of one row's gradient (LESS, section 3.1).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nncift.core.result_types import JsonObject
from nncift.errors import DataError
from nncift.models.lora import Trainable, plain_name
from nncift.models.training_steps import BETAS, EPSILON
from nncift.storage.atomic import MISMATCH, digest, reporting_full_disk, write_sealed
from nncift.storage.atomic import read_json as read_sealed

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Direction = Literal["corrected", "as-published", "none"]
_FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass
class Checkpoint:
    """Trained weights and the optimiser's state by parameter name.

    learning_rate: mean over the epoch, the checkpoint's weight (eta_c). step: updates so far; 0 and empty moments = a
    model that was never trained.
    """

    weights: Mapping[str, torch.Tensor]
    learning_rate: float = 1.0
    step: int = 0
    first: Mapping[str, torch.Tensor] = field(default_factory=dict)
    second: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, folder: Path, key: str) -> None:
        """Write into a new folder that appears whole or not at all."""
        from safetensors.torch import save_file

        part = folder.with_name(folder.name + ".part")
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
        with reporting_full_disk(folder):
            save_file({name: value.contiguous() for name, value in self.weights.items()}, part / "weights.safetensors")
            state = {f"exp_avg.{name}": value for name, value in self.first.items()}
            state.update({f"exp_avg_sq.{name}": value for name, value in self.second.items()})
            save_file(state, part / "optimizer.safetensors")
        about = {"key": key, "step": self.step, "learning_rate": self.learning_rate}
        write_sealed(part / "checkpoint.json", {**about, "files": {name: digest(part / name) for name in _FILES}})
        part.rename(folder)

    @classmethod
    def load(cls, folder: Path, key: str) -> Checkpoint | None:
        """Read a folder; None where there is none, it belongs to another training, or it is damaged, which the log says."""
        from safetensors.torch import load_file

        try:
            about = read_json(folder / "checkpoint.json")
            if about is None or about["key"] != key:
                return None
            for name, known in about.get("files", {}).items():
                if digest(folder / name) != known:
                    raise ValueError(f"{name}: {MISMATCH}")
        except (DataError, OSError, ValueError, KeyError) as error:
            log.warning("the checkpoint %s is damaged (%s); it is trained again", folder, error)
            return None
        state = load_file(folder / "optimizer.safetensors")
        return cls(
            load_file(folder / "weights.safetensors"),
            float(about["learning_rate"]),
            int(about["step"]),
            _under(state, "exp_avg."),
            _under(state, "exp_avg_sq."),
        )


class Adam:
    """Adam's direction behind a checkpoint's optimiser state, with `m' = b1 m + (1 - b1) g` and `v' = b2 v + (1 - b2) g^2`.

    corrected: `m'_hat / (sqrt(v'_hat) + eps)`, both corrected for bias at the step that would come next. as-published:
    `m' / sqrt(v' + eps)`, as in the code published with LESS. A parameter without state has m = v = 0; from nothing at
    all the corrected direction is Adam's first step, `g / (|g| + eps)`.
    """

    def __init__(self, checkpoint: Checkpoint, form: Direction, device: torch.device) -> None:
        self._form = form
        self._device = device
        self._state = checkpoint
        corrected, steps = form == "corrected", checkpoint.step + 1
        first, second = (1 - beta**steps if corrected else 1.0 for beta in BETAS)
        self._old = (BETAS[0] / first, BETAS[1] / second)
        self._new = ((1 - BETAS[0]) / first, (1 - BETAS[1]) / second)
        self._carried: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The gradient's share in the numerator, its square's in the denominator, epsilon under the root and behind it."""
        under, behind = (EPSILON, 0.0) if self._form == "as-published" else (0.0, EPSILON)
        return (*self._new, under, behind)

    def direction(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """Return the directions of a whole parameter for gradients `(n, size)`, float32."""
        moments = self.moments(name)
        above, below = self._new[0] * gradients, self._new[1] * gradients.square()
        if moments is not None:
            above.add_(moments[0])
            below.add_(moments[1])
        _, _, under, behind = self.shares
        return above.div_(below.add_(under).sqrt_().add_(behind))

    def moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what a parameter's state adds to numerator and denominator, flat and on the device; None where there is none."""
        if name not in self._state.first:
            return None
        if name not in self._carried:
            first, second = (
                (state[name].reshape(-1).float().to(self._device) * share).contiguous()
                for state, share in zip((self._state.first, self._state.second), self._old, strict=True)
            )
            self._carried[name] = (first, second)
        return self._carried[name]


def bring(trainable: Trainable, folders: Sequence[Path]) -> list[Checkpoint]:
    """Read peft adapter folders, one checkpoint each, in order.

    The optimiser's state is taken from `optimizer.safetensors` (`exp_avg.NAME` and `exp_avg_sq.NAME`); a folder without it has
    none, and one with a pickled `optimizer.pt` instead is refused. Weights of checkpoints are the mean
    learning rates since the one before, from `checkpoint.json` or `trainer_state.json`; equal where one has none.
    Raises DataError for an adapter or a state that does not fit the model.
    """
    found: list[Checkpoint] = []
    rates: list[float | None] = []
    for folder in folders:
        trainable.take_adapter(folder)
        weights = trainable.snapshot()
        first, second, step = _state(folder, weights)
        found.append(Checkpoint(weights, 1.0, step, first, second))
        rates.append(_learning_rate(folder, found[-2].step if len(found) > 1 else 0))
    if all(rate is not None and rate > 0 for rate in rates):
        for checkpoint, rate in zip(found, rates, strict=True):
            checkpoint.learning_rate = float(rate or 0.0)
    return found


def content(folder: Path) -> str:
    """Return a hash of what a checkpoint's folder holds for us."""
    names = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "checkpoint.json",
        "trainer_state.json",
    )
    whole = hashlib.sha256()
    for path in (folder / name for name in names):
        if path.is_file():
            whole.update(path.name.encode())
            with path.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:16]


def _state(
    folder: Path, weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Return both moments by name and the number of updates; empty and 0 where the folder holds no state."""
    own, trainer = read_json(folder / "checkpoint.json") or {}, read_json(folder / "trainer_state.json") or {}
    step = int(own.get("step") or trainer.get("global_step") or 0)
    if (folder / "optimizer.safetensors").is_file():
        from safetensors.torch import load_file

        state = load_file(folder / "optimizer.safetensors")
        moments = [
            {plain_name(name): value for name, value in _under(state, start).items()}
            for start in ("exp_avg.", "exp_avg_sq.")
        ]
    elif (folder / "optimizer.pt").is_file():
        raise DataError(
            f"{str(folder / 'optimizer.pt')!r} is a pickle, which nncift never opens; write its moments by parameter name into "
            "optimizer.safetensors (docs/teachers.md shows how), or remove the file to go without them"
        )
    else:
        return {}, {}, 0
    for part in moments:
        wrong = [name for name, value in weights.items() if name not in part or part[name].shape != value.shape]
        if wrong:
            raise DataError(
                f"the optimiser's state in {str(folder)!r} does not fit the adapter: see parameter {wrong[0]}"
            )
    return moments[0], moments[1], max(step, 1)


def _learning_rate(folder: Path, since: int) -> float | None:
    own = read_json(folder / "checkpoint.json")
    if own is not None:
        return float(own["learning_rate"])
    log = (read_json(folder / "trainer_state.json") or {}).get("log_history", [])
    rates = [
        float(entry["learning_rate"]) for entry in log if "learning_rate" in entry and entry.get("step", 0) > since
    ]
    return sum(rates) / len(rates) if rates else None


def _under(state: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def read_json(path: Path) -> JsonObject | None:
    """Read a JSON object; None where there is no file. Raises DataError where it is damaged."""
    if not path.is_file():
        return None
    try:
        found = read_sealed(path)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}; restore or delete it") from error
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} holds no JSON object; restore or delete it")
    return found
