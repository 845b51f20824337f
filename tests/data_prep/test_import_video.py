from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from data_prep.importers.video import ARRAYS, Settings, import_videos
from four_d.cli.program import main
from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.sampling import to_clip
from four_d.data.shards import ShardReader
from four_d.errors import UserError
from four_d.formats.videos import write_video

WIDTH, HEIGHT, FRAMES = 64, 48, 5
NAMES = ["Nose", "L_Paw", "R_Paw"]
DATA = Path(__file__).parents[2] / "docs" / "data.md"


def film(path: Path, frames: int = FRAMES) -> Path:
    """A video at 10 frames a second, each frame of another brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.full((HEIGHT, WIDTH, 3), 40 * i + 20, np.uint8) for i in range(frames)], rate=10.0)
    return path


def keypoints(**more: Any) -> dict[str, Any]:
    """Arrays of one thing that moves to the right; its nose is unknown in frame 1."""
    pixels = np.array([[10.0, 20], [20, 30], [30, 10]]) + np.arange(FRAMES)[:, None, None] * [2.0, 0]
    pixels[1, 0] = np.nan
    return {"names": np.array(NAMES), "pixels": pixels, **more}


def cameras(lens: Any = None, pose: Any = None) -> dict[str, NDArray[np.float64]]:
    """Arrays of cameras, all with one lens and pose."""
    lens = [[50.0, 0, 32], [0, 50, 24], [0, 0, 1]] if lens is None else lens
    return {
        "intrinsics": np.stack([np.array(lens)] * FRAMES),
        "world_from_camera": np.stack([np.eye(4) if pose is None else pose] * FRAMES),
    }


def clips(folder: Path) -> list[RawClip]:
    """All clips of a data set."""
    with ShardReader(folder) as reader:
        return [reader.read(index) for index in range(len(reader))]


def test_a_video_with_an_npz_becomes_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, out = film(tmp_path / "a walk.mp4"), tmp_path / "out"
    arrays = keypoints(
        confidence=np.where(np.arange(15).reshape(5, 3) == 4, 0.2, 0.9), edges=[[0, 1], [0, 2]], rigid=[True, False]
    )
    np.savez(tmp_path / "a walk.npz", **arrays)
    assert main(["data", "import", "video", str(video), str(out), "--name", "walks", "--licence", "CC0-1.0"]) == 0
    assert "1 clips, 5 frames" in capsys.readouterr().out
    assert check(out).ok
    (raw,) = clips(out)
    assert raw.key == "a-walk-000000"
    assert raw.info.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert (raw.info.source, raw.info.licence, raw.info.metric) == ("walks", "CC0-1.0", False)
    assert raw.info.keypoints is not None
    assert raw.info.keypoints.names == ["nose", "left_paw", "right_paw"]
    assert raw.info.keypoints.edges == [(0, 1), (0, 2)]
    assert raw.info.keypoints.rigid == [True, False]
    assert raw.keypoints is not None
    known = np.ones((FRAMES, 3), bool)
    known[1, :2] = False  # the nose is NaN, the left paw of too little confidence
    assert (raw.keypoints.pixels_valid == known).all()
    assert (raw.keypoints.visible == known).all()
    np.testing.assert_allclose(raw.keypoints.pixels[known], arrays["pixels"][known])
    assert (raw.keypoints.pixels[~known] == 0).all()
    assert not raw.keypoints.valid.any()
    clip = to_clip(raw)
    assert clip.keypoints is not None
    assert bool(clip.keypoints.pixels_valid.any())
    assert main(["data", "show", str(out), "--out", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures/a-walk-000000-keypoints.png").is_file()


def test_several_things_some_frames_and_their_own_times(tmp_path: Path) -> None:
    """Rows of frames 1, 2 and 4; the second thing is unknown until frame 4, and one point is said to be hidden."""
    pixels = np.stack([keypoints()["pixels"][[0, 2, 4]], keypoints()["pixels"][[0, 2, 4]] + [0, 5]], axis=1)
    pixels[:2, 1] = np.nan
    visible = np.ones((3, 2, 3), bool)
    visible[0, 0, 1] = False
    arrays = {"names": NAMES, "pixels": pixels, "visible": visible, "frames": [1, 2, 4], "times": [0.5, 0.7, 1.0]}
    np.savez(tmp_path / "k.npz", **arrays)  # pyright: ignore[reportArgumentType]
    video = film(tmp_path / "film.mp4")
    import_videos([video], tmp_path / "out", Settings(clip_frames=2, long_side=32), keypoints=[tmp_path / "k.npz"])
    one, two = clips(tmp_path / "out")
    assert (one.info.times, two.info.times) == ([0, pytest.approx(0.2)], [0])
    assert [one.key, two.key] == ["film-000001", "film-000004"]
    assert one.images.shape == (2, 24, 32, 3)
    assert one.images.mean((1, 2, 3)) == pytest.approx([60, 100], abs=3)
    assert two.images.mean((1, 2, 3)) == pytest.approx([180], abs=3)
    assert one.info.keypoints is not None
    assert two.info.keypoints is not None
    assert one.info.keypoints.instances == [1, 1, 1]
    assert two.info.keypoints.instances == [1, 1, 1, 2, 2, 2]
    assert two.info.keypoints.edges == [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]  # neighbours
    assert one.keypoints is not None
    assert one.keypoints.pixels_valid.all()
    assert one.keypoints.visible.tolist() == [[True, False, True], [True, True, True]]
    np.testing.assert_allclose(one.keypoints.pixels, pixels[:2, 0] / 2)
    assert check(tmp_path / "out").ok


def test_positions_and_cameras_are_taken_too(tmp_path: Path) -> None:
    arrays = keypoints()
    points = np.concatenate([(arrays["pixels"] - [32, 24]) / 50 * 2, np.full((FRAMES, 3, 1), 2.0)], axis=-1)
    arrays |= {"points": points} | cameras()
    np.savez(tmp_path / "film.npz", **arrays, metric=True)
    import_videos([film(tmp_path / "film.mp4")], tmp_path / "out", Settings(long_side=32))
    (raw,) = clips(tmp_path / "out")
    assert raw.info.metric
    assert raw.intrinsics is not None
    np.testing.assert_allclose(raw.intrinsics[0], [[25, 0, 16], [0, 25, 12], [0, 0, 1]])
    assert raw.keypoints is not None
    assert (raw.keypoints.valid == np.isfinite(points).all(-1)).all()
    report = check(tmp_path / "out")
    assert report.ok
    assert next(each for each in report.measures if each.check == "keypoint pixels").value < 1e-3


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for index in range(FRAMES):
        picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), (40 * index + 20,) * 3)
        picture.save(tmp_path / f"frames/{index:03d}.png")
    np.savez(tmp_path / "frames.npz", **keypoints())
    import_videos([tmp_path / "frames"], tmp_path / "out")
    (raw,) = clips(tmp_path / "out")
    assert raw.key == "frames-000000"
    assert raw.images.mean((1, 2, 3)) == pytest.approx([20, 60, 100, 140, 180], abs=1)


def test_it_goes_on_where_it_stopped_but_not_with_other_files(tmp_path: Path) -> None:
    video, out = film(tmp_path / "film.mp4"), tmp_path / "out"
    np.savez(tmp_path / "film.npz", **keypoints())
    settings = Settings(clip_frames=3)
    import_videos([video], out, settings, clips_per_shard=1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("manifest.json", "shard-000001.json", "shard-000001.tar"):
        (out / name).unlink()
    import_videos([video], out, settings, clips_per_shard=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="was made with another confidence"):
        import_videos([video], out, Settings(clip_frames=3, confidence=0.5), clips_per_shard=1)
    np.savez(tmp_path / "film.npz", **keypoints(visible=np.ones((FRAMES, 3), bool)))
    with pytest.raises(UserError, match=r"was made before film.npz was changed"):
        import_videos([video], out, settings, clips_per_shard=1)


def test_clips_without_keypoints_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = keypoints()
    arrays["pixels"][:3] = np.nan
    np.savez(tmp_path / "film.npz", **arrays)
    with caplog.at_level(logging.WARNING, "four_d"):
        import_videos([film(tmp_path / "film.mp4")], tmp_path / "out", Settings(clip_frames=1))
    assert [raw.key for raw in clips(tmp_path / "out")] == ["film-000003", "film-000004"]
    assert any("3 clips in which no keypoint is known" in each.message for each in caplog.records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((FRAMES, 2, 2))}, r"pixels are \(5, 2, 2\); give \(frames, 3, 2\)"),
        ({"pixels": np.full((FRAMES, 3, 2), np.nan)}, "knows no keypoint"),
        ({"names": np.array([1, 2, 3])}, "has no array names of text"),
        ({"names": np.array(["a", "a", "b"])}, "has two keypoints 'a'"),
        ({"names": np.array(["a", "b", None], object)}, "is not an NPZ file of plain arrays"),
        ({"scores": np.zeros(3)}, "has an array 'scores', which means nothing here"),
        ({"confidence": np.zeros((FRAMES, 2))}, r"confidence is float64 \(5, 2\); beside these pixels .* \(5, 3\)"),
        ({"visible": np.zeros((FRAMES, 3))}, "visible is float64"),
        ({"edges": np.array([[0, 3]])}, "bone 0 ends at keypoint 3"),
        ({"edges": np.array([[0, 1]]), "rigid": np.array([True, True])}, "rigid has 2 entries for 1 bones"),
        ({"frames": np.array([0, 2, 1, 3, 4])}, "frames have to ascend"),
        ({"frames": np.arange(1, 6)}, "has keypoints of frame 5, counted from 0; .* has 5 frames"),
        ({"intrinsics": np.zeros((FRAMES, 3, 3))}, "world_from_camera and intrinsics come together"),
        (cameras(lens=[[50.0, 1, 32], [0, 50, 24], [0, 0, 1]]), "intrinsics have to be fx 0 cx"),
        (cameras(pose=np.full((4, 4), np.nan)), "a camera has NaN or infinity"),
        (cameras(pose=np.ones((4, 4))), "the last row of world_from_camera 0 0 0 1"),
    ],
)
def test_what_breaks_the_layout_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "film.npz", **(keypoints() | change))
    with pytest.raises(UserError, match=message):
        import_videos([film(tmp_path / "film.mp4")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    video = film(tmp_path / "film.mp4")
    with pytest.raises(UserError, match=r"film.npz is not there; .* --keypoints"):
        import_videos([video], tmp_path / "out")
    np.savez(tmp_path / "film.npz", **keypoints())
    with pytest.raises(UserError, match="1 files of keypoints for 2 videos"):
        import_videos([video, video], tmp_path / "out", keypoints=[tmp_path / "film.npz"])
    with pytest.raises(UserError, match="two clips would have the key film-000000"):
        import_videos([video, video], tmp_path / "out")


def test_the_page_names_every_array() -> None:
    section = DATA.read_text().split("### Videos with keypoints")[1].split("\n## ")[0]
    assert {name for row in re.findall(r"\n\| (`[^|]*) \|", section) for name in re.findall(r"`(\w+)`", row)} == set(
        ARRAYS
    )


def test_the_pages_detector_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's code runs, with a stand-in of the detector's interface, and what it writes is imported."""
    section = DATA.read_text().split("### Videos with keypoints")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    film(tmp_path / "videos/walk.mp4")

    class Body:
        def __init__(self, *, mode: str, backend: str, device: str) -> None:
            assert (mode, backend, device) == ("balanced", "onnxruntime", "cpu")

        def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
            assert image.shape == (HEIGHT, WIDTH, 3)
            people = np.stack([np.full((2, 2), 1.0), np.full((2, 2), float(image.mean()) / 5)])
            return people, np.array([[0.5, 0.2], [0.9, 0.8]], np.float32)

    skeleton = ModuleType("rtmlib.visualization.skeleton")
    points = {0: {"name": "nose"}, 1: {"name": "left_eye"}}
    vars(skeleton)["coco17"] = {"keypoint_info": points, "skeleton_info": {0: {"link": ("left_eye", "nose")}}}
    for name in ("rtmlib", "rtmlib.visualization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["rtmlib"])["Body"] = Body
    monkeypatch.setitem(sys.modules, skeleton.__name__, skeleton)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "data.md", "exec", dont_inherit=True), {})
    import_videos([Path("videos/walk.mp4")], tmp_path / "out")
    (raw,) = clips(tmp_path / "out")
    assert raw.info.keypoints is not None
    assert raw.info.keypoints.edges == [(1, 0)]
    assert raw.keypoints is not None
    np.testing.assert_allclose(raw.keypoints.pixels[:, 0, 0], np.arange(FRAMES) * 8 + 4.5, atol=1)
