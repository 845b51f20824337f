"""Config files and their bases: an overlay names them in ``base``, at its head, and is merged over them.

``base: [dept3r | unified, overlays/mini]`` means one of the first two, and the third. An overlay given first loads all
its bases, the first of several choices. Where other files are given before it, each base must be among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from four_d.errors import UserError, first_line
from four_d.schema import Plain

BASE = "base"
"""Key of a file's bases."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One config file, without its ``base``."""

    name: str
    """Name as given by the user, or by the file that names it as its base."""
    path: Path
    base: tuple[tuple[str, ...], ...]
    """Base configs to merge beneath it: one of each tuple."""
    content: Plain
    shipped: bool


def stack(names: Sequence[str | Path]) -> list[Layer]:
    """Read config files and, beneath the first, its bases, in the order of merging.

    A first file of the user's own without ``base`` satisfies any base of the others.

    Raises:
        UserError: a file that cannot be read; a base that is missing, comes later or leads back to its own file.

    """
    layers: list[Layer] = []
    for index, name in enumerate(names):
        layer = read(name)
        if index == 0:
            layers = _bring(layer, [])
            continue
        if layers[0].shipped:
            _check_below(layer, layers, names[index + 1 :])
        layers.append(layer)
    return layers


def _bring(layer: Layer, below: list[Layer], above: tuple[Path, ...] = ()) -> list[Layer]:
    """Append to ``below`` a file, after those of its bases that are not there yet."""
    if layer.path in above:
        raise UserError(f"config {layer.name} lies on itself; mend {BASE} in {above[-1]}")
    for choices in layer.base:
        options = [read(choice, beside=layer.path) for choice in choices]
        if not {each.path for each in options} & {each.path for each in below}:
            below = _bring(options[0], below, (*above, layer.path))
    return [*below, layer]


def _check_below(layer: Layer, below: Sequence[Layer], later: Sequence[str | Path]) -> None:
    """Raise UserError if a file given after others misses its base, or is a complete system without one."""
    system = layer.shipped and not layer.base and "model" in layer.content
    if system and any("model" in each.content for each in below):
        raise UserError(f"config {layer.name} is a system of its own, which lies on nothing; give it first")
    paths = {each.path for each in below}
    for choices in layer.base:
        options = [read(choice, beside=layer.path) for choice in choices]
        if paths & {each.path for each in options}:
            continue
        needed, there = " or ".join(each.name for each in options), " ".join(each.name for each in below)
        after = [name for name in later if find(name).resolve() in {each.path for each in options}]
        if after:
            raise UserError(f"config {layer.name} lies on {needed}; give {after[0]} before it")
        beneath = f", or {options[0].name} before it" if options[0].base else ""
        raise UserError(
            f"config {layer.name} lies on {needed}, not on {there}; give {layer.name} first, which brings what it "
            f"lies on{beneath}"
        )


def read(name: str | Path, beside: Path | None = None) -> Layer:
    """Read one config file; a name in another's ``base`` is searched beside that one first.

    Raises:
        UserError: it does not exist, is no YAML, or holds no mapping of keys.

    """
    shipped = shipped_configs()
    near = None if beside is None else beside.parent / name
    path = near if near is not None and near.is_file() else shipped.get(str(name)) if near is not None else None
    path = (path or find(name)).resolve()
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config {name}: {first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"config {name} is not YAML: {' '.join(str(error).split())}") from error
        raise
    if not isinstance(plain, dict):
        raise UserError(f"config {name} holds {type(plain).__name__}; write a mapping of keys")
    content = cast(Plain, plain)
    base = content.pop(BASE, [])
    listed = [base] if isinstance(base, str) else base
    if not isinstance(listed, list) or not all(isinstance(each, str) and each for each in cast(list[object], listed)):
        raise UserError(f"config {name}: {BASE} is {base!r}; list what the file lies on, as [vggt, overlays/mini]")
    choices = tuple(tuple(part.strip() for part in each.split("|")) for each in cast(list[str], listed))
    ours = path in {each.resolve() for each in shipped.values()}
    return Layer(name=str(name), path=path, base=choices, content=content, shipped=ours)


def find(path: str | Path) -> Path:
    """Find the config file of a path or of a shipped config's name."""
    if not str(path):
        raise UserError("the name of a config is empty; give a file or a shipped config, as vggt")
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_configs()
    if str(path) in shipped:
        return shipped[str(path)]
    near = difflib.get_close_matches(str(path), shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped configs: {', '.join(shipped)}"
    raise UserError(f"config {path} does not exist; {hint}")


def shipped_configs() -> dict[str, Path]:
    """Name → file of the configs shipped with the package (or in the working copy)."""
    package = Path(__file__).parent
    root = next((r for r in (package / "configs", package.parent / "configs") if r.is_dir()), None)
    if root is None:
        return {}
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}
