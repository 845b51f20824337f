"""State dicts out of files of others, without running anything that is in them."""

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
"""Keys under which training checkpoints keep the state dict."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
WRAPPER = "module."
"""What data-parallel training puts before every name."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a ``.safetensors`` file (also in parts, by its index), a ``.pt``, or a folder of either.

    Pickles are read with ``weights_only``; a state dict under ``model`` or ``state_dict`` is found.

    Raises:
        UserError: no such file, another kind of file, a damaged one, one with code in it, or no state dict.

    """
    file = _file(Path(path))
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.name.endswith(".safetensors.index.json"):
        return _parts(file)
    if file.suffix in PICKLES:
        return _state_dict(_pickle(file), file)
    raise UserError(f"{file} is not a weight file; give a .safetensors, its .index.json, or a {'/'.join(PICKLES)}")


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path} does not exist; give a file that is there")
    found = [path / name for name in (INDEX, WEIGHTS) if (path / name).is_file()]
    found = found or sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *PICKLES))
    if not found or (len(found) > 1 and found[0].name != INDEX):
        count = f"{len(found)} weight files" if found else "no weight file"
        raise UserError(f"{path} is a folder with {count}; name the file")
    return found[0]


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is cut short or no safetensors file ({_short(error)}); fetch it again") from error


def _parts(index: Path) -> dict[str, Tensor]:
    """All tensors of a file that was split; every name must be where the index says."""
    try:
        places = cast(dict[str, str], json.loads(index.read_text())["weight_map"])
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights: it has no weight_map; fetch it again") from error
    state: dict[str, Tensor] = {}
    for name in names:
        part = index.parent / Path(name).name
        if not part.is_file():
            raise UserError(f"{index} names the part {name}, which is not beside it; fetch it as well")
        state |= _safetensors(part)
    lost = [name for name in places if name not in state]
    if lost:
        raise UserError(f"{index} names {lost[0]}, which {places[lost[0]]} does not hold; fetch the parts again")
    return state


def _pickle(file: Path) -> object:
    try:
        whole = zipfile.is_zipfile(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return cast(object, torch.load(file, map_location="cpu", weights_only=True, mmap=whole))
    except pickle.UnpicklingError as error:
        forbidden = re.search(
            r"(?:Unsupported (?:global|class|operand)\S*|GLOBAL|Trying to \w+)\s*(.{0,80})", str(error)
        )
        if forbidden is None:
            raise UserError(f"{file} is cut short or no PyTorch file; fetch it again") from error
        raise UserError(
            f"{file} holds code or objects besides tensors ({_short(forbidden[0])}), and none of it is run; "
            "get a .safetensors of it, or save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is cut short or no PyTorch file ({_short(error)}); fetch it again") from error


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
                f"{file} is no state dict: {name!r} in it is a {type(value).__name__}, not a tensor; "
                "save model.state_dict() (also under 'model') instead"
            )
    state = cast(dict[str, Tensor], dict(items))
    wrapped = all(name.startswith(WRAPPER) for name in state)
    return {name.removeprefix(WRAPPER): value for name, value in state.items()} if wrapped else state


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text[:100] if text else type(error).__name__
