from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from four_d.errors import UserError
from four_d.formats.coco import read_coco

ANIMAL = [
    "L_Eye", "R_Eye", "Nose", "Neck", "Root of tail", "L_Shoulder", "L_Elbow", "L_F_Paw", "R_Shoulder", "R_Elbow",
    "R_F_Paw", "L_Hip", "L_Knee", "L_B_Paw", "R_Hip", "R_Knee", "R_B_Paw",
]  # fmt: skip
"""AP-10K's keypoints in its order."""
BONES = [
    [1, 2], [1, 3], [2, 3], [3, 4], [4, 5], [4, 6], [6, 7], [7, 8], [4, 9], [9, 10], [10, 11], [5, 12], [12, 13],
    [13, 14], [5, 15], [15, 16], [16, 17],
]  # fmt: skip


def ap10k() -> dict[str, Any]:
    """Two images and three animals in the layout of ap10k-train-split1.json."""
    row = {"area": 900, "iscrowd": 0, "bbox": [10, 20, 30, 30], "num_keypoints": 2}
    points = [0] * 51
    points[0:3], points[6:9] = [11, 22, 2], [15, 30, 1]
    return {
        "info": {"description": "AP-10k", "version": "1.0"},
        "licenses": [{"id": 1, "name": "The MIT License", "url": ""}],
        "images": [
            {"license": 1, "id": 37516, "file_name": "000000037516.jpg", "width": 64, "height": 48, "background": 4},
            {"license": 1, "id": 5, "file_name": "000000000005.jpg", "width": 32, "height": 32, "background": 1},
            {"license": 1, "id": 6, "file_name": "000000000006.jpg", "width": 32, "height": 32, "background": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 37516, "category_id": 7, "keypoints": points, **row},
            {"id": 2, "image_id": 37516, "category_id": 7, "keypoints": points, **row},
            {"id": 3, "image_id": 5, "category_id": 7, "keypoints": points, **row},
        ],
        "categories": [
            {"id": 7, "name": "deer", "supercategory": "Cervidae", "keypoints": ANIMAL, "skeleton": BONES},
            {"id": 8, "name": "moose", "supercategory": "Cervidae", "keypoints": ANIMAL, "skeleton": BONES},
        ],
    }


def written(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_ap10k_is_read(tmp_path: Path) -> None:
    images = read_coco(written(tmp_path, ap10k()))
    assert [(image.file, image.width, len(image.instances)) for image in images] == [
        ("000000037516.jpg", 64, 2),
        ("000000000005.jpg", 32, 1),
    ]
    assert images[0].licence == "The MIT License"
    deer = images[0].instances[0]
    assert deer.skeleton.category == "deer"
    assert deer.skeleton.names == tuple(ANIMAL)
    assert deer.skeleton.edges == tuple((a - 1, b - 1) for a, b in BONES)
    assert np.flatnonzero(deer.labelled).tolist() == [0, 2]
    assert np.flatnonzero(deer.visible).tolist() == [0]
    assert deer.pixels[[0, 2, 5]].tolist() == [[11.5, 22.5], [15.5, 30.5], [0, 0]]


def small(**category: object) -> dict[str, Any]:
    """One image of one thing with three keypoints."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{"id": 4, "image_id": 1, "category_id": 1, "keypoints": [1, 1, 1, 2, 2, 1, 0, 0, 0]}],
        "categories": [{"id": 1, "name": "thing", "keypoints": ["a", "b", "c"], "skeleton": [], **category}],
    }


def test_two_numbers_and_a_list_of_states(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file whose states are 0 and 1, with bones counted from 0 (PoseImageNet's form)."""
    content = small(skeleton=[[0, 1], [1, 2]])
    content["annotations"][0] |= {"keypoints": [1, 1, 2, 2, 0, 0], "visibility": [1, 1, 0]}
    with caplog.at_level(logging.WARNING):
        thing = read_coco(written(tmp_path, content))[0].instances[0]
    assert "1 is taken for visible" in caplog.text
    assert thing.visible.tolist() == thing.labelled.tolist() == [True, True, False]
    assert thing.skeleton.edges == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("bones", "base", "expected"),
    [
        ([[0, 1]], None, ((0, 1),)),
        ([[2, 3]], None, ((1, 2),)),
        ([[1, 2]], 0, ((1, 2),)),
        ([[1, 2]], 1, ((0, 1),)),
        ([], None, ()),
        ([[1, 2], [2, 1], [3, 1]], None, ((0, 1), (0, 2))),
    ],
)
def test_skeletons_count_from_0_or_from_1(tmp_path: Path, bones: object, base: Any, expected: object) -> None:
    assert read_coco(written(tmp_path, small(skeleton=bones)), base)[0].instances[0].skeleton.edges == expected


def test_one_category_settles_it_for_the_file(tmp_path: Path) -> None:
    content = small(skeleton=[[1, 2]])
    content["categories"].append({"id": 2, "name": "other", "keypoints": ["x", "y"], "skeleton": [[1, 2]]})
    assert read_coco(written(tmp_path, content))[0].instances[0].skeleton.edges == ((0, 1),)


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"skeleton": [[1, 2]]}, "do not tell whether they count from 0 or from 1; say --skeleton-base 0 or 1"),
        ({"skeleton": [[0, 1], [1, 3]]}, "hold an index 0 and one beyond the last"),
        (
            {"skeleton": [[1, 1], [2, 3]]},
            "category thing has a bone 1-1, which 3 keypoints counted from 1 do not allow",
        ),
        ({"skeleton": [[0, 7]]}, "category thing has a bone 0-7, which 3 keypoints counted from 0 do not allow"),
        ({"skeleton": ["ab-c"]}, "skeleton of category thing is not a list of pairs"),
        ({"keypoints": ["a", "b", "a"]}, "category thing has two keypoints named 'a'"),
        ({"keypoints": []}, "no category names its keypoints"),
        ({"keypoints": ["a", "b"]}, "annotation 4 has 9 numbers for the 2 keypoints of thing"),
        ({"id": 2}, "annotation 4 is of category 1, which has no names of keypoints"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, category: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_coco(written(tmp_path, small(**category)))


def test_what_is_no_annotation_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"broken.json is not readable as JSON"):
        read_coco(tmp_path / "broken.json")
    for content, message in (([1], "holds no JSON object"), ({"images": []}, "has no list of categories")):
        with pytest.raises(UserError, match=message):
            read_coco(written(tmp_path, content))
    lacking = small()
    lacking["annotations"][0]["image_id"] = 9
    with pytest.raises(UserError, match="annotations name image 9, which the file's images lack"):
        read_coco(written(tmp_path, lacking))
    del lacking["images"][0]["width"]
    lacking["annotations"][0]["image_id"] = 1
    with pytest.raises(UserError, match="image 1 lacks its file_name, width or height"):
        read_coco(written(tmp_path, lacking))


def test_crowds_and_annotations_without_keypoints_are_left_out(tmp_path: Path) -> None:
    content = small()
    row = content["annotations"][0]
    content["annotations"] += [{**row, "id": 5, "iscrowd": 1}, {**row, "id": 6, "keypoints": None}]
    assert len(read_coco(written(tmp_path, content))[0].instances) == 1


def test_frames_of_videos_keep_their_identities(tmp_path: Path) -> None:
    """APT-36K's form: video_id and frame_id of images, track_id of annotations."""
    content = small()
    content["images"][0] |= {"video_id": 12, "frame_id": 3}
    content["annotations"][0]["track_id"] = 2
    image = read_coco(written(tmp_path, content))[0]
    assert (image.video, image.frame, image.instances[0].track) == ("12", 3, 2)
