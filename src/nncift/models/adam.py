"""The update that Adam would make from one row's gradient (method.md 3.3; LESS, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nncift.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch

Direction = Literal["corrected", "as-published", "none"]
BETAS, EPSILON = (0.9, 0.999), 1e-8


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

    def direction(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """Return the directions of a parameter for gradients `(n, size)`, float32."""
        import torch

        first, second = self._moments(name, gradients.shape[1])
        below = torch.addcmul(second, gradients, gradients, value=self._new[1])
        if self._form == "as-published":
            below.add_(EPSILON).sqrt_()
        else:
            below.sqrt_().add_(EPSILON)
        return torch.add(first, gradients, alpha=self._new[0]).div_(below)

    def _moments(self, name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the state adds to numerator and denominator, flat and on the device."""
        import torch

        if name not in self._carried:
            both = []
            for state, share in zip((self._state.first, self._state.second), self._old, strict=True):
                moment = state[name].reshape(-1).float() if name in state else torch.zeros(size)
                both.append(moment.to(self._device) * share)
            self._carried[name] = (both[0], both[1])
        return self._carried[name]
