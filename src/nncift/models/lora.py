"""What LESS trains in a language model: LoRA matrices put in through peft, or every parameter (method.md 3.3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.core.seeds import derive
from nncift.core.texts import first_line
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.adapters import check_adapter

if TYPE_CHECKING:
    import torch
    from torch import nn

ATTENTION = frozenset(
    "q_proj k_proj v_proj o_proj out_proj qkv_proj query_key_value Wqkv c_attn c_proj query key value dense wq wk wv wo".split()
)
"""Names of the projections to query, key, value and output, inside modules whose name holds `attn` or `attention`."""

ALL_LINEAR = ("all-linear",)
"""In the place of names: all linear layers but the one that gives the logits."""


@dataclass(frozen=True)
class LoraShape:
    """Size and place of LoRA matrices.

    targets: None = the attention projections, found by name; ALL_LINEAR = all linear layers but the one that gives the logits;
    else ends of modules' names.
    """

    rank: int = 128
    alpha: float = 512
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UsageError("LoRA needs a rank of at least 1, alpha above 0 and a dropout of at least 0 and below 1")


@dataclass(frozen=True)
class LoraLayerParts:
    """A linear layer with LoRA: `W x + scale B A x`. matrices: A, then B, by parameter name."""

    module: Any
    matrices: Mapping[str, torch.Tensor]
    scale: float


class Trainable:
    """A language model and those of its parameters that train: LoRA matrices, or all.

    Outside `at` adapters are off, so that the model is the plain one to everybody else.
    """

    def __init__(self, model: nn.Module, adapted: Any | None, names: frozenset[str] | None = None) -> None:
        self.model = model
        self._adapted = adapted
        kept = [
            (name, value)
            for name, value in model.named_parameters()
            if (adapted is None or value.requires_grad) and (names is None or name in names)
        ]
        self.parameters: dict[str, nn.Parameter] = {plain_name(name): value for name, value in kept}
        model.requires_grad_(False).eval()
        self._enable(on=False)

    @classmethod
    def whole(cls, model: nn.Module, targets: tuple[str, ...] | None = None) -> Trainable:
        """Train every parameter, or the weights of some modules: ALL_LINEAR, or ends of their names.

        Raises UsageError where no module is meant.
        """
        if targets is None:
            return cls(model, None)
        ends = linear_modules(model) if targets == ALL_LINEAR else targets
        names = frozenset(
            f"{name}.weight"
            for name, module in model.named_modules()
            if name.endswith(ends) and isinstance(getattr(module, "weight", None), _tensor_type())
        )
        if not names:
            raise UsageError(f"no module of this model has a weight and a name that ends in {' or '.join(targets)}")
        return cls(model, None, names)

    @classmethod
    def with_lora(cls, model: nn.Module, shape: LoraShape, seed: int) -> Trainable:
        """Put fresh LoRA matrices into the model. Raises ResourceError without peft, UsageError without a place."""
        peft = import_peft()
        from transformers.pytorch_utils import Conv1D

        linear = linear_modules(model) if shape.targets == ALL_LINEAR else shape.targets
        places = attention_modules(model) if linear is None else list(linear)
        transposed = any(isinstance(m, Conv1D) and name.endswith(tuple(places)) for name, m in model.named_modules())
        config = peft.LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=places,
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
        )
        with seeded(model, derive(seed, "lora")):
            try:
                with _quiet():
                    adapted = peft.get_peft_model(model, config)
            except ValueError as error:
                raise UsageError(f"LoRA cannot be put into this model: {error}") from error
        return cls(model, adapted)

    @classmethod
    def with_adapter(cls, model: nn.Module, folder: Path) -> Trainable:
        """Put the adapter of a peft folder into the model. Raises ResourceError without peft, DataError for a bad one."""
        peft = import_peft()
        try:
            check_adapter(folder, [name for name, _ in model.named_modules()])
            with _quiet():
                adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True, low_cpu_mem_usage=False)
        except (ResourceError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise DataError(
                f"the LoRA checkpoint {str(folder)!r} does not fit this model: {first_line(error)}"
            ) from error
        return cls(model, adapted)

    def take_adapter(self, folder: Path) -> None:
        """Take over the weights of another peft folder of the same shape. Raises DataError where they do not fit."""
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        if not (folder / "adapter_model.safetensors").is_file():
            raise DataError(f"the LoRA checkpoint {str(folder)!r} has no adapter_model.safetensors")
        try:
            odd: Any = set_peft_model_state_dict(self._adapted, load_peft_weights(str(folder), device="cpu"))
        except RuntimeError as error:
            raise DataError(f"the LoRA checkpoint {str(folder)!r} has another shape than the first one") from error
        absent = {plain_name(name) for name in odd.missing_keys} & set(self.parameters)
        if odd.unexpected_keys or absent:
            name = sorted(absent or odd.unexpected_keys)[0]
            raise DataError(f"the LoRA checkpoint {str(folder)!r} names other parameters than the first one: {name}")

    def renew(self, seed: int) -> None:
        """Draw fresh LoRA matrices, which change nothing before they are trained; a model that trains whole stays as it is."""
        if self._adapted is None:
            return
        from peft.tuners.lora import LoraLayer

        with seeded(self.model, seed):
            for module in self.model.modules():
                if isinstance(module, LoraLayer):
                    layer: Any = module
                    layer.reset_lora_parameters("default", init_lora_weights=True)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trained weights, on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights by name. Raises DataError where names or shapes differ."""
        if set(weights) != set(self.parameters):
            odd = sorted(set(weights) ^ set(self.parameters))[0]
            raise DataError(f"a warm-up checkpoint and the model do not name the same parameters: {odd}")
        for name, value in self.parameters.items():
            value.data.copy_(weights[name])

    @contextmanager
    def at(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Compute with these weights, adapters on."""
        self.load(weights)
        self._enable(on=True)
        try:
            yield
        finally:
            self._enable(on=False)

    @contextmanager
    def merged_at(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Compute with these weights, LoRA's product added to the layers' own where their precision holds the sum.

        Half precision would round small updates away, and packed weights cannot take them: there adapters are on.
        """
        layers = self.lora_layers()
        bases = [parts.module.base_layer for parts in (layers or {}).values()]
        if not bases or any(base.weight.dtype.itemsize < 4 or not base.weight.is_floating_point() for base in bases):
            with self.at(weights):
                yield
            return
        self.load(weights)
        assert layers is not None
        own = [base.weight for base in bases]
        try:
            for parts, base in zip(layers.values(), bases, strict=True):
                _add_product(parts, base)
            yield
        finally:
            for base, weight in zip(bases, own, strict=True):
                base.weight = weight

    def lora_layers(self) -> dict[str, LoraLayerParts] | None:
        """Return the layers with LoRA by name; None where anything else is trained, such as magnitudes (DoRA) or biases."""
        if self._adapted is None:
            return None
        from peft.tuners.lora import Linear, LoraLayer

        found, known = {}, set()
        names = {id(value): name for name, value in self.parameters.items()}
        for name, module in self.model.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            layer: Any = module
            if not _is_plain(layer, Linear):
                return None
            both = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            if not all(id(matrix) in names for matrix in both):
                return None
            matrices = {names[id(matrix)]: matrix for matrix in both}
            known |= set(matrices)
            found[name] = LoraLayerParts(layer, matrices, float(layer.scaling["default"]))
        return found if found and known == set(self.parameters) else None

    def _enable(self, *, on: bool) -> None:
        if self._adapted is not None:
            layers = self._adapted.base_model
            (layers.enable_adapter_layers if on else layers.disable_adapter_layers)()
            # peft turns gradients on with its adapters; they are asked for where they are wanted.
            self.model.requires_grad_(False)


def _is_plain(layer: Any, linear: type) -> bool:
    """Tell whether a layer of peft is a linear one with one adapter of two matrices and nothing else."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    base = getattr(layer, "base_layer", None)
    alone = list(layer.lora_A) == list(layer.lora_B) == ["default"]
    more = getattr(layer, "lora_variant", None) or getattr(layer, "use_dora", {}).get("default", False)
    biased = alone and (layer.lora_A["default"].bias is not None or layer.lora_B["default"].bias is not None)
    return isinstance(layer, linear) and isinstance(base, Linear | Conv1D) and alone and not more and not biased


def _add_product(parts: LoraLayerParts, base: Any) -> None:
    """Let a layer compute with `W + scale B A`, in a weight of its own; with W itself where B is 0, as before any training."""
    import torch

    _, b = parts.matrices.values()
    if not b.detach().any():
        return
    product = parts.module.get_delta_weight("default").detach()
    base.weight = torch.nn.Parameter(product.to(base.weight.dtype).add_(base.weight), requires_grad=False)


def attention_modules(model: nn.Module) -> list[str]:
    """Return the names of the attention's projections. Raises UsageError where none is known by name."""
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ATTENTION
        and ("attn" in name.rpartition(".")[0].lower() or "attention" in name.rpartition(".")[0].lower())
        and isinstance(getattr(module, "weight", None), _tensor_type())
    ]
    if not found:
        raise UsageError(
            "no attention projections were found by name in this model; name the modules for LoRA with the option targets, "
            "or train all parameters with lora=False"
        )
    return found


def linear_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all linear layers but the one that gives the logits. Raises UsageError where there are none."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    found = tuple(
        name for name, module in model.named_modules() if isinstance(module, Linear | Conv1D) and module is not head
    )
    if not found:
        raise UsageError("this model has no linear layers for LoRA; train all parameters instead (--method whole)")
    return found


def import_peft() -> Any:
    """Return peft. Raises ResourceError naming the extra where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ResourceError(
            "LESS with LoRA needs peft: pip install peft; or take all parameters of a small model with lora=False"
        ) from error
    return peft


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw from a seed inside, and leave the process's random state as it was."""
    import torch

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _tensor_type() -> type:
    import torch

    return torch.Tensor


def plain_name(name: str) -> str:
    """Return a parameter's name without what peft and wrappers put around it."""
    return name.removeprefix("module.").removeprefix("base_model.model.").replace(".default", "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what peft's use of older transformers names would warn users of, who cannot change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
