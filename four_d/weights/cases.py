"""Golden cases: directories with a small model's sizes, weights, inputs and outputs, produced by other code.

``case.json`` gives sizes and the noise floor of every output; ``weights``, ``inputs``, ``outputs`` and, optionally,
``outputs_fp64`` are safetensors beside it. Names, layouts and conventions are VGGT's (PAGE-4D's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.dynamics import DynamicsConfig
from four_d.backbones.patches import ConvPatchConfig, PatchConfig
from four_d.errors import UserError
from four_d.heads import HeadConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.model import ModelConfig
from four_d.schema import Plain
from four_d.state_dicts.adapter import State
from four_d.state_dicts.reading import read_state
from four_d.weights import page_4d, vggt
from four_d.weights.dinov2 import encoder_config

DESCRIPTION = "case.json"
FLOOR = "fp32_vs_fp64_max_abs_diff"
FIXED = {"norm_eps": 1e-5, "aa_order": ["frame", "global"]}
FIXED_ENCODER = {"norm_eps": 1e-6, "mlp_ratio": 4.0, "interpolate_antialias": True, "interpolate_offset": 0.0}
FIXED_CAMERA = {"pose_encoding": "absT_quaR_FoV"}
FIXED_TRACK = {"max_scale": 518}
"""Settings that are fixed in our parts."""
ALPHAS = {"mask_on": 1.0, "mask_half": 0.5, "mask_off": 0.0}
"""Mask strength of each of PAGE-4D's groups of outputs."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Contents of one directory."""

    name: str
    model: ModelConfig
    alphas: dict[str, float] | None
    """Prefix of outputs → α, the strength of the mask. None: the model has no mask."""
    weights: dict[str, Tensor]
    """Weights in the published checkpoint's names."""
    images: Tensor
    query_points: Tensor | None
    outputs: dict[str, Tensor]
    outputs_fp64: dict[str, Tensor]
    noise: dict[str, float]


class Sizes:
    """Section of ``case.json``; a missing value or one of the wrong type is a UserError that names it."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, Mapping):
            raise UserError(f"{where} is {content!r}; it must be a mapping of sizes")
        self.content, self.where = cast(Mapping[str, object], content), where

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def section(self, name: str) -> Sizes:
        """Get a nested section."""
        if name not in self:
            raise UserError(f"{self.where} lacks the section {name}")
        return Sizes(self.content[name], f"{self.where}: {name}")

    def get(self, name: str, kind: type[T], default: T | None = None, *, least: int = 1) -> T:
        """Get a string, a list, a number, or a whole number of at least ``least``."""
        value = self.content.get(name, default)
        if value is None:
            raise UserError(f"{self.where} lacks {name}")
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or cast(int, value) < least)):
            expected = f"a whole number from {least} on" if kind is int else f"a {kind.__name__}"
            raise UserError(f"{self.where}: {name} is {value!r}; it must be {expected}")
        if kind is float and cast(float, value) < 0:
            raise UserError(f"{self.where}: {name} is {value!r}; it must not be negative")
        return cast(T, value)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Get a list of whole numbers."""
        values = self.get(name, list)
        if not all(isinstance(value, int) for value in values):
            raise UserError(f"{self.where}: {name} is {values!r}; it must be whole numbers")
        return tuple(cast(list[int], values))

    def expect(self, fixed: Mapping[str, object]) -> None:
        """Raise UserError if a value is given that our parts do not offer."""
        for name, value in fixed.items():
            if name in self and self.content[name] != value:
                raise UserError(f"{self.where}: {name} is {self.content[name]!r}; four_d supports only {value!r}")


def read_case(folder: str | Path) -> Case:
    """Read a directory of that format.

    Raises:
        UserError: a file is missing or damaged, sizes are missing, or a setting is not supported by our parts.

    """
    folder = Path(folder)
    sizes = Sizes(_json(folder / DESCRIPTION), str(folder / DESCRIPTION))
    files = {name: f"{name}.safetensors" for name in ("weights", "inputs", "outputs", "outputs_fp64")}
    files |= (
        {name: sizes.section("files").get(name, str, file) for name, file in files.items()} if "files" in sizes else {}
    )
    exact = folder / files["outputs_fp64"]
    inputs = read_state(folder / files["inputs"])
    weights = vggt.with_aggregator_prefix(read_state(folder / files["weights"]))
    outputs, noise = read_state(folder / files["outputs"]), sizes.section(FLOOR)
    return Case(
        name=sizes.get("name", str, folder.name),
        model=model_config(sizes, weights),
        alphas=_alphas(sizes.section("mask"), outputs) if "mask" in sizes else None,
        weights=weights,
        images=_images(inputs, sizes, folder / files["inputs"]),
        query_points=inputs.get("query_points"),
        outputs=outputs,
        outputs_fp64=read_state(exact) if exact.is_file() else {},
        noise={name: noise.get(name, float) for name in noise.content},
    )


def model_config(sizes: Sizes, weights: State) -> ModelConfig:
    """Config of the model in ``case.json``, with the heads that have weights."""
    aggregator = sizes.section("aggregator")
    aggregator.expect(FIXED)
    dynamics = _dynamics(sizes.section("mask"), weights) if "mask" in sizes else None
    without_scale = "init_values" in aggregator.content and "init_values" not in aggregator
    backbone = AlternatingConfig(
        patches=_patches(sizes, aggregator),
        dynamics=dynamics,
        patch_size=aggregator.get("patch_size", int, 14),
        width=aggregator.get("embed_dim", int),
        rounds=aggregator.get("depth", int),
        heads=aggregator.get("num_heads", int),
        mlp_ratio=aggregator.get("mlp_ratio", float, 4.0),
        registers=aggregator.get("num_register_tokens", int, 4, least=0),
        group=aggregator.get("aa_block_size", int, 1),
        qk_norm=aggregator.get("qk_norm", bool, True),
        layer_scale=None if without_scale else aggregator.get("init_values", float, 0.01),
        rope_base=aggregator.get("rope_freq", float, 100.0),
    )
    return ModelConfig(backbone=backbone, heads=_heads(sizes, {name.split(".")[0] for name in weights}))


def _heads(sizes: Sizes, parts: set[str]) -> dict[str, HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    if "camera_head" in parts:
        heads["camera"] = _camera(sizes.section("camera_head"))
    if "depth_head" in parts:
        heads["depth"] = _dense(sizes)
    if "point_head" in parts:
        heads["points"] = _dense(sizes, points=True)
    if "track_head" in parts:
        heads["track"] = _track(sizes.section("track_head"), sizes.section("dpt"))
    if "mask" in sizes:
        heads["dynamic"] = DynamicHeadConfig()
    return heads


def _patches(sizes: Sizes, aggregator: Sizes) -> PatchConfig:
    """Config of a convolution or an encoder: a section of its own, or one word among the aggregator's sizes."""
    if "patch_embed" not in sizes:
        kind = aggregator.get("patch_embed", str, "conv")
        if kind != "conv":
            raise UserError(f"{aggregator.where}: patch_embed is {kind!r}, and there is no section with its sizes")
        return ConvPatchConfig()
    encoder = sizes.section("patch_embed")
    if encoder.get("kind", str) == "conv":
        return ConvPatchConfig()
    encoder.expect(FIXED_ENCODER)
    return encoder_config(
        aggregator.get("embed_dim", int),
        encoder.get("depth", int),
        encoder.get("img_size", int),
        registers=encoder.get("num_register_tokens", int, 0, least=0),
        heads=encoder.get("num_heads", int),
    )


def _camera(camera: Sizes) -> CameraHeadConfig:
    camera.expect(FIXED_CAMERA)
    return CameraHeadConfig(
        depth=camera.get("trunk_depth", int, 4),
        heads=camera.get("num_heads", int, 16),
        iterations=camera.get("num_iterations", int, 4),
    )


def _dense(sizes: Sizes, *, points: bool = False) -> DenseHeadConfig:
    dpt = sizes.section("dpt")
    return DenseHeadConfig(
        output="points" if points else "depth",
        rounds=dpt.numbers("intermediate_layer_idx"),
        channels=dpt.numbers("out_channels"),
        features=dpt.get("features", int),
        chunk=sizes.section("input").get("frames_chunk_size", int, 8),
    )


def _track(track: Sizes, dpt: Sizes) -> TrackHeadConfig:
    ratio = track.get("down_ratio", int, 2)
    track.expect({**FIXED_TRACK, "stride": ratio})
    return TrackHeadConfig(
        rounds=dpt.numbers("intermediate_layer_idx"),
        channels=dpt.numbers("out_channels"),
        features=track.get("features", int),
        down_ratio=ratio,
        levels=track.get("corr_levels", int),
        radius=track.get("corr_radius", int, least=0),
        hidden=track.get("hidden_size", int),
        depth=track.get("depth", int),
        heads=track.get("num_heads", int),
        virtual=track.get("num_virtual_tracks", int, 64),
        iterations=track.get("iters", int),
    )


def _dynamics(mask: Sizes, weights: State) -> DynamicsConfig:
    rounds = mask.numbers("used_in_global_blocks")
    if not rounds or list(rounds) != list(range(rounds[0], rounds[-1] + 1)):
        raise UserError(f"{mask.where}: used_in_global_blocks is {list(rounds)}; four_d supports only rounds in a row")
    return DynamicsConfig(
        after=mask.get("predicted_after_frame_block", int, least=0),
        rounds=(rounds[0], rounds[-1]),
        scale=mask.get("scale", float),
        hidden=page_4d.mask_width(weights) or DynamicsConfig().hidden,
        hold=None,
    )


def _alphas(mask: Sizes, outputs: State) -> dict[str, float]:
    """α by prefix of the outputs: from ``mask.alpha``, from `ALPHAS`, or from a group's ``mask_rows``."""
    by_group = mask.content.get("alpha")
    table = (
        Sizes(cast(object, by_group), f"{mask.where}: alpha") if isinstance(by_group, Mapping) else Sizes(ALPHAS, "")
    )
    groups = sorted({name.split(".")[0] for name in outputs if name.startswith("mask_") and "." in name})
    if not groups:
        return {"": mask.get("alpha", float, 1.0)}
    rows = {group: outputs.get(f"{group}.mask_rows") for group in groups}
    scale = mask.get("scale", float) or 1.0
    measured = {group: float(each.max()) / scale for group, each in rows.items() if each is not None}
    return {f"{group}.": table.get(group, float, measured.get(group)) for group in groups}


def _images(inputs: Mapping[str, Tensor], sizes: Sizes, file: Path) -> Tensor:
    if "images" not in inputs:
        raise UserError(f"{file} lacks images")
    images = inputs["images"]
    if "input" in sizes:
        sizes_of_input = sizes.section("input")
        expected = (
            sizes_of_input.get("B", int),
            sizes_of_input.get("S", int),
            3,
            sizes_of_input.get("H", int),
            sizes_of_input.get("W", int),
        )
        if tuple(images.shape) != expected:
            raise UserError(f"{file}: images are {tuple(images.shape)}, {DESCRIPTION} says {expected} (B, S, 3, H, W)")
    if images.ndim != 5 or images.shape[2] != 3:
        raise UserError(f"{file}: images are {tuple(images.shape)}; they must be (B, S, 3, H, W)")
    return images


def _json(file: Path) -> Plain:
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a directory of a golden case (docs/weights.md)")
    try:
        return cast(Plain, json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
