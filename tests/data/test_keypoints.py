"""Keypoints on their way from the shard to the batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d import fields
from four_d.data.augment import NO_AUGMENT, augment
from four_d.data.check import check
from four_d.data.contract import RawClip, modalities, problems, truths
from four_d.data.crops import CropRule, crop
from four_d.data.encoding import BadMemberError, decode_info, encode_clip
from four_d.data.measures import Measure, Unchecked
from four_d.data.sampling import collate, model_inputs, normalise, to_clip, to_example
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.data.skeletons import keypoint_findings
from four_d.geometry import project
from four_d.keypoints import decode_names, named
from four_d.types import Clip
from tests.helpers import box_clip
from tests.keypoint_scene import EDGES, NAMES, chain_clip


@pytest.fixture(scope="module")
def raw() -> RawClip:
    return chain_clip(1, frames=4, cameras=2, size=(24, 32))


def reprojects(clip: Clip) -> None:
    """The known pixels are those of the known points."""
    assert clip.keypoints is not None
    assert clip.cameras is not None
    pixels, _ = project(clip.keypoints.points, clip.cameras)
    torch.testing.assert_close(pixels, clip.keypoints.pixels, atol=1e-3, rtol=1e-4)


def changed(raw: RawClip, **arrays: object) -> RawClip:
    assert raw.keypoints is not None
    return dataclasses.replace(raw, keypoints=dataclasses.replace(raw.keypoints, **arrays))  # pyright: ignore[reportArgumentType]


def said(raw: RawClip, **info: object) -> RawClip:
    assert raw.info.keypoints is not None
    changed = dataclasses.replace(raw.info.keypoints, **info)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(raw, info=dataclasses.replace(raw.info, keypoints=changed))


def test_a_shard_gives_back_what_was_written(raw: RawClip, tmp_path: Path) -> None:
    plain = box_clip(2, frames=4, size=(24, 32))
    write_shard(tmp_path, 0, [raw, plain])
    assert finalise(tmp_path, "chains").modalities == ["cameras", "keypoints", "surface"]
    reader = ShardReader(tmp_path)
    found, part = reader.read(0), reader.read(0, [5, 2])
    assert found.info == raw.info
    assert raw.keypoints is not None
    assert found.keypoints is not None
    assert part.keypoints is not None
    for name, value in vars(raw.keypoints).items():
        np.testing.assert_array_equal(getattr(found.keypoints, name), value)
        np.testing.assert_array_equal(getattr(part.keypoints, name), value[[5, 2]])
    assert modalities(raw) == ["cameras", "keypoints"]
    assert truths(modalities(raw)) == {"cameras", "keypoints", "views"}
    assert reader.read(1).keypoints is None


def test_clips_without_keypoints_keep_their_bytes(raw: RawClip) -> None:
    assert "keypoints" not in json.loads(encode_clip(box_clip(0, frames=1, size=8))["clip.json"])
    assert json.loads(encode_clip(raw)["clip.json"])["keypoints"] == {
        "names": NAMES,
        "instances": [4] * 5,
        "edges": [list(edge) for edge in EDGES],
        "rigid": [True] * 4,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": [(0, 9)], "rigid": [True]}, "bone 0 ends at keypoint 9, and there are 5"),
        ({"edges": [(2, 2)], "rigid": [True]}, "bone 0 joins 'left_foot' with itself"),
        ({"edges": [(2, 1), (1, 2)], "rigid": [True] * 2}, "as an earlier one does"),
        ({"rigid": [True]}, "rigid has 1 entries for 4 bones"),
        ({"names": ["root", "root", *NAMES[2:]]}, "instance 4 has two keypoints 'root'"),
        ({"names": ["n" * 40, *NAMES[1:]]}, "is of 40 bytes"),
        ({"names": NAMES[:4]}, "5 instances for 4 keypoints"),
    ],
)
def test_bad_skeletons_are_refused(raw: RawClip, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"clip {raw.key}: clip.json: keypoints: .*{message}"):
        encode_clip(said(raw, **change))


def test_bad_arrays_are_refused(raw: RawClip) -> None:
    assert raw.keypoints is not None
    assert problems(raw) == []
    points, visible = raw.keypoints.points.copy(), raw.keypoints.visible.copy()
    points[3, 1] = np.nan
    assert problems(changed(raw, points=points)) == ["keypoints holds NaN or infinity; invalid values are 0"]
    assert problems(changed(raw, valid=raw.keypoints.valid[:, :4]))[0].startswith("keypoints_valid is bool (8, 4)")
    pixels = raw.keypoints.pixels.copy()
    pixels[2, 4], visible[2, 4] = (40, 3), True
    text = "keypoints_visible: frame 2 sees 'right_foot', whose pixel is unknown or outside the image"
    assert problems(changed(raw, pixels=pixels, visible=visible))[0].startswith(text)
    unnamed = dataclasses.replace(raw, info=dataclasses.replace(raw.info, keypoints=None))
    for wrong in (unnamed, dataclasses.replace(raw, keypoints=None)):
        assert problems(wrong) == [
            "clip.json: keypoints (their names and bones) and keypoints.npy come together or not at all"
        ]


@pytest.mark.parametrize("wrong", [[], {"names": ["a"]}, {"names": ["a"], "instances": [1], "colour": 3}])
def test_a_bad_description_is_refused(raw: RawClip, wrong: object) -> None:
    content = json.loads(encode_clip(raw)["clip.json"])
    with pytest.raises(BadMemberError, match="field 'keypoints'"):
        decode_info(json.dumps(content | {"keypoints": wrong}).encode())


def test_keypoints_move_with_the_cameras_and_the_unit(raw: RawClip) -> None:
    clip = to_clip(raw)
    reprojects(clip)
    assert clip.keypoints is not None
    assert raw.keypoints is not None
    first = fields.unstack(clip.cameras, 0)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(first.world_from_camera, torch.eye(4))
    scaled = normalise(clip)
    reprojects(scaled)
    assert scaled.keypoints is not None
    assert scaled.scale is not None
    torch.testing.assert_close(scaled.keypoints.points * scaled.scale, clip.keypoints.points)
    assert float(scaled.keypoints.points.norm(dim=-1).mean()) == pytest.approx(1, abs=1e-5), "without depth"
    valid = raw.keypoints.valid.copy()
    valid[1, 2] = False
    assert not to_clip(changed(raw, valid=valid)).keypoints.points[1, 2].any()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_crop_takes_its_keypoints_along(raw: RawClip) -> None:
    before = to_clip(raw)
    clip = crop(before, CropRule(size=(16, 16), zoom=0.5))
    reprojects(clip)
    assert clip.keypoints is not None
    assert before.keypoints is not None
    inside = ((clip.keypoints.pixels >= 0) & (clip.keypoints.pixels < 16)).all(-1)
    assert torch.equal(clip.keypoints.visible, inside & before.keypoints.visible)
    assert 0 < int(clip.keypoints.visible.sum()) < int(before.keypoints.visible.sum())
    asked = model_inputs(before, ("boxes",))
    boxes = crop(
        dataclasses.replace(before, keypoint_names=asked.keypoint_names, keypoint_boxes=asked.keypoint_boxes),
        CropRule(size=(16, 16), zoom=0.5),
    )
    torch.testing.assert_close(
        boxes.keypoint_boxes[0, 0],  # pyright: ignore[reportOptionalSubscript]
        clip.keypoints.pixels[0].amin(0),
    )


def test_a_mirrored_clip_has_mirrored_names(raw: RawClip) -> None:
    config = dataclasses.replace(NO_AUGMENT, mirror_share=1.0)
    plain = crop(to_clip(raw), CropRule(size=(24, 24)))
    clip = augment(plain, config, np.random.default_rng(0))
    reprojects(clip)
    assert clip.keypoints is not None
    assert plain.keypoints is not None
    assert decode_names(clip.keypoints.names) == ["root", "right_knee", "right_foot", "left_knee", "left_foot"]
    torch.testing.assert_close(clip.keypoints.pixels[..., 0], 24 - plain.keypoints.pixels[..., 0])


def test_a_model_is_asked_for_the_keypoints_and_shown_no_truth(raw: RawClip) -> None:
    example = to_example(to_clip(raw), "key")
    assert example.inputs.keypoints is None
    assert example.inputs.keypoint_names is not None
    assert decode_names(example.inputs.keypoint_names) == NAMES
    assert example.inputs.keypoint_boxes is None
    assert to_example(to_clip(raw), "key", ["boxes"]).inputs.keypoint_boxes is not None
    asked = dataclasses.replace(to_clip(raw), keypoint_names=example.inputs.keypoint_names[:2])
    assert len(model_inputs(asked, ()).keypoint_names) == 2  # pyright: ignore[reportArgumentType]


def test_batches_of_clips_with_other_keypoints_and_with_none(raw: RawClip) -> None:
    few = fields.take(to_clip(raw).keypoints, "n", [0, 1])
    with_few = dataclasses.replace(to_clip(raw), keypoints=few)
    none = to_clip(box_clip(2, frames=4, cameras=2, size=(24, 32)))
    clips = [to_clip(raw), with_few, none]
    batch = collate([to_example(clip, "key", ["boxes"]) for clip in clips])
    found = batch.targets.keypoints
    assert found is not None
    assert found.points.shape == (3, 8, 5, 3)
    assert named(found.names).sum(-1).tolist() == [5, 2, 0]
    assert found.valid.flatten(1).sum(-1).tolist() == [40, 16, 0]
    assert found.edges[1].tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]
    assert batch.inputs.keypoint_names is not None
    assert batch.inputs.keypoint_boxes is not None
    assert torch.equal(batch.inputs.keypoint_names, found.names)
    assert batch.inputs.keypoint_boxes.shape == (3, 5, 2, 2)
    assert collate([to_example(none, "key")]).targets.keypoints is None
    assert collate([to_example(none, "key")]).inputs.keypoint_names is None


def test_boxes_of_some_clips_are_whole_images_in_the_others(raw: RawClip) -> None:
    example, bare = to_example(to_clip(raw), "key", ["boxes"]), to_example(to_clip(raw), "key")
    boxes = collate([example, bare]).inputs.keypoint_boxes
    assert boxes is not None
    assert boxes[1].tolist() == [[[0, 0], [32, 24]]] * 5
    assert collate([bare, bare]).inputs.keypoint_boxes is None


def test_positions_without_cameras_do_not_count(raw: RawClip) -> None:
    """They are in a world of the source's own, which no model could know; pixels still count."""
    found = to_clip(dataclasses.replace(raw, world_from_camera=None, intrinsics=None, surface=None)).keypoints
    assert found is not None
    assert not found.valid.any()
    assert not found.points.any()
    assert found.pixels_valid.any()


def test_a_source_of_pixels_alone(raw: RawClip) -> None:
    flat = dataclasses.replace(
        changed(raw, points=np.zeros((8, 5, 3), np.float32), valid=np.zeros((8, 5), bool)),
        world_from_camera=None,
        intrinsics=None,
    )
    assert problems(flat) == []
    clip = normalise(to_clip(flat))
    assert clip.keypoints is not None
    assert float(clip.scale) == 1  # pyright: ignore[reportArgumentType]
    assert clip.keypoints.pixels_valid.all()


def failures(raw: RawClip) -> list[tuple[str, str]]:
    return [(m.check, m.what) for m in keypoint_findings(raw) if isinstance(m, Measure) and not m.ok]


def test_the_check_knows_sound_keypoints(raw: RawClip) -> None:
    found = [each for each in keypoint_findings(raw) if isinstance(each, Measure)]
    assert [m.check for m in found] == ["keypoint pixels", "bone lengths"]
    assert all(m.ok and m.value < 1e-3 for m in found)
    assert list(keypoint_findings(box_clip(0, frames=1, size=8))) == []
    assert raw.keypoints is not None
    never = changed(raw, valid=np.zeros_like(raw.keypoints.valid))
    unknown = [each for each in keypoint_findings(never) if isinstance(each, Unchecked)]
    assert [each.what for each in unknown] == ["keypoint pixels", "bone lengths"]


def test_the_check_names_planted_faults(raw: RawClip) -> None:
    assert raw.keypoints is not None
    assert raw.world_from_camera is not None
    points, pixels = raw.keypoints.points, raw.keypoints.pixels
    inverted = dataclasses.replace(raw, world_from_camera=np.linalg.inv(raw.world_from_camera))
    assert [check for check, _ in failures(inverted)] == ["keypoint pixels"]
    halved = changed(raw, pixels=pixels / 2)
    assert [check for check, _ in failures(halved)] == ["keypoint pixels"]
    order = points.copy()
    order[3] = order[3, [0, 2, 1, 3, 4]]  # knee and foot swapped in one frame
    swapped = dict(failures(changed(raw, points=order)))
    late = points.copy()
    late[:4] = late[[3, 2, 1, 0]]
    assert "keypoint pixels" in {check for check, _ in failures(changed(raw, points=late))}
    stretched = points.copy()
    stretched[5:, 4] += 0.5
    found = dict(failures(changed(raw, points=stretched)))
    assert "from right_knee to right_foot" in found["bone lengths"]
    assert "from root to left_knee" in swapped["bone lengths"], "in one frame of eight"
    loose = said(changed(raw, points=stretched), rigid=[True, True, True, False])
    assert "bone lengths" not in dict(failures(loose))


def test_the_check_of_a_folder_tells_the_frame(raw: RawClip, tmp_path: Path) -> None:
    assert raw.keypoints is not None
    pixels = raw.keypoints.pixels.copy()
    pixels[6] += 5
    write_shard(tmp_path, 0, [changed(raw, pixels=pixels, visible=np.zeros_like(raw.keypoints.visible))])
    finalise(tmp_path, "chains")
    report = check(tmp_path, shown=False)
    assert [(f.check, f.frame) for f in report.failures] == [("keypoint pixels", 6)]
