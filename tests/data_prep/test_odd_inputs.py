"""A user's own data as they come: odd files, names and numbers are read right, or refused by name; none in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings
from four_d.data.manifest import load_sidecar, refuse_foreign
from four_d.data.shards import ShardReader
from four_d.datasets import decode
from four_d.datasets.colmap import read_colmap
from four_d.datasets.folder import read_folder
from four_d.datasets.nerfstudio import read_nerfstudio
from four_d.datasets.own import timeline
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.outputs import HELD, hold
from four_d.video.mask import read_mask
from tests.data_prep.test_import_own import colmap, pictures, transforms
from tests.protocols import written
from tests.protocols.written import HEIGHT, WIDTH, world

NAMES = [f"{i:03d}.png" for i in range(4)]
ORIENTATION = 0x0112
Change = Callable[[dict[str, Any]], object]


def posed(root: Path, **more: object) -> dict[str, Any]:
    """Write a plain folder with poses; returns the content of its cameras.json, changed by ``more``."""
    pictures(root / "frames", NAMES)
    frames: list[dict[str, Any]] = [
        {"image": name, "world_from_camera": pose.tolist(), "intrinsics": world().intrinsics.tolist()}
        for name, pose in zip(NAMES, world().poses)
    ]
    content = {"frames": frames, **more}
    written.text(root / "cameras.json", json.dumps(content))
    return content


def turned(path: Path, image: object, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(image).save(path, exif=exif, quality=95)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_of_more_than_8_bits_is_refused_and_does_not_become_white(mode: str, tmp_path: Path) -> None:
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    path = tmp_path / "frames" / "0.tif"
    path.parent.mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH), 3000, kind)).save(path)
    (sequence,) = read_folder(tmp_path)
    for read in (sequence.images, lambda: decode.image(path)):
        with pytest.raises(UserError, match="is grey of more than 8 bits; convert all"):
            read()


def test_photos_stand_upright_where_nothing_else_is_known_of_them(tmp_path: Path) -> None:
    for i in range(2):
        turned(tmp_path / "frames" / f"{i}.jpg", world().images[i], 6)
    (sequence,) = read_folder(tmp_path)
    images = sequence.images()
    assert images.shape == (2, WIDTH, HEIGHT, 3)
    stored = np.asarray(Image.open(tmp_path / "frames" / "0.jpg"))
    np.testing.assert_array_equal(images[0], np.rot90(stored, -1))


def test_turned_photos_beside_cameras_are_refused(tmp_path: Path) -> None:
    turned(tmp_path / "frames" / "0.jpg", world().images[0], 6)
    np.savetxt(tmp_path / "intrinsics.txt", world().intrinsics)
    (sequence,) = read_folder(tmp_path)
    with pytest.raises(UserError, match=r"0\.jpg is stored turned.*store all images upright"):
        sequence.images()


def test_colmap_s_photos_stay_as_they_are_stored(tmp_path: Path) -> None:
    """Its calibration is of the stored pixels."""
    colmap(tmp_path, [f"{i}.jpg" for i in range(4)])
    for i in range(4):
        turned(tmp_path / "images" / f"{i}.jpg", world().images[i], 6)
    (sequence,) = read_colmap(tmp_path)
    assert sequence.images().shape == (4, HEIGHT, WIDTH, 3)


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, : WIDTH // 2] = 255
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.dstack([world().images[0] | 1, alpha])).save(tmp_path / "frames" / "0.png")
    (sequence,) = read_folder(tmp_path)
    image = sequence.images()[0]
    assert image[:, : WIDTH // 2].min() > 0
    assert image[:, WIDTH // 2 :].max() == 0


def test_what_a_folder_holds_beside_images_is_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path / "frames", ["0.PNG", "1.webp"])
    (tmp_path / "frames" / "Thumbs.db").write_bytes(b"x")
    written.text(tmp_path / "frames" / "notes.txt", "mine")
    pictures(tmp_path / "frames", ["1.png"])
    (sequence,) = read_folder(tmp_path)
    assert sequence.frames == 3
    assert "passing over notes.txt" in caplog.text
    assert "1 names stand for several pictures (1.png, 1.webp)" in caplog.text
    assert "Thumbs" not in caplog.text
    (tmp_path / "frames" / "2.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"2\.png is a link to a file that is not there"):
        read_folder(tmp_path)


def test_images_beside_something_else_belong_into_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path, ["0.png"])
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert read_folder(tmp_path)[0].frames == 1
    written.text(tmp_path / "cameras.json", "{}")
    with pytest.raises(UserError, match=r"has images beside something else \(cameras\.json\); move the images to"):
        read_folder(tmp_path)


def test_suffixes_of_depth_may_be_in_capitals_and_strangers_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path / "frames", ["0.PNG", "1.PNG"])
    for name in ("0.PNG", "1.PNG", "7.PNG"):
        written.png16(tmp_path / "depth" / name, world().depth[0], 1000)
    (sequence,) = read_folder(tmp_path)
    assert sequence.depth is not None
    assert sequence.depth()[1].all()
    assert "1 files are of no image and passed over, as 7.PNG" in caplog.text


@pytest.mark.parametrize("bent", [False, True])
def test_maps_of_another_shape_than_their_image_are_refused(bent: bool, tmp_path: Path) -> None:
    """A crop would be stretched over the image, without a word."""
    content = posed(tmp_path / "src")
    if bent:
        for frame in content["frames"]:
            frame["distortion"] = [0.05, 0, 0, 0]
        written.text(tmp_path / "src" / "cameras.json", json.dumps(content))
    (tmp_path / "src" / "depth").mkdir()
    for name, depth in zip(NAMES, world().depth):
        np.save(tmp_path / "src" / "depth" / f"{name[:3]}.npy", depth[:, :HEIGHT])
    with pytest.raises(UserError, match=f"{HEIGHT} × {HEIGHT},.* {WIDTH} × {HEIGHT}, another shape"):
        import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out")


def test_masks_in_any_form(tmp_path: Path) -> None:
    """Also as indices of a palette, of which DAVIS leaves out 255, and as transparency."""
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[:5] = True
    bytes_ = wanted.astype(np.uint8) * 255
    palette = Image.fromarray(bytes_).convert("L").copy()
    palette.putpalette(list(range(256)) * 3)
    forms = {
        "palette": palette,
        "bits": Image.fromarray(wanted),
        "alpha": Image.fromarray(np.dstack([np.zeros((HEIGHT, WIDTH, 3), np.uint8), bytes_])),
        "colour": Image.fromarray(np.dstack([bytes_] * 3 + [np.full_like(bytes_, 255)])),
        "deep": Image.fromarray(wanted.astype(np.uint16)),
    }
    for name, image in forms.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), wanted, err_msg=name)


VANISHING: list[tuple[Change, str]] = [
    (lambda c: c.update(camera_model="OPENCV_FISHEYE"), "the entry 'camera_model' means nothing here"),
    (lambda c: c["frames"][0].update(model="fisheye"), "the entry 'model' of '000' means nothing"),
    (lambda c: c["frames"][1].update(camera_from_world=[]), "'camera_from_world' of '001' means nothing"),
    (lambda c: c.update(cameras={"": {"time": 0}}), "the entry 'time' of '' means nothing"),
    (lambda c: c.update(metric="false"), "metric is 'false'; it is true or false"),
    (lambda c: c["frames"].append(dict(c["frames"][0])), "has 1 images twice, as '000'"),
    (lambda c: c["frames"][0].update(time=float("nan")), "000 has a value that is no camera's .the time nan"),
    (lambda c: c.update(fps=float("inf")), "fps is inf"),
]


@pytest.mark.parametrize(("change", "match"), VANISHING)
def test_entries_of_cameras_json_that_would_vanish_are_named(change: Change, match: str, tmp_path: Path) -> None:
    content = posed(tmp_path)
    change(content)
    written.text(tmp_path / "cameras.json", json.dumps(content))
    with pytest.raises(UserError, match=match):
        read_folder(tmp_path)


def test_images_without_the_others_pose_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = posed(tmp_path)
    del content["frames"][2]["world_from_camera"]
    written.text(tmp_path / "cameras.json", json.dumps(content))
    read_folder(tmp_path)
    assert "1 of 4 images have no pose and are left out" in caplog.text


def test_texts_of_windows_and_comments(tmp_path: Path) -> None:
    """A mark at the beginning, \\r\\n, # lines."""

    def as_windows(path: Path) -> None:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    posed(tmp_path / "json")
    as_windows(tmp_path / "json" / "cameras.json")
    pictures(tmp_path / "texts" / "frames", NAMES)
    lines = "\n".join(" ".join(map(str, pose.ravel())) for pose in world().poses)
    written.text(tmp_path / "texts" / "poses.txt", f"# row by row\n{lines}\n")
    np.savetxt(tmp_path / "texts" / "intrinsics.txt", world().intrinsics)
    for name in ("poses", "intrinsics"):
        as_windows(tmp_path / "texts" / f"{name}.txt")
    transforms(tmp_path / "nerfstudio")
    as_windows(tmp_path / "nerfstudio" / "transforms.json")
    colmap(tmp_path / "colmap", NAMES)
    for path in (tmp_path / "colmap" / "sparse" / "0").glob("*.txt"):
        as_windows(path)
    sequences = [*read_folder(tmp_path / "json"), *read_folder(tmp_path / "texts")]
    sequences += [*read_nerfstudio(tmp_path / "nerfstudio"), *read_colmap(tmp_path / "colmap")]
    assert len(sequences) == 4
    for sequence in sequences:
        assert sequence.cameras is not None
        np.testing.assert_allclose(sequence.cameras().world_from_camera.numpy(), world().poses, atol=1e-6)


def test_colmap_s_texts_may_have_comments_and_empty_lines_between_entries(tmp_path: Path) -> None:
    colmap(tmp_path, NAMES)
    folder = tmp_path / "sparse" / "0"
    lines = [line for line in (folder / "images.txt").read_text().splitlines() if not line.startswith("#")]
    lines[3] = ""  # an image that observes nothing
    mixed = ["", *lines[:2], "# second", "", *lines[2:4], "", *lines[4:]]
    (folder / "images.txt").write_text("\n".join(mixed))
    for name in ("cameras", "points3D"):
        (folder / f"{name}.txt").write_text((folder / f"{name}.txt").read_text() + "# end\n\n")
    (sequence,) = read_colmap(tmp_path)
    assert sequence.cameras is not None
    assert sequence.depth is not None
    np.testing.assert_allclose(sequence.cameras().world_from_camera.numpy(), world().poses, atol=1e-6)
    assert sequence.depth()[1].any((1, 2)).tolist() == [True, False, True, True]


def test_one_of_colmap_s_models_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colmap(tmp_path, NAMES)
    shutil.copytree(tmp_path / "sparse" / "0", tmp_path / "sparse" / "1")
    for root in (tmp_path, tmp_path / "sparse" / "1"):
        caplog.clear()
        (sequence,) = read_colmap(root)
        np.testing.assert_array_equal(sequence.images(), world().images)
        assert "is one of 2 models of these images, and the only one that is read" in caplog.text


@pytest.mark.parametrize("model", ["RAD_TAN_THIN_PRISM_FISHEYE", "SIMPLE_DIVISION", "EQUIRECTANGULAR"])
def test_newer_models_of_colmap_are_refused_by_name(model: str, tmp_path: Path) -> None:
    counts = {"RAD_TAN_THIN_PRISM_FISHEYE": 16, "SIMPLE_DIVISION": 4, "EQUIRECTANGULAR": 2}
    colmap(tmp_path, NAMES)
    rows = [f"{i} {model} {WIDTH} {HEIGHT}{' 30' * counts[model]}" for i in range(1, 5)]
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text("\n".join(rows))
    with pytest.raises(UserError, match=f"camera 1 is {model}, which is not undistorted here"):
        read_colmap(tmp_path)


WRONG: list[tuple[Change, str]] = [
    (lambda c: c["frames"].append(c["frames"][1]), r"1\.png is listed more than once; keep one entry"),
    (lambda c: [f.update(time=t) for f, t in zip(c["frames"], [0, 1, float("nan"), 2])], "has the time nan"),
    (lambda c: c.update(k6=0.1), "has a coefficient k6, which is not undistorted here"),
    (lambda c: c.update(camera_model="OPENCV_FISHEYE"), r"0\.png is of OPENCV_FISHEYE, which is not undistorted"),
    (lambda c: c.update(depth_unit_scale_factor="mm"), "depth_unit_scale_factor is 'mm'"),
    (lambda c: c.update(depth_unit_scale_factor=0), "depth_unit_scale_factor is 0"),
]


@pytest.mark.parametrize(("change", "match"), WRONG)
def test_what_transforms_say_wrong_is_named(change: Change, match: str, tmp_path: Path) -> None:
    transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    change(content)
    written.text(tmp_path / "transforms.json", json.dumps(content))
    with pytest.raises(UserError, match=match) as caught:
        read_nerfstudio(tmp_path)
    assert "lacks, or has no readable" not in str(caught.value)


def test_missing_images_take_their_time(tmp_path: Path) -> None:
    """What moves went on while they were taken."""
    transforms(tmp_path / "nerfstudio")
    colmap(tmp_path / "colmap", NAMES)
    (tmp_path / "nerfstudio" / "images" / "1.png").unlink()
    (tmp_path / "colmap" / "images" / "001.png").unlink()
    pictures(tmp_path / "folder" / "frames", ["000.png", "001.png", "003.png", "004.png"])
    times = [
        read(tmp_path / name)[0].times for name, read in (("nerfstudio", read_nerfstudio), ("colmap", read_colmap))
    ]
    assert times == [(0, 2 / 30, 3 / 30)] * 2
    assert read_folder(tmp_path / "folder")[0].times == (0, 1 / 30, 3 / 30, 4 / 30)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["a1", "a2", "a4", "a5", "a6"], [0, 1, 3, 4, 5]),
        (["000", "010", "020", "040", "050"], [0, 1, 2, 4, 5]),
        (["IMG_3", "IMG_17", "IMG_18", "IMG_40"], [0, 1, 2, 3]),  # photographs, each when it pleased
        (["0", "1", "2", "4.5"], [0, 1, 2, 3]),
        (["a1", "a2", "b1", "b2"], [0, 1, 2, 3]),
        (["door", "hall"], [0, 1]),
        (["7"], [0]),
        ([], []),
    ],
)
def test_gaps_of_numbers_are_gaps_in_time(names: list[str], places: list[int]) -> None:
    assert timeline(names) == places


def test_shards_go_beside_the_source_and_never_over_another_version(tmp_path: Path) -> None:
    pictures(tmp_path / "src" / "frames", NAMES)
    for out in ("src", "src/shards", "."):
        with pytest.raises(UserError, match="choose another place for the output"):
            import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / out)
    written.text(tmp_path / "newer" / "manifest.json", json.dumps({"version": 2, "shards": []}))
    with pytest.raises(UserError, match="is of layout version 2, and this four_d writes version 1"):
        refuse_foreign(tmp_path / "newer")


def test_a_folder_named_by_a_dot_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "office" / "frames", NAMES)
    monkeypatch.chdir(tmp_path / "office")
    import_dataset(DATASETS["folder"], Path(), tmp_path / "out")
    assert [sample.key for sample in load_sidecar(tmp_path / "out" / "shard-000000.json").samples] == ["office-000000"]


def test_another_setting_is_named_before_files_that_it_leaves_out(tmp_path: Path) -> None:
    """Every second frame are other files, but no file was changed."""
    pictures(tmp_path / "src" / "frames", NAMES)
    import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out")
    with pytest.raises(UserError, match="was made with another every; choose another folder"):
        import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out", Settings(every=2))


def test_a_setting_that_makes_other_clips_is_named_too(tmp_path: Path) -> None:
    pictures(tmp_path / "src" / "frames", NAMES)
    import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out", Settings(clip_frames=2))
    with pytest.raises(UserError, match="was made with another clip frames; choose another folder"):
        import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out")


def test_what_a_killed_import_left_half_written_is_removed_and_what_is_under_way_stays(tmp_path: Path) -> None:
    pictures(tmp_path / "src" / "frames", NAMES)
    out = tmp_path / "out"
    dead, busy = out / ".trial-dead", out / ".trial-busy"
    for folder in (dead, busy):
        folder.mkdir(parents=True)
        (folder / HELD).touch()
    partial, own = out / ".shard-000000.12345678.partial.tar", out / ".shard-000000.87654321.partial.tar"
    partial.touch()
    with (busy / HELD).open("rb") as first, own.open("wb") as second:
        assert hold(first.fileno())
        assert hold(second.fileno())
        import_dataset(DATASETS["folder"], tmp_path / "src", out)
    assert not dead.exists()
    assert not partial.exists()
    assert busy.is_dir()
    assert own.is_file()


def test_an_import_says_what_its_check_could_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path / "src" / "frames", NAMES)
    import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out")
    assert "not checked: conventions: the clip has no cameras (1 of 1 clips" in caplog.text
    with ShardReader(tmp_path / "out") as reader:
        assert len(reader) == 1
