"""Conversion of other projects' weights to our export folder, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from four_d import __version__, checkpoints, config, schema
from four_d.checkpoints import CARD, CONFIG, WEIGHTS, ModelInfo
from four_d.errors import UserError
from four_d.model import ModelConfig
from four_d.outputs import keep_apart, new_file, new_folder
from four_d.state_dicts.adapter import Adapter, State
from four_d.state_dicts.reading import read_state
from four_d.weights import dinov2, page_4d, vggt
from four_d.weights.table import KNOWN, AdapterKind, KnownWeights

WRITER = "four_d"
"""Metadata key of weight files for the version of the package that wrote it."""
USUAL_CELLS = 37
"""Patches along a side of the square images that VGGT is trained on."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Reader of one family of weight files."""

    adapter: Adapter
    infer: Callable[[State], ModelConfig]
    frames: int
    """Maximum number of frames per clip in training."""
    partial: bool = False
    """True if the weights are a part of a model; the rest is initialised from a fixed seed."""


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
        kind: one of `KINDS`.
        source: input of `read_state`.
        out: created atomically, apart from the inputs; an earlier export there is replaced.
        configs: config files and key=value that give the model; none: sizes by the tensors' shapes.
        name: which of `KNOWN` it is, for source and licence on the card; None: the kind's first, the strictest.
        overwrite: replace also another result of four_d there, or one that was changed (`outputs.check_folder`).

    Raises:
        UserError: unreadable source, no such kind or name, a tensor without counterpart or of another shape, or a
            folder that cannot be written.

    """
    family, known, out = _kind(kind), _known(kind, name), Path(out)
    config_files = [each for each in configs if "=" not in each]
    with new_folder(out, "export", inputs=[source, *config_files], overwrite=overwrite) as folder:
        state = vggt.with_aggregator_prefix(read_state(source))
        model = _model(configs) if configs else family.infer(state)
        weights = family.adapter.to_ours(state, target_of(family, model), str(source))
        info = ModelInfo(
            model=model,
            image_size=_image_size(model),
            frames=family.frames,
            name=known.name if name else kind,
            trained_on={f"{known.name} weights": known.licence},
        )
        _save(weights, folder / WEIGHTS)
        checkpoints.write_info(folder / CONFIG, info)
        (folder / CARD).write_text(
            _card(info, known, family, Path(source), weights, inferred=not configs, named=bool(name))
        )
    return out


def convert_back(kind: str, source: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model of ours (readable by `checkpoints.read`) as one safetensors file in the kind's names.

    Raises:
        UserError: no such kind, no model, a weight that has no counterpart there, ``out`` is no name of a safetensors
            file, or exists, without ``overwrite`` or written by other software.

    """
    family, out = _kind(kind), Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out} lacks the suffix of a safetensors file; name it {out.name}.safetensors")
    keep_apart(out, [source])
    if out.exists() and not (overwrite and _written_by_us(out)):
        why = "was not written by four_d" if overwrite else "exists (--overwrite replaces what four_d wrote)"
        raise UserError(f"{out} {why}; choose another name")
    state = family.adapter.to_theirs(checkpoints.read(source).model.state_dict(), str(source))
    with new_file(out, [source]) as partial:
        _save(state, partial)
    return out


def _written_by_us(file: Path) -> bool:
    """True if `_save` wrote this file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return WRITER in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _save(weights: State, file: Path) -> None:
    stored = {name: value.contiguous() for name, value in weights.items()}
    save_file(stored, file, metadata={"format": "pt", WRITER: __version__})
    file.chmod(0o644)  # the library makes it readable by the owner only


def target_of(family: Kind, model: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes of the model's weights, with real values if some of them stay."""
    if not family.partial:
        with torch.device("meta"):
            return model.build().state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.build().state_dict()


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"{kind!r} is not a kind of weights; choose one of {', '.join(KINDS)}")
    return KINDS[kind]


def _known(kind: str, name: str | None) -> KnownWeights:
    """Known entry of that name, or the kind's first."""
    fitting = [each for each in KNOWN if each.kind == kind]
    chosen = [each for each in fitting if name in (None, each.name)]
    if not chosen:
        raise UserError(f"{name!r} is not among the {kind} weights; choose one of {', '.join(e.name for e in fitting)}")
    return chosen[0]


def _model(configs: Sequence[str]) -> ModelConfig:
    files, overrides = [c for c in configs if "=" not in c], [c for c in configs if "=" in c]
    plain = config.load_plain(files, overrides)
    return schema.build(ModelConfig, plain.get("model"), "config", "model")


def _image_size(model: ModelConfig) -> tuple[int, int]:
    """Size of the square images that positions are stored for; without any, as many patches as VGGT's."""
    shape = model.backbone.shape
    side = USUAL_CELLS * shape.patch_size if shape.image_size is None else shape.image_size
    return side, side


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(
    info: ModelInfo, known: KnownWeights, family: Kind, source: Path, weights: State, *, inferred: bool, named: bool
) -> str:
    """Model card: origin and licence of the weights, and guessed settings."""
    count = sum(value.numel() for value in weights.values())
    fresh = sorted(
        {each.reason for each in family.adapter.fresh if any(family.adapter.is_fresh(n) is each for n in weights)}
    )
    dropped = [f"`{each.theirs}` was left out: {each.reason}." for each in family.adapter.dropped]
    doubt = "" if named else "The weights were not named, so the strictest licence of their kind is assumed. "
    sha256 = _sha256(source)
    digest = "" if sha256 is None else f" (sha256 {sha256})"
    sizes = (
        "Sizes are inferred from the tensors' shapes; what shapes do not determine (attention heads of encoder and "
        "camera head, rounds of the dense heads, iterations) is as in VGGT-1B."
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
