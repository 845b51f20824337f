"""Weights of others to our export folder, and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from four_d import checkpoints, config
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import TimmPatchConfig
from four_d.checkpoints import CARD, CONFIG, WEIGHTS, ModelInfo
from four_d.errors import UserError
from four_d.formats.folders import new_folder
from four_d.model import ModelConfig
from four_d.weights import dinov2, page_4d, vggt
from four_d.weights.adapter import Adapter, State
from four_d.weights.reading import read_state
from four_d.weights.table import KNOWN, AdapterKind, KnownWeights

USUAL_CELLS = 37
"""Patches along a side of the square images that VGGT is trained on."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How to read one family of weight files."""

    adapter: Adapter
    infer: Callable[[State], ModelConfig]
    frames: int
    """The most frames these weights saw at once in training."""
    partial: bool = False
    """They are a part of a model: the rest starts anew, from a fixed seed."""


KINDS: dict[AdapterKind, Kind] = {
    "vggt": Kind(adapter=vggt.ADAPTER, infer=vggt.infer, frames=24),
    "page_4d": Kind(adapter=page_4d.ADAPTER, infer=page_4d.infer, frames=16),
    "dinov2": Kind(adapter=dinov2.ADAPTER, infer=dinov2.infer, frames=1, partial=True),
}


def convert(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    configs: Sequence[str] = (),
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an export folder (``model.safetensors``, ``config.json``, a card) that `checkpoints.read` reads.

    Args:
        kind: of `KINDS`.
        source: what `read_state` reads.
        out: is made, whole or not at all; an earlier export there is replaced.
        configs: config files and key=value that give the model; none: sizes by the tensors' shapes.
        name: which of `KNOWN` it is, for source and licence on the card; None: the kind's first, the strictest.
        overwrite: replace whatever ``out`` holds.

    Raises:
        UserError: unreadable source, no such kind or name, a tensor without counterpart or of another shape, or a
            folder that cannot be written.

    """
    way, known = _kind(kind), _known(kind, name)
    state = vggt.whole(read_state(source))
    model = _model(configs) if configs else way.infer(state)
    weights = way.adapter.to_ours(state, target_of(way, model), str(source))
    info = ModelInfo(
        model=model,
        image_size=_image_size(model),
        frames=way.frames,
        name=known.name if name else kind,
        trained_on={f"{known.name} weights": known.licence},
    )
    out = Path(out)
    with new_folder(out, "export", overwrite=overwrite) as folder:
        _save(weights, folder / WEIGHTS)
        checkpoints.write_info(folder / CONFIG, info)
        (folder / CARD).write_text(
            _card(info, known, way, Path(source), weights, inferred=not configs, named=bool(name))
        )
    return out


def convert_back(kind: str, source: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model of ours (what `checkpoints.read` reads) as one safetensors file in the kind's names.

    Raises:
        UserError: no such kind, no model, a weight that has no counterpart there, ``out`` is no name of a safetensors
            file, or exists and ``overwrite`` does not say so.

    """
    way, out = _kind(kind), Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out} is not named as a safetensors file; call it {out.name}.safetensors")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another name, or say --overwrite")
    state = way.adapter.to_theirs(checkpoints.read(source).model.state_dict(), str(source))
    part = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        _save(state, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _save(weights: State, file: Path) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    file.chmod(0o644)  # the library leaves it readable to the owner alone


def target_of(kind: Kind, model: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes of the model's weights, and real values if some of them stay."""
    if not kind.partial:
        with torch.device("meta"):
            return model.build().state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.build().state_dict()


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of weights; choose one of {', '.join(KINDS)}")
    return KINDS[kind]


def _known(kind: str, name: str | None) -> KnownWeights:
    """The entry of that name, or the kind's first."""
    fitting = [each for each in KNOWN if each.kind == kind]
    chosen = [each for each in fitting if name in (None, each.name)]
    if not chosen:
        raise UserError(f"{name!r} is not among the {kind} weights; choose one of {', '.join(e.name for e in fitting)}")
    return chosen[0]


def _model(configs: Sequence[str]) -> ModelConfig:
    files, overrides = [c for c in configs if "=" not in c], [c for c in configs if "=" in c]
    plain = config.load_plain(files, overrides)
    return config.build(ModelConfig, plain.get("model"), "config.model")


def _image_size(model: ModelConfig) -> tuple[int, int]:
    """The square images that the encoder stores positions for; without an encoder, as many patches as VGGT's."""
    patches = model.backbone.patches if isinstance(model.backbone, AlternatingConfig) else None
    stored = patches.image_size if isinstance(patches, TimmPatchConfig) else None
    side = USUAL_CELLS * model.backbone.patch_size if stored is None else stored
    return side, side


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(
    info: ModelInfo, known: KnownWeights, kind: Kind, source: Path, weights: State, *, inferred: bool, named: bool
) -> str:
    """The model card: whose weights they are, what may be done with them, what was guessed."""
    count = sum(value.numel() for value in weights.values())
    fresh = sorted(
        {each.reason for each in kind.adapter.fresh if any(kind.adapter.is_fresh(n) is each for n in weights)}
    )
    dropped = [f"`{each.theirs}` was left out: {each.reason}." for each in kind.adapter.dropped]
    doubt = "" if named else "Which weights they are was not said; they are taken for the strictest of their kind. "
    sha256 = _sha256(source)
    digest = "" if sha256 is None else f" (sha256 {sha256})"
    sizes = (
        "Sizes are read off the tensors' shapes; what shapes do not tell (attention heads of encoder and camera head, "
        "rounds of the dense heads, iterations) is as in VGGT-1B."
        if inferred
        else "Sizes are those of the configs given."
    )
    return f"""---
library_name: four_d
tags: [video, depth, camera-pose, 4d-reconstruction]
---
# {info.name}

{count / 1e6:.2f} M parameters, converted by four_d {info.four_d} from `{source.name}`{digest}.

## Source and licence

{doubt}{known.what}. Published by {known.source}. Licence of the weights: {known.licence}.

## Conversion

{sizes} {" ".join(dropped)} {" ".join(f"Not in the file, so new: {reason}." for reason in fresh)}
"""
