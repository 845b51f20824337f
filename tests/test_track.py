from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.heads.track import TrackHeadConfig
from four_d.model import FourD
from four_d.types import Clip
from tests.test_parity import our_model, our_name

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
SMALL = TrackHeadConfig(
    channels=(8, 8, 8, 8), features=16, levels=3, radius=2, hidden=16, depth=2, heads=2, virtual=4, iterations=3
)
BACKBONE = AlternatingConfig(patch_size=8, width=32, rounds=4, heads=2, registers=2, layer_scale=0.5, special_std=0.5)
FIELDS = ("pixel_tracks", "pixel_tracks_visible", "pixel_tracks_confidence")

RENAMED = [
    (r"^track_head\.feature_extractor\.", "heads.track.features."),
    (r"^track_head\.tracker\.updateformer\.", "heads.track.update."),
    (r"^track_head\.tracker\.", "heads.track."),
    (r"\.fmap_norm\.", ".map_norm."),
    (r"\.corr_mlp\.", ".correlation."),
    (r"\.query_ref_token", ".frame_token"),
    (r"\.ffeat_norm\.", ".feature_norm."),
    (r"\.ffeat_updater\.0\.", ".feature_step."),
    (r"\.vis_predictor\.0\.", ".visible."),
    (r"\.conf_predictor\.0\.", ".confidence."),
    (r"\.input_norm\.", ".norm_in."),
    (r"\.input_transform\.", ".embed."),
    (r"\.output_norm\.", ".norm_out."),
    (r"\.flow_head\.", ".out."),
    (r"\.virual_tracks", ".virtual_tracks"),
    (r"\.space_virtual_blocks\.", ".virtual_blocks."),
    (r"\.space_virtual2point_blocks\.", ".virtual_from_points."),
    (r"\.space_point2virtual_blocks\.", ".points_from_virtual."),
    (r"\.(cross_)?attn\.in_proj_", ".attn.qkv."),
    (r"\.(cross_)?attn\.out_proj\.", ".attn.proj."),
]


def our_track_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if name.startswith("track_head."):
            for pattern, replacement in RENAMED:
                name = re.sub(pattern, replacement, name)
            ours[our_name(name)] = value
    return {name.removeprefix("heads.track."): value for name, value in ours.items()}


def golden(name: str, dtype: torch.dtype) -> tuple[FourD, Clip, dict[str, object]]:
    """The case's model with a track head, its input in our pixels, and its description."""
    folder = REFERENCE / name
    if not folder.is_dir():
        pytest.skip("../shared/reference is not there")
    case = json.loads((folder / "case.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    model = our_model(case, weights)
    size, dpt = case["track_head"], case["dpt"]
    head = TrackHeadConfig(
        rounds=tuple(dpt["intermediate_layer_idx"]),
        channels=tuple(dpt["out_channels"]),
        features=size["features"],
        levels=size["corr_levels"],
        radius=size["corr_radius"],
        hidden=size["hidden_size"],
        depth=size["depth"],
        heads=size["num_heads"],
        virtual=size["num_virtual_tracks"],
        iterations=size["iters"],
        chunk=2,
    ).build(token_width=model.backbone.token_width, rounds=model.backbone.rounds, patch_size=model.patch_size)
    head.load_state_dict(our_track_weights(weights))
    model = FourD(model.backbone, {"track": head}).to(dtype).eval()
    inputs = load_file(folder / "inputs.safetensors")
    images, queries = inputs["images"].to(dtype), inputs["query_points"].to(dtype)
    b, f = images.shape[:2]
    clip = Clip(
        images=images,
        times=torch.zeros(b, f),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
        query_points=torch.nn.functional.pad(queries + 0.5, (1, 0)),
    )
    return model, clip, case


@pytest.mark.parametrize("name", ["vggt_tiny_conv", "vggt_tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tracks_equal_vggt(name: str, dtype: torch.dtype) -> None:
    model, clip, case = golden(name, dtype)
    with torch.no_grad():
        found = model(clip)
        maps = model.heads["track"].features.maps(model.backbone(clip))
    ours = {f"track_list.{k}": stage - 0.5 for k, stage in enumerate(found.pixel_track_stages)} | {
        "track": found.pixel_tracks - 0.5,
        "vis": found.pixel_tracks_visible,
        "conf": found.pixel_tracks_confidence,
        "track_feature_maps": maps,
    }
    theirs = load_file(REFERENCE / name / f"outputs{'' if dtype == torch.float32 else '_fp64'}.safetensors")
    shared = ours.keys() & theirs.keys()
    assert shared >= ({"track", "vis", "conf"} if dtype == torch.float64 else ours.keys())
    for key in shared:
        exact = 1e-6 * max(1.0, theirs[key].abs().max().item())
        floor = case["fp32_vs_fp64_max_abs_diff"][key]
        tolerance = exact if dtype == torch.float64 else max(5 * floor, 1e-5)
        difference = (ours[key] - theirs[key]).abs().max().item()
        print(f"{name} {dtype} {key}: {difference:.2e} of {tolerance:.2e}")
        assert difference <= tolerance, f"{key}: {difference} > {tolerance}"
