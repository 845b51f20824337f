"""Safe reading of state dicts from other projects' files, without running code in them."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from four_d.errors import UserError

NESTS = ("model", "state_dict")
"""Keys of the state dict in training checkpoints."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
WRAPPER = "module."
"""Prefix that data-parallel training adds to every name."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read names and tensors of a ``.safetensors`` file (or sharded, by its index), a ``.pt``, or a folder of either.

    Pickles are read with ``weights_only``; a state dict may be nested under ``model`` or ``state_dict``.

    Raises:
        UserError: no such file, another kind of file, a damaged one, one with code in it, or no state dict.

    """
    file = _file(Path(path))
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.name.endswith(".safetensors.index.json"):
        return _sharded(file)
    if file.suffix in PICKLES:
        return _state_dict(_pickle(file), file)
    raise UserError(f"{file} is not a weight file; give a .safetensors, its .index.json, or a {'/'.join(PICKLES)}")


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path} does not exist; give an existing file")
    candidates = [path / name for name in (INDEX, WEIGHTS) if (path / name).is_file()]
    candidates = candidates or sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *PICKLES))
    if not candidates or (len(candidates) > 1 and candidates[0].name != INDEX):
        count = f"{len(candidates)} weight files" if candidates else "no weight file"
        raise UserError(f"{path} is a folder with {count}; name the file")
    return candidates[0]


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is truncated or not a safetensors file ({_short(error)}); fetch it again") from error


def _sharded(index: Path) -> dict[str, Tensor]:
    """Read all tensors of a sharded file; every name must be in the shard that the index gives."""
    try:
        shard_of = cast(dict[str, str], json.loads(index.read_text())["weight_map"])
        names = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weights: it has no weight_map; fetch it again") from error
    state: dict[str, Tensor] = {}
    for name in names:
        shard = index.parent / Path(name).name
        if not shard.is_file():
            raise UserError(f"{index} names the shard {name}, which is not beside it; fetch it as well")
        state |= _safetensors(shard)
    missing = [name for name in shard_of if name not in state]
    if missing:
        raise UserError(
            f"{index} names {missing[0]}, which {shard_of[missing[0]]} does not hold; fetch the shards again"
        )
    return state


def _pickle(file: Path) -> object:
    try:
        is_zip = zipfile.is_zipfile(file)
        with warnings.catch_warnings():
            # torch warns of pickles of another protocol than its own, and reads them all the same
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return cast(object, torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip))
    except pickle.UnpicklingError as error:
        forbidden = re.search(
            r"(?:Unsupported (?:global|class|operand)\S*|GLOBAL|Trying to \w+)\s*(.{0,80})", str(error)
        )
        if forbidden is None:
            raise UserError(f"{file} is truncated or not a PyTorch file; fetch it again") from error
        raise UserError(
            f"{file} holds code or objects besides tensors ({_short(forbidden[0])}), none of which is run; "
            "get a .safetensors of it, or save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is truncated or not a PyTorch file ({_short(error)}); fetch it again") from error


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        nest = next((name for name in NESTS if isinstance(content.get(name), Mapping)), None)
        if nest is None:
            break
        content = cast(Mapping[str, object], content)[nest]
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{file} holds {kind}, not a state dict; save model.state_dict() (also under 'model') instead")
    items = cast(Mapping[object, object], content)
    for name, value in items.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise UserError(
                f"{file} is not a state dict: {name!r} in it is a {type(value).__name__}, not a tensor; "
                "save model.state_dict() (also under 'model') instead"
            )
    state = cast(dict[str, Tensor], dict(items))
    wrapped = all(name.startswith(WRAPPER) for name in state)
    return {name.removeprefix(WRAPPER): value for name, value in state.items()} if wrapped else state


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text[:100] if text else type(error).__name__
