"""Names, skeletons and queries of keypoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from four_d import fields
from four_d.data.sampling import to_clip
from four_d.keypoints import (
    NAME_BYTES,
    check_edges,
    check_skeleton,
    decode_names,
    encode_names,
    knn_edges,
    mirrored_names,
    named,
    nearest_pairs,
    queries_of,
)
from four_d.losses.supervision import supervised
from four_d.trajectories import of_true_keypoints
from four_d.types import Keypoints
from tests.helpers import full
from tests.keypoint_scene import EDGES, LENGTHS, NAMES, chain_clip


@pytest.fixture(scope="module")
def keypoints() -> Keypoints:
    found = to_clip(chain_clip()).keypoints
    assert found is not None
    return found


def test_names_travel_as_bytes() -> None:
    names = ["left_eye", "père", "x" * NAME_BYTES]
    rows = encode_names(names)
    assert rows.shape == (3, NAME_BYTES)
    assert decode_names(rows) == names
    assert named(torch.cat([rows, torch.zeros_like(rows)])).tolist() == [True] * 3 + [False] * 3
    for wrong in ("", "é" * 17, "a\0b"):
        with pytest.raises(ValueError, match="choose one of 1 to 32"):
            encode_names(["nose", wrong])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("left_front_paw", "right_front_paw"),
        ("paw_r", "paw_l"),
        ("L_F_Paw", "R_F_Paw"),
        ("LeftArm", "RightArm"),
        ("lShoulder", "rShoulder"),
        ("LEFT EYE", "RIGHT EYE"),
        ("cleft_lip", "cleft_lip"),
        ("L5", "L5"),
        ("l_5", "l_5"),
        ("paw_l_2", "paw_r_2"),
        ("nose", "nose"),
        ("root of tail", "root of tail"),
    ],
)
def test_names_are_mirrored_as_words(name: str, other: str) -> None:
    assert decode_names(mirrored_names(encode_names([name]))) == [other]
    assert decode_names(mirrored_names(encode_names([other])[None])[0]) == [name]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 1), (2, 2)], "bone 1 joins 'c' with itself"),
        ([(0, 3)], r"bone 0 ends at keypoint 3, and there are 3, counted from 0; .*subtract 1"),
        ([(-1, 0)], "bone 0 ends at keypoint -1"),
        ([(0, 1), (1, 0)], "bone 1 joins 'b' and 'a', as an earlier one does"),
        ([(0, 1, 2)], r"bone 0 is \[0, 1, 2\]; give the indices of its two"),
    ],
)
def test_bones_that_are_none_are_named(edges: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_edges(edges, ["a", "b", "c"])


def test_skeletons_that_are_none_are_named() -> None:
    check_skeleton(["a", "a", "b"], [1, 2, 1], [(0, 2)], [True])
    with pytest.raises(ValueError, match="instance 1 has two keypoints 'a'"):
        check_skeleton(["a", "b", "a"], [1, 1, 1], [], [])
    with pytest.raises(ValueError, match="1 instances for 2 keypoints"):
        check_skeleton(["a", "b"], [1], [], [])
    with pytest.raises(ValueError, match="rigid has 0 entries for 1 bones"):
        check_skeleton(["a", "b"], [1, 1], [(0, 1)], [])
    longest = "left_" + "x" * 27
    with pytest.raises(ValueError, match="mirrored is longer than 32 bytes; shorten it"):
        check_skeleton([longest], [1], [], [])
    check_skeleton([longest[:-1]], [1], [], [])


def test_nearest_neighbours_make_a_skeleton() -> None:
    line = torch.tensor([[0.0, 0], [1, 0], [2.1, 0], [3.3, 0], [50, 50]]).repeat(3, 1, 1)
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[:, 4] = False
    assert knn_edges(line, valid, k=1).tolist() == [[0, 1], [1, 2], [2, 3]]
    # one frame, of which only some points are known, moves no mean
    line[0], valid[0] = torch.rand(5, 2) * 100, False
    assert knn_edges(line, valid, k=1).tolist() == [[0, 1], [1, 2], [2, 3]]
    order = torch.tensor([3, 0, 4, 1, 2])
    found = {frozenset(order[edge].tolist()) for edge in knn_edges(line[:, order], valid[:, order], k=2)}
    assert found == {frozenset(edge) for edge in knn_edges(line, valid, k=2).tolist()}
    for count in (0, 1):
        assert knn_edges(line[:, :count], valid[:, :count]).shape == (0, 2)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_pairs_of_neighbours_are_as_many_whatever_the_points_are(k: int) -> None:
    points = torch.rand(4, 12, 3, generator=torch.Generator().manual_seed(k))
    valid = torch.rand(4, 12, generator=torch.Generator().manual_seed(k + 1)) > 0.5
    distance = torch.where(valid[:, :, None] & valid[:, None], torch.cdist(points, points), torch.nan).nanmean(0)
    distance = distance.fill_diagonal_(torch.nan).nan_to_num(torch.inf)
    near = [[j for j in row.argsort()[:k].tolist() if row[j].isfinite()] for row in distance]
    expected = sorted({(min(i, j), max(i, j)) for i, each in enumerate(near) for j in each})
    found = nearest_pairs(points, valid, k)
    assert found.shape == (12 * min(k, 11), 2)
    assert [tuple(edge) for edge in found.tolist()] == expected + [(0, 0)] * (len(found) - len(expected))


def test_bones_follow_their_points(keypoints: Keypoints) -> None:
    found = fields.take(keypoints, "n", [4, 3, 0])
    assert decode_names(found.names) == ["right_foot", "right_knee", "root"]
    assert found.edges.tolist() == [[2, 1], [1, 0]], "root to knee to foot, and nothing of the left leg"
    assert found.rigid.tolist() == [True, True]
    joined = fields.join([found, found], "n")
    assert joined.edges.tolist() == [[2, 1], [1, 0], [5, 4], [4, 3]]
    assert fields.take(keypoints, "n", []).edges.shape == (0, 2)
    with pytest.raises(ValueError, match="edges differs within the batch"):
        fields.take(fields.stack([full(Keypoints, seed) for seed in range(4)]), "n", [0, 1])


def test_a_query_has_the_name_and_the_box_of_its_thing(keypoints: Keypoints) -> None:
    names, boxes = queries_of(keypoints, (32, 32))
    assert torch.equal(names, keypoints.names)
    own = keypoints.pixels[0]
    torch.testing.assert_close(boxes, torch.stack([own.amin(0), own.amax(0)]).clamp(0, 32).expand(5, 2, 2))
    two = dataclasses.replace(keypoints, instances=torch.tensor([1, 1, 1, 2, 2]))
    torch.testing.assert_close(queries_of(two, (32, 32))[1][:3, 0], own[:3].amin(0).clamp(0, 32).expand(3, 2))
    late = dataclasses.replace(keypoints, pixels_valid=keypoints.pixels_valid & (torch.arange(4) > 0)[:, None])
    assert queries_of(late, (32, 40))[1][0].tolist() == [[0, 0], [40, 32]], "unknown in the first frame"
    for each, box in zip(
        fields.stack([keypoints, two]).instances, queries_of(fields.stack([keypoints, two]), (9, 9))[1]
    ):
        alone = dataclasses.replace(keypoints, instances=each)
        assert torch.equal(box, queries_of(alone, (9, 9))[1])


def test_true_keypoints_are_trajectories(keypoints: Keypoints) -> None:
    clip = fields.stack([to_clip(chain_clip())])
    found = of_true_keypoints(clip)
    assert found is not None
    assert found.edges is not None
    assert found.points.shape == (1, 5, 4, 3)
    ends = found.points[0, torch.tensor(EDGES)]
    torch.testing.assert_close((ends[:, 0] - ends[:, 1]).norm(dim=-1), torch.tensor(LENGTHS)[:, None].expand(4, 4))
    assert found.edges[0].tolist() == [list(edge) for edge in EDGES]
    assert of_true_keypoints(dataclasses.replace(clip, keypoints=None)) is None
    assert supervised(clip, ["keypoints"]).tolist() == [True]
    assert supervised(dataclasses.replace(clip, keypoints=None), ["keypoints"]).tolist() == [False]
    assert len(NAMES) == len(keypoints.instances)
