"""The model: one backbone, named heads, ``(Clip) -> Prediction``. It knows nothing of training, losses or files."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import cast

import torch
from torch import nn

from four_d.backbones import Backbone, BackboneConfig
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import TimmPatches
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.errors import UserError
from four_d.heads import Head, HeadConfig
from four_d.heads.dense import DenseFeatures, DenseHeadConfig
from four_d.heads.gaussian import GaussianHead, GaussianHeadConfig
from four_d.layers import Block
from four_d.query import asked
from four_d.types import Clip, Prediction, Tokens, join_queries, merge_predictions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a `FourD` is made of."""

    backbone: BackboneConfig = field(default_factory=AlternatingConfig)
    heads: dict[str, HeadConfig] = field(default_factory=dict[str, HeadConfig])

    @property
    def gaussian(self) -> GaussianHeadConfig | None:
        """The head that makes Gaussians; None without one."""
        return next((head for head in self.heads.values() if isinstance(head, GaussianHeadConfig)), None)

    def build(self) -> FourD:
        """Weights come from torch's global generator: seed it.

        UserError where sizes do not fit, where the query time does not reach a motion head by exactly one way, or where
        a head needs token rows that the backbone does not give.
        """
        if isinstance(self.backbone, AlternatingConfig):
            _check_search(self.backbone, self.heads)
        for name, config in self.heads.items():
            if isinstance(self.backbone, SpacetimeConfig):
                _check_rows(name, config, self.backbone)
            if isinstance(config, GaussianHeadConfig) and config.follow:
                _check_follows(name, self.backbone)
            if isinstance(config, DenseHeadConfig) and config.output == "motion":
                _check_query(name, early=self.backbone.query is not None, late=config.decoder is not None)
        backbone = self.backbone.build()
        heads = {
            name: config.build(token_width=backbone.token_width, rounds=backbone.rounds, patch_size=backbone.patch_size)
            for name, config in self.heads.items()
        }
        return FourD(backbone, heads)


def _check_search(backbone: AlternatingConfig, heads: Mapping[str, HeadConfig]) -> None:
    """Only a search in the query frame teaches the features, and all searches go by the same cells."""
    if backbone.correlation is None:
        return
    decoders = [head.decoder for head in heads.values() if isinstance(head, DenseHeadConfig) and head.decoder]
    late = [decoder.correlation for decoder in decoders if decoder.correlation is not None]
    if backbone.query is None and not late:
        raise UserError(
            "nothing teaches model.backbone.correlation, for no motion head searches the query frame; set it to null, "
            "or give the motion head's decoder correlation=${model.backbone.correlation}"
        )
    if any(each != backbone.correlation for each in late):
        raise UserError(
            "a decoder's correlation differs from the backbone's, whose features it searches; set "
            "decoder.correlation=${model.backbone.correlation}"
        )


def _check_rows(name: str, config: HeadConfig, backbone: SpacetimeConfig) -> None:
    if not isinstance(config, GaussianHeadConfig):
        raise UserError(
            f"model.heads.{name} reads tokens of every frame, and the spacetime backbone gives them of every "
            f"{backbone.stride}th; remove it, or take configs/unified.yaml, which has both"
        )
    if config.frames % backbone.stride:
        raise UserError(
            f"model.heads.{name}.frames {config.frames} is no multiple of model.backbone.stride {backbone.stride}; "
            "change one of them"
        )
    if config.every is not None:
        raise UserError(
            f"model.heads.{name}.every chooses among frames, and the spacetime backbone gives tokens of its own key "
            "frames only; set it to null"
        )
    if backbone.correlation is not None and backbone.times != config.frames:
        raise UserError(
            f"model.backbone.times is {backbone.times}, and model.heads.{name}.frames {config.frames}; set "
            f"model.backbone.times=${{model.heads.{name}.frames}}"
        )


def _check_follows(name: str, backbone: BackboneConfig) -> None:
    if not isinstance(backbone, SpacetimeConfig) or backbone.correlation is None:
        raise UserError(
            f"model.heads.{name}.follow needs to know where frames show the same; set model.backbone.correlation="
            "{kind: correlation} with the spacetime backbone, or follow=false"
        )


def _check_query(name: str, *, early: bool, late: bool) -> None:
    if not (early or late):
        raise UserError(
            f"model.heads.{name} predicts motion, and nothing tells it the query time; add model.backbone.query="
            f"{{kind: query}}, or model.heads.{name}.decoder={{kind: query_decoder}}"
        )
    if early and late:
        raise UserError(
            f"model.heads.{name} would learn the query time twice; set model.backbone.query=null, or "
            f"model.heads.{name}.decoder=null"
        )


class FourD(nn.Module):
    """A backbone and its heads; every head writes fields of its own.

    Convention: all coordinates are those of the first frame's camera; lengths are in the unit the training data was
    normalised to.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, Head]) -> None:
        super().__init__()
        if not heads:
            raise UserError("model.heads is empty; give at least one, for example {depth: {kind: dense}}")
        self.backbone = backbone
        self.heads = nn.ModuleDict(cast(Mapping[str, nn.Module], heads))
        backbone.keep(index for head in heads.values() for index in head.rounds)

    @property
    def patch_size(self) -> int:
        """Of what image sides must be multiples."""
        return self.backbone.patch_size

    def only(self, names: Iterable[str]) -> FourD:
        """The same backbone and, of the heads, these alone; maybe none. Weights are shared."""
        part = copy.copy(self)
        part._modules = {**self._modules, "heads": nn.ModuleDict({name: self.heads[name] for name in names})}
        return part

    def at_step(self, step: int) -> None:
        """Set what follows a schedule for a training step; it is stored with the weights."""
        self.backbone.at_step(step)

    @property
    def moves(self) -> bool:
        """Whether a head answers query times."""
        return any(head.queried for head in self._heads())

    @property
    def gaussian(self) -> GaussianHeadConfig | None:
        """The config of the head that makes Gaussians; None without one."""
        return next((head.config for head in self.heads.values() if isinstance(head, GaussianHead)), None)

    def forward(self, clip: Clip) -> Prediction:
        """``clip`` has one batch axis and any number of frames; the images' sides are multiples of `patch_size`.

        UserError for a query time that is no frame's.
        """
        return join_queries(list(self.passes(clip)))

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """One prediction for each of the clip's query times, of which only the first holds what depends on none.

        Encodes once, unless the backbone's tokens depend on the query. One prediction where no head answers queries,
        and one without motion where no time is asked for.
        """
        times = asked(clip)
        if times.shape[1] == 0:
            rest = replace(clip, query_times=None)
            tokens = self.backbone(rest)
            yield merge_predictions([head(tokens, rest) for head in self._heads() if not head.queried])
            return
        tokens = None
        for index in range(times.shape[1] if self.moves else 1):
            one = self.moves and clip.query_times is not None
            part = replace(clip, query_times=times[:, index : index + 1]) if one else clip
            if tokens is None or self.backbone.queried:
                tokens = None  # so that two encodings never share the memory
                tokens = self.backbone(part)
            heads = [head for head in self._heads() if index == 0 or head.queried]
            yield merge_predictions([searched(tokens), *(head(tokens, part) for head in heads)])

    def _heads(self) -> list[Head]:
        return [cast(Head, head) for head in self.heads.values()]


def searched(tokens: Tokens) -> Prediction:
    """What the backbone found in the query frames, if it looked there."""
    if tokens.match_logits is None:
        return Prediction()
    return Prediction(match_logits=tokens.match_logits, match_frames=tokens.frames if tokens.frames.ndim > 1 else None)


VARIANTS = 64
"""Frame and global, trained and frozen, biased, in training and validation: blocks of one kind differ in more ways than
torch's 8, beyond which it silently stops compiling."""


def compile_blocks(model: nn.Module) -> None:
    """Compile every transformer block of the model in place; names of weights stay."""
    dynamo = cast(SimpleNamespace, importlib.import_module("torch._dynamo.config"))
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def compile_model(model: nn.Module) -> None:
    """`compile_blocks`, and what else takes time: an image encoder's blocks, the dense heads."""
    compile_blocks(model)
    for module in model.modules():
        if isinstance(module, TimmPatches):
            for block in module.encoder.get_submodule("blocks"):  # pyright: ignore[reportGeneralTypeIssues]
                block.compile()
        if isinstance(module, DenseFeatures):
            module.coarse = torch.compile(module.coarse)
            module.finish = torch.compile(module.finish)
