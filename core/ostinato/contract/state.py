"""What a plugin remembers, as JSON and tensors: neither needs a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PLACE = "ostinato.tensor"  # the key of a mapping that stands where a tensor stood


def parted(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` without its tensors, copies of which go into ``tensors`` under names of their own.

    Raises TypeError for what neither JSON nor safetensors can hold as it is.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_complex() or value.is_quantized:
            raise TypeError(f"a {value.dtype} tensor in the layout {value.layout}")
        place = f"{name}.{len(tensors)}"
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {PLACE: place}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r}, which is no text")
        return {key: parted(part, name, tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [parted(part, name, tensors) for part in value]
    return value


def whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`parted` took apart; every tensor on the CPU, a tuple as a list."""
    if isinstance(value, list):
        return [whole(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {PLACE}:
        return tensors[value[PLACE]]
    return {key: whole(part, tensors) for key, part in value.items()}
