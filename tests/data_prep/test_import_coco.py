from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_prep.importers.coco import Source, import_coco
from four_d.cli.program import main
from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.sampling import to_clip
from four_d.data.shards import ShardReader, load_manifest, write_shard
from four_d.errors import UserError
from four_d.formats.videos import write_video
from four_d.keypoints import decode_names
from tests.formats.test_coco import ap10k, small

SIZES = {"000000037516.jpg": (64, 48), "000000000005.jpg": (32, 32), "a.png": (8, 8), "b.png": (8, 8)}


def folder(at: Path, content: dict[str, Any]) -> Path:
    """An annotation file in ``at/annotations`` and its images in ``at/data``, as AP-10K has them."""
    rng = np.random.default_rng(0)
    (at / "data").mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        width, height = SIZES.get(image["file_name"], (32, 32))
        PIL.Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(at / "data" / image["file_name"])
    (at / "annotations").mkdir(exist_ok=True)
    path = at / "annotations" / f"{at.name}.json"
    path.write_text(json.dumps(content))
    return path


def first(shards: Path) -> RawClip:
    """First clip of a data set."""
    with ShardReader(shards) as reader:
        return reader.read(0)


def test_two_sources_become_one_set_with_one_vocabulary(tmp_path: Path) -> None:
    other = small(keypoints=["left_eye", "nose", "tail"], skeleton=[[1, 2], [2, 3]])
    paths = [folder(tmp_path / "ap10k", ap10k()), folder(tmp_path / "other", other)]
    out = tmp_path / "shards"
    command = ["data", "import", "coco", *map(str, paths), str(out), "--clips-per-shard", "2"]
    assert main(command) == 0
    manifest = load_manifest(out)
    assert (manifest.clips, manifest.frames, len(manifest.shards)) == (3, 3, 2)
    assert {name: source.licence for name, source in manifest.sources.items()} == {
        "ap10k": "The MIT License",
        "other": "unknown",
    }
    assert manifest.modalities == ["keypoints"]
    words = json.loads((out / "vocabulary.json").read_text())
    assert words["instances"] == {"count": 4, "sources": {"ap10k": 3, "other": 1}}
    assert words["keypoints"]["left_eye"] == {
        "count": 4,
        "sources": {"ap10k": 3, "other": 1},
        "spellings": ["L_Eye", "left_eye"],
    }
    assert words["keypoints"]["left_front_paw"]["count"] == 0
    assert check(out).ok
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(command) == 0  # again: what is there stays
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_sets_by_kind_of_animal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MegaKPT's form: sets in folders by super-category, each annotations/*.json with names as text."""
    sets = tmp_path / "MegaKPT"
    folder(sets / "mammal/ap10k", ap10k())
    folder(sets / "insect/fly", small(keypoints=["L_F_Leg", "head", "c"], skeleton=[[1, 2]]))
    folder(sets / "insect/beetle_of_the_same_long_name", small())
    folder(sets / "mammal/beetle_of_the_same_long_name", small())
    (sets / "mammal/ap10k/annotations/notes.json").write_text("[1, 2]")
    (sets / "info.json").write_text('{"images": [], "categories": [{"keypoints": ["a"]}]}')
    assert main(["data", "import", "coco", str(sets), str(tmp_path / "out"), "--skeleton-base", "0"]) == 0
    sources = set(load_manifest(tmp_path / "out").sources)
    assert "mammal-ap10k-ap10k" in sources
    assert "insect-fly-fly" in sources
    assert len(sources) == 4
    assert check(tmp_path / "out").ok
    words = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert words["keypoints"]["left_front_leg"]["sources"] == {"insect-fly-fly": 1}
    for option in ("--images", "--names", "--licences"):
        assert main(["data", "import", "coco", str(sets), str(tmp_path / "no"), option, "x"]) == 2
        assert f"{option} is for annotation files" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["data", "import", "coco", str(tmp_path / "empty"), str(tmp_path / "no")]) == 2
    assert "holds no JSON file of keypoints" in capsys.readouterr().err


def test_a_clip_holds_what_the_file_says(tmp_path: Path) -> None:
    import_coco([Source(annotations=folder(tmp_path / "ap10k", ap10k()))], tmp_path / "out")
    raw = first(tmp_path / "out")
    assert raw.info.keypoints is not None
    assert raw.keypoints is not None
    assert raw.info.keypoints.names[:3] == ["left_eye", "right_eye", "nose"]
    assert raw.info.keypoints.instances == [1] * 17 + [2] * 17
    assert raw.info.keypoints.edges[0] == (0, 1)
    assert raw.info.keypoints.edges[17] == (17, 18)
    assert [each.name for each in raw.info.objects] == ["surroundings", "deer", "deer"]
    assert raw.keypoints.pixels[0, 17].tolist() == [11.5, 22.5]
    assert raw.keypoints.visible[0].nonzero()[0].tolist() == [0, 17]
    assert raw.keypoints.pixels_valid[0].nonzero()[0].tolist() == [0, 2, 17, 19]
    assert not raw.keypoints.valid.any()
    clip = to_clip(raw)
    assert clip.keypoints is not None
    assert decode_names(clip.keypoints.names)[:2] == ["left_eye", "right_eye"]


def test_without_bones_neighbours_are_joined(tmp_path: Path) -> None:
    """Six points in a row: each is joined with its four nearest, the ends with four on their side."""
    content = small(keypoints=[f"p{i}" for i in range(6)], skeleton=[])
    content["annotations"][0]["keypoints"] = [number for i in range(6) for number in (i, 4, 2)]
    import_coco([Source(annotations=folder(tmp_path / "row", content))], tmp_path / "out")
    raw = first(tmp_path / "out")
    assert raw.info.keypoints is not None
    edges = set(raw.info.keypoints.edges)
    assert (0, 1) in edges
    assert (0, 4) in edges
    assert (0, 5) not in edges


def test_frames_of_a_video_are_one_clip(tmp_path: Path) -> None:
    content = small(skeleton=[[0, 1]])
    row, image = content["annotations"][0], content["images"][0]
    content["images"] = [
        {**image, "id": 1, "video_id": 3, "frame_id": 4},
        {**image, "id": 2, "file_name": "b.png", "video_id": 3, "frame_id": 2},
    ]
    content["annotations"] = [
        {**row, "id": 1, "image_id": 1, "track_id": 7},
        {**row, "id": 2, "image_id": 2, "track_id": 7, "keypoints": [5, 5, 2, 2, 2, 2, 3, 3, 2]},
    ]
    import_coco([Source(annotations=folder(tmp_path / "apt", content))], tmp_path / "out")
    raw = first(tmp_path / "out")
    assert raw.keypoints is not None
    assert raw.info.times == pytest.approx([0, 2 / 30])
    assert raw.keypoints.pixels.shape == (2, 3, 2)
    assert raw.keypoints.pixels[:, 0].tolist() == [[5.5, 5.5], [1.5, 1.5]]
    content["images"][1]["frame_id"] = 4
    with pytest.raises(UserError, match="video 3 has two frames with one frame_id"):
        import_coco([Source(annotations=folder(tmp_path / "apt", content))], tmp_path / "twice")


def test_two_things_of_one_identity_are_not_one(tmp_path: Path) -> None:
    """In a video they are refused; in a single image, where identities say nothing, both are there."""
    content = small(skeleton=[[0, 1]])
    row, image = content["annotations"][0], content["images"][0]
    content["annotations"] = [{**row, "id": 1, "track_id": 0}, {**row, "id": 2, "track_id": 0}]
    import_coco([Source(annotations=folder(tmp_path / "image", content))], tmp_path / "out")
    raw = first(tmp_path / "out")
    assert raw.info.keypoints is not None
    assert raw.info.keypoints.instances == [1] * 3 + [2] * 3
    content["images"] = [
        {**image, "video_id": 3, "frame_id": 1},
        {**image, "id": 99, "file_name": "b.png", "video_id": 3, "frame_id": 2},
    ]
    content["annotations"].append({**row, "id": 3, "image_id": 99, "track_id": 0})
    with pytest.raises(UserError, match="video 3: frame 1 has two annotations of one category with one track_id"):
        import_coco([Source(annotations=folder(tmp_path / "video", content))], tmp_path / "refused")


def test_nothing_is_written_before_all_is_found(tmp_path: Path) -> None:
    path = folder(tmp_path / "ap10k", ap10k())
    (tmp_path / "ap10k/data/000000000005.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 2 images of .*ap10k.json, as 000000000005.jpg"):
        import_coco([Source(annotations=path)], tmp_path / "out")
    (tmp_path / "ap10k/data/000000037516.jpg").unlink()
    with pytest.raises(UserError, match=r"000000037516.jpg is not beside .*ap10k.json; say --images FOLDER"):
        import_coco([Source(annotations=path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_and_broken_ones_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "thing", small())
    for content, message in ((None, "cannot be read as an image"), ((9, 8), "is 9 × 8, its annotation says 8 × 8")):
        if content is None:
            (tmp_path / "thing/data/a.png").write_bytes(b"no picture")
        else:
            PIL.Image.new("RGB", content).save(tmp_path / "thing/data/a.png")
        with pytest.raises(UserError, match=message):
            import_coco([Source(annotations=path)], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    path = folder(tmp_path / "ap10k", ap10k())
    import_coco([Source(annotations=path)], tmp_path / "out")
    with pytest.raises(UserError, match="is of other sources, annotations or counts of clips"):
        import_coco([Source(annotations=path)], tmp_path / "out", clips_per_shard=1)
    with pytest.raises(UserError, match=r"two sources are called ap10k; give each its own name"):
        import_coco([Source(annotations=path), Source(annotations=path)], tmp_path / "other")


def test_annotations_changed_in_place_are_noticed(tmp_path: Path) -> None:
    """An import that was broken off, or done, does not go on with another content of the same file."""
    content = ap10k()
    path = folder(tmp_path / "ap10k", content)
    out = tmp_path / "out"
    import_coco([Source(annotations=path)], out, clips_per_shard=1)
    for name in ("manifest.json", "shard-000001.json", "shard-000001.tar"):
        (out / name).unlink()
    content["annotations"][0]["keypoints"][0] = 13
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shard-000000.tar was made before ap10k was changed; choose another folder"):
        import_coco([Source(annotations=path)], out, clips_per_shard=1)
    content["annotations"][0]["keypoints"][0] = 11
    path.write_text(json.dumps(content))
    assert import_coco([Source(annotations=path)], out, clips_per_shard=1).clips == 2
    with pytest.raises(UserError, match="was made with another licence"):
        import_coco([Source(annotations=path, licence="CC0-1.0")], out, clips_per_shard=1)


def test_shards_without_a_record_are_not_gone_on_with(tmp_path: Path) -> None:
    path = folder(tmp_path / "ap10k", ap10k())
    out = tmp_path / "out"
    import_coco([Source(annotations=path)], out)
    with ShardReader(out) as reader:
        clips = [reader.read(index) for index in range(2)]
    for file in out.iterdir():
        file.unlink()
    write_shard(out, 0, [replace(clip, info=replace(clip.info, generator=None)) for clip in clips])
    with pytest.raises(UserError, match="was made by something else, or by an earlier version"):
        import_coco([Source(annotations=path)], out)


def test_images_may_be_the_frames_of_a_video(tmp_path: Path) -> None:
    """Frames 1 and 3 of a video at 10 frames a second, told apart by their brightness."""
    video = tmp_path / "walk.mp4"
    write_video(video, [np.full((48, 64, 3), 40 * index + 20, np.uint8) for index in range(5)], rate=10.0)
    content = small(skeleton=[[0, 1]])
    row, image = content["annotations"][0], {**content["images"][0], "width": 64, "height": 48}
    content["images"] = [{**image, "id": index, "file_name": f"{index}", "frame_id": index} for index in (3, 1)]
    content["annotations"] = [{**row, "id": index, "image_id": index, "track_id": 7} for index in (3, 1)]
    path = tmp_path / "walk.json"
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert main(["data", "import", "coco", str(path), str(out), "--images", str(video)]) == 0
    raw = first(out)
    assert raw.info.times == pytest.approx([0, 0.2])
    assert raw.images.mean((1, 2, 3)) == pytest.approx([60, 140], abs=3)
    assert check(out).ok
    for change, message in (
        ({"frame_id": 5}, "has frame_id 5, counted from 0; .*walk.mp4 has 5 frames"),
        ({"width": 32}, r"walk.mp4 is 64 × 48, .*walk.json is of images of 32 × 48"),
        ({"video_id": 2}, "has several video_id"),
    ):
        path.write_text(json.dumps({**content, "images": [{**content["images"][0], **change}, content["images"][1]]}))
        with pytest.raises(UserError, match=message):
            import_coco([Source(annotations=path, images=video)], tmp_path / "no")
    assert not (tmp_path / "no").exists()
