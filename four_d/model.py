"""`FourD`, one backbone and named heads, and its config, which checks their compatibility. Independent of training."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Annotated, cast

from torch import Tensor, nn

from four_d import fields
from four_d.abilities import Abilities, Hint, ModelModule, ModelSpec, Use
from four_d.backbones import BackboneConfig
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import TimmPatches
from four_d.constants import also_kept
from four_d.errors import UserError
from four_d.extension import OneOf, kind_of
from four_d.heads import HeadConfig
from four_d.layers import Block, full_precision
from four_d.parts import QUERY, Backbone, BackboneSpec, Head, HeadSpec
from four_d.pose_net.model import PoseNetConfig
from four_d.query import query_times
from four_d.refinement import MASK_NEEDS, Refinement, RefinementConfig
from four_d.scene import DeformableSceneConfig
from four_d.types import Clip, Prediction, Tokens, merge_predictions


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelSpec):
    """Parts of a `FourD`."""

    backbone: BackboneConfig = field(default_factory=AlternatingConfig)
    """Encoder of a clip's frames into the tokens that all heads read."""
    heads: dict[str, HeadConfig] = field(default_factory=dict[str, HeadConfig])
    """Heads, under names of your choice; each predicts fields of its own from the same tokens."""
    refine: RefinementConfig | None = None
    """Refine the cameras by what depth says, with points or with matched pixels, and by them the mask of what moves.
    None, as VGGT: they are the heads' own."""

    @property
    def abilities(self) -> Abilities:
        """Combined abilities of the parts."""
        return abilities_of(self.backbone, self.heads.values())

    def build(self) -> FourD:
        """Build the model with fresh weights from torch's global generator: seed it.

        UserError where sizes do not fit, a head requires what the backbone does not provide, or has an unusable name.
        """
        for name in self.heads:
            if "." in name or hasattr(nn.ModuleDict(), name):
                raise UserError(f"a head cannot be called {name!r}, which means something else; choose another name")
        check_parts(self.backbone, self.heads)
        backbone = self.backbone.build()
        if not self.heads:
            raise UserError("model.heads is empty; give at least one, for example {depth: {kind: dense}}")
        outputs = self.abilities.outputs
        needs = () if self.refine is None else self.refine.needs
        if lacking := [name for name in needs if name not in outputs]:
            raise UserError(
                f"model.refine needs {', '.join(needs)}, and no head gives {lacking[0]}; add one, or set "
                "model.refine=null"
            )
        heads = {name: config.build(self.backbone.shape) for name, config in self.heads.items()}
        return FourD(backbone, heads, None if self.refine is None else self.refine.build())


AnyModelConfig = Annotated[ModelSpec, OneOf(ModelConfig, PoseNetConfig, DeformableSceneConfig)]
"""Config of any model; without a ``kind`` a `ModelConfig`."""


def abilities_of(backbone: BackboneSpec, heads: Iterable[HeadSpec]) -> Abilities:
    """Combined abilities of a backbone and heads of these configs."""
    heads = list(heads)
    hints: dict[Hint, Use] = dict(backbone.takes)
    for head in heads:
        hints |= {hint: use for hint, use in head.takes.items() if use == "required" or hint not in hints}
    makers = [head for head in heads if "gaussians" in head.provides]
    keys = [head.key_frames(backbone.row_stride) for head in makers]
    return Abilities(
        outputs=frozenset[str]().union(*(head.provides for head in heads)),
        predictions=tuple(dict.fromkeys(head.prediction for head in heads)),
        queried=frozenset(name for head in heads if head.queried for name in head.provides),
        points=any(head.answers_points for head in heads),
        hints=hints,
        hint_settings={hint: f"backbone.{name}" for hint, name in backbone.hint_settings.items()},
        masks=backbone.masks,
        times=next((head.gaussian_times for head in makers if head.gaussian_times is not None), None),
        stride=backbone.row_stride,
        key_frames=keys[0][0] if keys else 0,
        key_cameras=keys[0][1] if keys else None,
        multiple=backbone.shape.patch_size,
    )


def check_parts(backbone: BackboneSpec, heads: Mapping[str, HeadSpec]) -> None:
    """Raise UserError where a head requires what the backbone does not provide, or their numbers of times differ."""
    kind = kind_of(type(backbone))
    for name, head in heads.items():
        for output in sorted(set(head.provides) - {each.name for each in fields.declared(head.prediction)}):
            raise UserError(
                f"model.heads.{name} provides {output}, which {head.prediction.__name__} does not declare; let the "
                f"head's config say which class does, with prediction = …"
            )
        for need in sorted(head.requires - backbone.provides, key=lambda each: each.name):
            other = need.name in {each.name for each in backbone.provides}
            lack = "has of other settings" if other else "does not give as it is set"
            raise UserError(
                f"model.heads.{name} requires {need.name}, which the {kind} backbone {lack}; "
                f"{need.remedy.format(name=name)}"
            )
        for twice in (each for each in head.excludes if each in backbone.provides):
            raise UserError(
                f"model.heads.{name} would do what the backbone does already, {twice.name}: it would be done twice; "
                f"{twice.remedy.format(name=name)}"
            )
        _check_times(name, head, backbone)
    required = frozenset[object]().union(*(head.requires for head in heads.values()))
    for idle in backbone.idle - required:
        raise UserError(
            f"no head requires {idle.name}, so nothing teaches those of the backbone; {idle.remedy.format()}"
        )


def _check_times(name: str, head: HeadSpec, backbone: BackboneSpec) -> None:
    times = head.gaussian_times
    if times is None:
        return
    if "gaussians" not in head.provides:
        raise UserError(
            f"model.heads.{name} makes no Gaussians, and gaussian_times is {times}; remove it, and let the head refuse "
            "clips of other numbers of times itself"
        )
    if times % backbone.row_stride:
        raise UserError(
            f"model.heads.{name}.frames {times} is not a multiple of model.backbone.stride {backbone.row_stride}; "
            "change one of them"
        )
    if backbone.gaussian_times not in (None, times):
        raise UserError(
            f"model.backbone.times is {backbone.gaussian_times}, and model.heads.{name}.frames {times}; set "
            f"'model.backbone.times=${{model.heads.{name}.frames}}'"
        )


class FourD(ModelModule):
    """Backbone and its heads, each of which predicts fields of its own.

    Convention: all coordinates are those of the first frame's camera; lengths are in the unit the training data was
    normalised to.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, Head], refine: Refinement | None = None) -> None:
        super().__init__()
        self.backbone, self.refine = backbone, refine
        self.heads = nn.ModuleDict(cast(Mapping[str, nn.Module], heads))
        self.rounds = kept_rounds(
            (index for head in heads.values() for index in head.rounds), backbone.config.shape.rounds
        )
        """Rounds of the backbone whose token maps the heads read, ascending."""

    @property
    def abilities(self) -> Abilities:
        """Combined abilities of the parts."""
        return abilities_of(self.backbone.config, (head.config for head in self._heads()))

    def without(self, *outputs: str) -> FourD:
        """Model without the heads that set any of these fields, possibly without heads. Weights are shared."""
        heads = {name: cast(Head, head) for name, head in self.heads.items()}
        part = FourD(
            self.backbone,
            {name: head for name, head in heads.items() if not set(head.config.provides) & set(outputs)},
            self.refine,
        )
        part.precision = self.precision
        return part.train(self.training)

    def tokens(self, clip: Clip) -> int:
        """Patch and special tokens of a batched clip."""
        config = self.backbone.config
        clips, frames, _, rows, columns = clip.images.shape
        patches = (rows // config.shape.patch_size) * (columns // config.shape.patch_size)
        return clips * -(-frames // config.row_stride) * (patches + config.special)

    def at_step(self, step: int) -> Mapping[str, Tensor]:
        """Set what follows a schedule for a training step; it is stored with the weights. No rows change."""
        self.backbone.at_step(step)
        return {}

    def shards(self) -> list[nn.Module]:
        """Transformer blocks: our own, and those of timm's image encoders."""
        own = [module for module in self.modules() if isinstance(module, Block)]
        encoders = [module for module in self.modules() if isinstance(module, TimmPatches)]
        return [*own, *(block for each in encoders for block in each.blocks)]

    def freeze_untaught(self, taught: frozenset[str]) -> dict[str, str]:
        """Freeze the heads, and the refinement, that set none of the ``taught`` fields."""
        resting: dict[str, str] = {}
        parts = {f"heads.{name}": (head, cast(Head, head).config.provides) for name, head in self.heads.items()}
        parts |= {} if self.refine is None else {"refine": (self.refine, MASK_NEEDS)}
        for name, (part, outputs) in parts.items():
            if not taught & set(outputs) and any(parameter.requires_grad for parameter in part.parameters()):
                part.requires_grad_(False)
                resting[name] = outputs[0]
        return resting

    def forward(self, clip: Clip) -> Prediction:
        """Predict for a clip with one batch axis and any number of frames; image sides are multiples of the patch size.

        UserError for a query time that is no frame's.
        """
        return fields.join(list(self.answers(clip)), "q")

    def answers(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction per query time of the clip; only the first holds the outputs that depend on no query.

        Encodes once, unless the backbone's tokens depend on the query. Yields one prediction where no head answers
        queries, and one without motion where the clip has no query times.
        """
        heads = self._heads()
        if not heads:  # no head reads the tokens, and not every backbone takes any number of frames
            yield Prediction()
            return
        times, queried = query_times(clip), any(head.config.queried for head in heads)
        if times.shape[1] == 0:
            rest = replace(clip, query_times=None)
            found = self._pass(rest, None, [head for head in heads if not head.config.queried], Prediction())[1]
            yield replace(found, match_logits=None, match_frames=None, sweep_depth=None)
            return
        tokens, none = None, Prediction()
        for index in range(times.shape[1] if queried else 1):
            one = queried and clip.query_times is not None
            one_time = also_kept(times, lambda all_times, i=index: all_times[:, i : i + 1])
            part = replace(clip, query_times=one_time) if one else clip
            if QUERY in self.backbone.config.provides:
                tokens = None  # so that two encodings never share the memory
            asked = [head for head in heads if index == 0 or head.config.queried]
            tokens, found = self._pass(part, tokens, asked, none)
            none = type(found)()  # of all heads' class, so that later answers are too
            yield found
            del found  # for the same reason

    def _pass(
        self, clip: Clip, tokens: Tokens | None, heads: list[Head], none: Prediction
    ) -> tuple[Tokens, Prediction]:
        """Encode the clip unless ``tokens`` are given, and run the heads on them; the fields of the class of ``none``,
        an empty prediction, are there too.
        """
        tokens = self.backbone(clip, self.rounds) if tokens is None else tokens
        found = merge_predictions([none, searched(tokens), *(head(tokens, clip) for head in heads)])
        if self.refine is not None:
            with full_precision(clip.images.device):
                found = self.refine(found, clip)
        return tokens, found

    def _heads(self) -> list[Head]:
        return [cast(Head, head) for head in self.heads.values()]


def searched(tokens: Tokens) -> Prediction:
    """Matches of the backbone in the query frames and depths along rays; an empty prediction if it computed none."""
    if tokens.match_logits is None and tokens.sweep is None:
        return Prediction()
    return Prediction(
        match_logits=tokens.match_logits,
        match_frames=tokens.frames if tokens.frames.ndim > 1 else None,
        sweep_depth=None if tokens.sweep is None else tokens.sweep.depth,
    )


def kept_rounds(wanted: Iterable[int], count: int) -> tuple[int, ...]:
    """Unique rounds (counted from 0) that heads read, ascending. UserError for one that the backbone lacks."""
    kept = tuple(sorted(set(wanted)))
    wrong = [index for index in kept if not 0 <= index < count]
    if wrong:
        raise UserError(f"a head reads round {wrong[0]}, the backbone has 0 to {count - 1}; change either")
    return kept


VARIANTS = 64
"""Limit of compiled variants of a block. Frame and global, trained and frozen, biased, in training and in validation:
blocks have more than torch's default of 8, beyond which it silently stops compiling."""


def compile_blocks(model: nn.Module) -> None:
    """Compile every transformer block of the model in place; parameter names stay. UserError where there is none."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise UserError(
            "only transformer blocks (layers.Block) are compiled, and the model has none; set loop.compile=false, or "
            "leave --compile out"
        )
    dynamo = cast(SimpleNamespace, importlib.import_module("torch._dynamo.config"))
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    for block in blocks:
        block.compile()
