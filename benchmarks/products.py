"""The floor of a training step: its matrix products alone, with the tensors that they had; needs nothing but torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Recorded(TorchDispatchMode):
    """Keeps every matrix product of what runs under it, forward and backward, with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS or name.startswith("_scaled_dot_product"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def replay(self) -> None:
        """All of them again, one after the other."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)
