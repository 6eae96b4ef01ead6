"""A device in name only: tensors that say `claimed:0`, are refused beside those of the CPU, and are computed there.

Tests have no GPU. What breaks on one first is a tensor that was made or left on the CPU, and `.numpy()` of one that was not: both
fail here as they do there, and values stay those of the CPU. Kernels, streams and memory are not seen.
As a script: `claimed.py COMMANDS.json`, lists of arguments of nncift.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as backends
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "claimed"
HERE = torch.device("cpu")
MOVES = ("aten::_to_copy", "aten::copy_", "aten::to")
INDEXED = ("aten::index", "aten::_index_put_impl_", "aten::index_put_", "aten::_unsafe_index")
"""Operations whose indices may lie on the CPU, on a GPU too."""


class Claimed(torch.Tensor):
    """A tensor of the claimed device. held: the one on the CPU that it stands for."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Claimed:
        given = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        make: Any = torch.Tensor._make_wrapper_subclass
        found: Claimed = make(cls, held.size(), device=torch.device(NAME, 0), **given)
        found.held = held
        return found

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class Claiming(TorchDispatchMode):
    """Inside, tensors can be made on the claimed device and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the CPU. Raises RuntimeError where tensors of both devices meet in it."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    claimed = [tensor for tensor in tensors if isinstance(tensor, Claimed)]
    name = func._schema.name
    plain = [tensor for tensor in tensors if not isinstance(tensor, Claimed) and tensor.dim()]
    if claimed and plain and name not in (*MOVES, *INDEXED):
        raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
    devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    there = devices[-1].type == NAME if devices else bool(claimed)
    if name == "aten::copy_":
        there = isinstance(args[0], Claimed)

    def inside(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return HERE
        return leaf.held if isinstance(leaf, Claimed) else leaf

    # What is changed in place, or given back as it came, stays the same tensor.
    known = {id(tensor.held): tensor for tensor in claimed}

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, Claimed):
            return leaf
        found = known.get(id(leaf))
        return Claimed(leaf) if found is None else found

    done = func(*tree_map(inside, args), **tree_map(inside, dict(kwargs)))
    return tree_map(outside, done) if there else done


@contextmanager
def device() -> Iterator[str]:
    """Give the name of the device, for this process once."""
    backends._setup_privateuseone_for_python_backend(NAME)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    with Claiming():  # type: ignore[no-untyped-call]
        yield NAME


def main() -> None:
    """Run commands on the claimed device, then try what must fail there; print what came of it as JSON."""
    from nncift.cli import main as cli
    from nncift.models import causal_lm as lm
    from nncift.models import encoders as encode
    from nncift.models import loading

    known: Callable[[str], str] = loading.resolve_device
    for module in (loading, lm, encode):
        module.resolve_device = lambda name: name if name == NAME else known(name)  # type: ignore[attr-defined]
    codes = []
    with device():
        for command in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            sys.argv = ["nncift", *command, "--device", NAME, "--quiet"]
            try:
                cli.main()
            except SystemExit as ended:
                codes.append(ended.code)
        there, here = torch.ones(3, device=NAME), torch.ones(3)
        refused = {}
        forbidden: dict[str, Callable[[], Any]] = {"mixed": lambda: there + here, "as an array": there.numpy}
        for what, act in forbidden.items():
            try:
                act()
            except RuntimeError as error:
                refused[what] = type(error).__name__
    print(json.dumps({"codes": codes, "refused": refused}))


if __name__ == "__main__":
    main()
