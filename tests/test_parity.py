"""Our numbers beside VGGT's and PAGE-4D's own, run with seeded random weights (skips where those files are absent)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from four_d import config, schema
from four_d.model import ModelConfig
from four_d.weights import KINDS, verify, vggt
from four_d.weights.cases import read_case
from four_d.weights.convert import target_of
from four_d.weights.verify import compare

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
VGGT = {
    *("patch_tokens", "aggregator.block_00", "aggregator.block_03", "pose_enc_list.0", "pose_enc", "extrinsic"),
    *("intrinsic", "depth", "depth_conf", "world_points", "world_points_conf", "track_feature_maps"),
    *("track_list.0", "track", "vis", "conf"),
}
PAGE_4D = {
    f"{group}.{name}"
    for group in ("mask_on", "mask_half", "mask_off")
    for name in ("mask_head_input", "mask_rows", "mask_keys", "block_10", "block_19", "block_23")
}


def reference(name: str) -> Path:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip("../shared/reference is not there")
    return path


@pytest.mark.parametrize(("name", "outputs"), [("vggt_tiny", VGGT), ("vggt_tiny_conv", VGGT), ("page4d_tiny", PAGE_4D)])
def test_outputs_equal_the_published_codes(name: str, outputs: set[str]) -> None:
    report = verify(reference(name))
    assert {row.name for row in report.rows} >= outputs
    assert [row for row in report.rows if not row.good] == []
    assert any(row.exact for row in report.rows) == (outputs is VGGT)


@pytest.mark.parametrize("name", ["vggt_tiny", "vggt_tiny_conv"])
def test_frames_in_small_chunks_change_nothing(name: str) -> None:
    case = read_case(reference(name))
    chunked = {
        key: head if key == "camera" else dataclasses.replace(head, chunk=2) for key, head in case.model.heads.items()
    }
    report = compare(dataclasses.replace(case, model=dataclasses.replace(case.model, heads=chunked)))
    assert [row for row in report.rows if not row.good] == []


@pytest.mark.parametrize(("name", "kind"), [("vggt_tiny", "vggt"), ("page4d_tiny", "page_4d")])
def test_sizes_are_read_off_the_shapes(name: str, kind: str) -> None:
    case = read_case(reference(name))
    inferred, given = (target_of(KINDS[kind], model) for model in (KINDS[kind].infer(case.weights), case.model))
    assert {key: value.shape for key, value in inferred.items()} == {key: value.shape for key, value in given.items()}


def test_large_has_exactly_the_tensors_of_vggt_1b() -> None:
    lines = reference("vggt_1b_state_dict.tsv").read_text().splitlines()[1:]
    table = {name: tuple(map(int, shape.split("x"))) for name, shape, _ in (line.split("\t") for line in lines)}
    assert len(table) == 1797
    theirs = {name: torch.empty(shape, device="meta") for name, shape in table.items()}
    plain = config.load_plain(["vggt", "overlays/large"])
    large = schema.build(ModelConfig, plain["model"], "model")
    assert vggt.infer(theirs) == large
    ours = vggt.ADAPTER.to_ours(theirs, target_of(KINDS["vggt"], large), "the table")
    back = vggt.ADAPTER.to_theirs(ours, "large")
    assert {name: tuple(value.shape) for name, value in back.items()} == table
