"""The mathematics against VGGT's own, run with seeded random weights (skips where those files are absent).

Keys are mapped here by hand; the real adapter comes with the weights table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import ConvPatchConfig, PatchConfig, TimmPatchConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.model import FourD, ModelConfig
from four_d.types import Clip, Prediction

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
XYZW_FROM_OURS = [0, 1, 2, 4, 5, 6, 3, 7, 8]
OURS_FROM_XYZW = [0, 1, 2, 6, 3, 4, 5, 7, 8]

RENAMED = [
    (r"^aggregator\.patch_embed\.proj\.", "backbone.patches.proj."),
    (r"^aggregator\.patch_embed\.patch_embed\.", "backbone.patches.encoder.patch_embed."),
    (r"^aggregator\.patch_embed\.register_tokens", "backbone.patches.encoder.reg_token"),
    (r"^aggregator\.patch_embed\.", "backbone.patches.encoder."),
    (r"^aggregator\.", "backbone."),
    (r"^camera_head\.empty_pose_tokens", "heads.camera.empty_pose"),
    (r"^camera_head\.poseLN_modulation\.1\.", "heads.camera.modulation."),
    (r"^camera_head\.", "heads.camera."),
    (r"^depth_head\.", "heads.depth."),
    (r"^point_head\.", "heads.points."),
    (r"\.resize_layers\.", ".resizes."),
    (r"\.scratch\.output_conv1\.", ".narrow."),
    (r"\.scratch\.output_conv2\.0\.", ".last."),
    (r"\.scratch\.output_conv2\.2\.", ".out."),
    (r"\.resConfUnit1\.", ".lateral."),
    (r"\.resConfUnit2\.", ".unit."),
]


def our_name(theirs: str) -> str:
    name = theirs
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    name = re.sub(r"\.scratch\.refinenet(\d)\.", lambda m: f".fusions.{int(m[1]) - 1}.", name)
    return re.sub(r"\.scratch\.layer(\d)_rn\.", lambda m: f".laterals.{int(m[1]) - 1}.", name)


def our_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {our_name(name): value for name, value in theirs.items() if not name.startswith("track_head.")}
    for name in ("embed_pose.weight", "empty_pose"):
        ours[f"heads.camera.{name}"] = ours[f"heads.camera.{name}"][..., OURS_FROM_XYZW]
    for name in ("weight", "bias"):
        ours[f"heads.camera.pose_branch.fc2.{name}"] = ours[f"heads.camera.pose_branch.fc2.{name}"][OURS_FROM_XYZW]
    if "backbone.patches.encoder.pos_embed" in ours:
        # timm keeps the class token's position inside the class token, and has no mask token.
        position = ours["backbone.patches.encoder.pos_embed"]
        ours["backbone.patches.encoder.cls_token"] = ours["backbone.patches.encoder.cls_token"] + position[:, :1]
        ours["backbone.patches.encoder.pos_embed"] = position[:, 1:]
        del ours["backbone.patches.encoder.mask_token"]
    return ours


def our_model(case: dict[str, dict[str, object]], weights: dict[str, Tensor]) -> FourD:
    size, dpt, camera = case["aggregator"], case["dpt"], case["camera_head"]
    patches: PatchConfig = ConvPatchConfig()
    if case["patch_embed"]["kind"] != "conv":
        patches = TimmPatchConfig(
            image_size=case["patch_embed"]["img_size"],
            depth=case["patch_embed"]["depth"],
            embed_width=size["embed_dim"],
            heads=case["patch_embed"]["num_heads"],
        )
    dense = {
        "rounds": tuple(dpt["intermediate_layer_idx"]),
        "channels": tuple(dpt["out_channels"]),
        "features": dpt["features"],
        "chunk": 2,
    }
    config = ModelConfig(
        backbone=AlternatingConfig(
            patches=patches,
            patch_size=size["patch_size"],
            width=size["embed_dim"],
            rounds=size["depth"],
            heads=size["num_heads"],
            mlp_ratio=size["mlp_ratio"],
            registers=size["num_register_tokens"],
            group=size["aa_block_size"],
        ),
        heads={
            "camera": CameraHeadConfig(depth=camera["trunk_depth"], heads=camera["num_heads"]),
            "depth": DenseHeadConfig(**dense),
            "points": DenseHeadConfig(output="points", **dense),
        },
    )
    model = config.build()
    model.load_state_dict(our_weights(weights))
    return model.eval()


def in_their_terms(prediction: Prediction) -> dict[str, Tensor]:
    stages = {f"pose_enc_list.{k}": each[..., XYZW_FROM_OURS] for k, each in enumerate(prediction.pose_encodings)}
    return stages | {
        "pose_enc": prediction.pose_encodings[-1][..., XYZW_FROM_OURS],
        "depth": prediction.depth[..., None],
        "depth_conf": prediction.depth_confidence,
        "world_points": prediction.points,
        "world_points_conf": prediction.points_confidence,
    }


@pytest.mark.parametrize("name", ["vggt_tiny_conv", "vggt_tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_equal_vggt(name: str, dtype: torch.dtype) -> None:
    folder = REFERENCE / name
    if not folder.is_dir():
        pytest.skip("../shared/reference is not there")
    case = json.loads((folder / "case.json").read_text())
    model = our_model(case, load_file(folder / "weights.safetensors")).to(dtype)
    images = load_file(folder / "inputs.safetensors")["images"].to(dtype)
    b, f = images.shape[:2]
    clip = Clip(images=images, times=torch.zeros(b, f), camera_ids=torch.zeros(b, f, dtype=torch.long))
    with torch.no_grad():
        ours = in_their_terms(model(clip))
        tokens = model.backbone(clip)
    ours |= {
        f"aggregator.block_{index:02d}": torch.cat([special, patches], dim=2)
        for index, special, patches in zip(tokens.rounds, tokens.special, tokens.patches)
    }
    suffix = "" if dtype == torch.float32 else "_fp64"
    theirs = load_file(folder / f"outputs{suffix}.safetensors")
    floor = case["fp32_vs_fp64_max_abs_diff"]
    shared = ours.keys() & theirs.keys()
    assert shared >= {"aggregator.block_03", "pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"}
    for key in shared:
        # In float64 the reference still rounds its sinusoidal embeddings to float32.
        exact = 1e-6 * max(1.0, theirs[key].abs().max().item())
        tolerance = exact if dtype == torch.float64 else max(5 * floor[key], 1e-5)
        difference = (ours[key] - theirs[key]).abs().max().item()
        assert difference <= tolerance, f"{key}: {difference} > {tolerance}"
