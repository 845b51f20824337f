"""Names of VGGT's checkpoints, in one place."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import ConvPatchConfig, PatchConfig
from four_d.errors import UserError
from four_d.heads import HeadConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.model import ModelConfig
from four_d.state_dicts.adapter import Adapter, Dropped, Order, Rule, State, same, under
from four_d.weights import dinov2
from four_d.weights.dinov2 import common, count

ENCODER = "aggregator.patch_embed."
POSE = Order(theirs=(0, 1, 2, 6, 3, 4, 5, 7, 8))
"""Order of our pose encoding (translation, quaternion wxyz, two fields of view) in theirs, with quaternion xyzw."""
RADII = (4, 3, 2, 1)
"""Radii of correlation windows, the likeliest first: weights give only levels · (2 · radius + 1)²."""

AGGREGATOR = (
    Rule(theirs=f"{ENCODER}proj.{{rest}}", ours="backbone.patches.proj.{rest}"),
    *dinov2.encoder_rules(ENCODER),
    *under(
        "aggregator.",
        "backbone.",
        same("camera_token", "register_token", "frame_blocks.{n}.{rest}", "global_blocks.{n}.{rest}"),
    ),
)
CAMERA = (
    Rule(theirs="empty_pose_tokens", ours="empty_pose", axis=-1),
    Rule(theirs="embed_pose.weight", ours="embed_pose.weight", axis=-1),
    Rule(theirs="pose_branch.fc2.{rest}", ours="pose_branch.fc2.{rest}", axis=0),
    Rule(theirs="poseLN_modulation.1.{rest}", ours="modulation.{rest}"),
    *same("embed_pose.bias", "pose_branch.fc1.{rest}", "token_norm.{rest}", "trunk_norm.{rest}", "trunk.{n}.{rest}"),
)
FEATURES = (
    *same("norm.{rest}", "projects.{n}.{rest}"),
    Rule(theirs="resize_layers.{n}.{rest}", ours="resizes.{n}.{rest}"),
    Rule(theirs="scratch.output_conv1.{rest}", ours="narrow.{rest}"),
    *(Rule(theirs=f"scratch.layer{i + 1}_rn.{{rest}}", ours=f"laterals.{i}.{{rest}}") for i in range(4)),
    *(
        Rule(theirs=f"scratch.refinenet{i + 1}.{theirs}.{{rest}}", ours=f"fusions.{i}.{ours}.{{rest}}")
        for i in range(4)
        for theirs, ours in (("resConfUnit1", "lateral"), ("resConfUnit2", "unit"), ("out_conv", "out_conv"))
    ),
)
DENSE = (
    *FEATURES,
    Rule(theirs="scratch.output_conv2.0.{rest}", ours="last.{rest}"),
    Rule(theirs="scratch.output_conv2.2.{rest}", ours="out.{rest}"),
)
BLOCKS = {
    "time_blocks": ("time_blocks", "attn"),
    "space_virtual_blocks": ("virtual_blocks", "attn"),
    "space_virtual2point_blocks": ("virtual_from_points", "cross_attn"),
    "space_point2virtual_blocks": ("points_from_virtual", "cross_attn"),
}
"""Blocks of the tracker: their name → ours, and their name of the attention in them."""
UPDATE = (
    Rule(theirs="virual_tracks", ours="virtual_tracks"),
    Rule(theirs="input_norm.{rest}", ours="norm_in.{rest}"),
    Rule(theirs="input_transform.{rest}", ours="embed.{rest}"),
    Rule(theirs="output_norm.{rest}", ours="norm_out.{rest}"),
    Rule(theirs="flow_head.{rest}", ours="out.{rest}"),
    *(
        Rule(theirs=f"{theirs}.{{n}}.{attention}.{part}{{rest}}", ours=f"{ours}.{{n}}.attn.{mine}{{rest}}")
        for theirs, (ours, attention) in BLOCKS.items()
        for part, mine in (("in_proj_", "qkv."), ("out_proj.", "proj."))
    ),
    *(Rule(theirs=f"{theirs}.{{n}}.{{rest}}", ours=f"{ours}.{{n}}.{{rest}}") for theirs, (ours, _) in BLOCKS.items()),
)
TRACKER = (
    Rule(theirs="fmap_norm.{rest}", ours="map_norm.{rest}"),
    Rule(theirs="corr_mlp.{rest}", ours="correlation.{rest}"),
    Rule(theirs="query_ref_token", ours="frame_token"),
    Rule(theirs="ffeat_norm.{rest}", ours="feature_norm.{rest}"),
    Rule(theirs="ffeat_updater.0.{rest}", ours="feature_step.{rest}"),
    Rule(theirs="vis_predictor.0.{rest}", ours="visible.{rest}"),
    Rule(theirs="conf_predictor.0.{rest}", ours="confidence.{rest}"),
    *under("updateformer.", "update.", UPDATE),
)

ADAPTER = Adapter(
    rules=(
        *AGGREGATOR,
        *under("camera_head.", "heads.camera.", CAMERA),
        *under("depth_head.", "heads.depth.", DENSE),
        *under("point_head.", "heads.points.", DENSE),
        *under("track_head.feature_extractor.", "heads.track.features.", FEATURES),
        *under("track_head.tracker.", "heads.track.", TRACKER),
    ),
    dropped=(Dropped(theirs=ENCODER + dinov2.UNUSED.theirs, reason=dinov2.UNUSED.reason),),
    order=POSE,
    fold=partial(dinov2.fold, prefix=ENCODER),
    unfold=partial(dinov2.unfold, prefix=ENCODER),
)


def with_aggregator_prefix(state: State) -> dict[str, Tensor]:
    """Add the aggregator's prefix to names of one saved alone; others stay."""
    saved_alone = any(name.startswith("frame_blocks.") for name in state)
    return {f"aggregator.{name}": value for name, value in state.items()} if saved_alone else dict(state)


def infer(state: State) -> ModelConfig:
    """Infer sizes from the shapes of VGGT's tensors. Shapes do not determine the numbers of attention heads in encoder
    and camera head (taken as the backbone's), nor the dense heads' rounds, iterations and ``group``: as VGGT-1B's.

    UserError if there are no blocks of VGGT's.
    """
    backbone = infer_backbone(state)
    parts = {name.split(".")[0] for name in state}
    heads: dict[str, HeadConfig] = {}
    if "camera_head" in parts:
        heads["camera"] = _camera(state, backbone.heads)
    if "depth_head" in parts:
        heads["depth"] = _dense(state, "depth_head", backbone.rounds)
    if "point_head" in parts:
        heads["points"] = _dense(state, "point_head", backbone.rounds)
    if "track_head" in parts:
        heads["track"] = _track(state, backbone.rounds)
    return ModelConfig(backbone=backbone, heads=heads)


def infer_backbone(state: State) -> AlternatingConfig:
    """Infer the aggregator's sizes."""
    blocks = r"aggregator\.(frame|global)_blocks\.\d+\."
    width = common(state, (blocks + r"norm[12]\.weight", 0))
    if width is None:
        raise UserError("these weights have no aggregator.frame_blocks: not a VGGT checkpoint; give other weights")
    head_width = common(state, (blocks + r"attn\.[qk]_norm\.weight", 0))
    heads = 16 if head_width is None else max(width // head_width, 1)
    stored_registers = common(state, (r"aggregator\.register_token", 2))
    registers = 4 if stored_registers is None else stored_registers
    patches, patch_size = _patches(state, width // heads, registers)
    return AlternatingConfig(
        patches=patches,
        patch_size=patch_size,
        width=width,
        rounds=max(count(state, f"aggregator.{each}_blocks.") for each in ("frame", "global")),
        heads=heads,
        mlp_ratio=_mlp_ratio(state, blocks, width),
        registers=registers,
        qk_norm=head_width is not None,
        layer_scale=None if common(state, (blocks + r"ls[12]\.gamma", 0)) is None else 0.01,
    )


def _patches(state: State, head_width: int, registers: int) -> tuple[PatchConfig, int]:
    """Infer the patch embedding; an encoder without registers in its weights gets the aggregator's number."""
    if count(state, f"{ENCODER}blocks."):
        encoder, patch_size, _ = dinov2.infer_encoder(state, ENCODER, head_width, registers=registers)
        return encoder, patch_size
    return ConvPatchConfig(), common(state, (r"aggregator\.patch_embed\.proj\.weight", 3)) or 14


def _mlp_ratio(state: State, blocks: str, width: int) -> float:
    hidden = common(state, (blocks + r"mlp\.fc1\.\w+", 0), (blocks + r"mlp\.fc2\.weight", 1))
    return 4.0 if hidden is None else hidden / width


def _camera(state: State, heads: int) -> CameraHeadConfig:
    blocks = r"camera_head\.trunk\.\d+\."
    width = common(state, (blocks + r"norm[12]\.weight", 0)) or 1
    ratio = _mlp_ratio(state, blocks, width)
    return CameraHeadConfig(depth=count(state, "camera_head.trunk."), heads=heads, mlp_ratio=ratio)


def _channels(state: State, head: str) -> tuple[int, ...]:
    usual = DenseHeadConfig().channels
    widths = (
        common(state, (rf"{head}\.projects\.{i}\.\w+", 0), (rf"{head}\.scratch\.layer{i + 1}_rn\.weight", 1))
        for i in range(len(usual))
    )
    return tuple(each or usual[i] for i, each in enumerate(widths))


def _dense(state: State, head: str, rounds: int) -> DenseHeadConfig:
    usual, last = DenseHeadConfig(), head + r"\.scratch\.output_conv2\."
    return DenseHeadConfig(
        output="depth" if head == "depth_head" else "points",
        rounds=dinov2.dense_rounds(rounds),
        channels=_channels(state, head),
        features=common(state, (head + r"\.scratch\.layer\d_rn\.weight", 0)) or usual.features,
        last_features=common(state, (last + r"0\.\w+", 0), (last + r"2\.weight", 1)) or usual.last_features,
    )


def _track(state: State, rounds: int) -> TrackHeadConfig:
    usual, extractor, tracker = TrackHeadConfig(), "track_head.feature_extractor", "track_head.tracker"
    inputs_of_window = (
        common(state, (tracker + r"\.corr_mlp\.fc1\.weight", 1)) or usual.levels * (2 * usual.radius + 1) ** 2
    )
    radius = next(radius for radius in (*RADII, 0) if inputs_of_window % (2 * radius + 1) ** 2 == 0)
    former = f"{tracker}.updateformer"
    return TrackHeadConfig(
        rounds=dinov2.dense_rounds(rounds),
        channels=_channels(state, extractor),
        features=common(state, (extractor + r"\.scratch\.layer\d_rn\.weight", 0)) or usual.features,
        levels=inputs_of_window // (2 * radius + 1) ** 2,
        radius=radius,
        hidden=common(state, (former + r"\.(time|space)\w*_blocks\.\d+\.norm1\.weight", 0)) or usual.hidden,
        depth=count(state, f"{former}.time_blocks."),
        virtual=common(state, (former + r"\.virual_tracks", 1)) or usual.virtual,
    )
