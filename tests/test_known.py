"""What is known of a video reaches the model in its own pixels and coordinates, or is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d import checkpoints, cli
from four_d.backbones.hints import HintsConfig, pose_numbers
from four_d.checkpoints import ModelInfo
from four_d.data.sampling import HintProbabilities
from four_d.errors import UserError
from four_d.formats.cameras import CameraTable, read_cameras, read_colmap, write_cameras
from four_d.formats.depth import write_depth
from four_d.geometry import invert_pose, make_pose, project
from four_d.inference import Known, LoadedModel, Selection, infer
from four_d.model import ModelConfig
from four_d.schema import to_plain
from four_d.types import Cameras, Clip
from four_d.video import fit
from four_d.video.fit import resize_depth
from tests.data.test_agreement import room
from tests.test_export import RUN, TINY
from tests.test_inference import gradient
from tests.test_inputs import MOTION, write_folder

ALL = HintsConfig(intrinsics="optional", poses="optional", depth="optional", masks="optional")
SIZE = (64, 112)


def with_hints(hints: HintsConfig | None) -> ModelConfig:
    return dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, hints=hints))


def hinted(hints: HintsConfig | None = ALL) -> tuple[LoadedModel, list[Clip]]:
    """A model, and the list in which it will note what clips its backbone sees."""
    torch.manual_seed(0)
    config, seen = with_hints(hints), []
    model = config.build().eval()
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # pyright: ignore
    return LoadedModel(model, ModelInfo(model=config, image_size=(32, 48), frames=8)), seen


def some_cameras(count: int, generator: torch.Generator) -> Cameras:
    """Poses anywhere, in float64, intrinsics of pictures of SIZE."""
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]
    turns = turns * torch.det(turns)[:, None, None]
    places = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 110, 30], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    intrinsics[:, 0, 0] += torch.arange(count)
    return Cameras(world_from_camera=make_pose(turns, places), intrinsics=intrinsics)


def only(seen: list[Clip]) -> Clip:
    assert len(seen) == 1
    return seen[0]


# intrinsics and poses


def test_intrinsics_arrive_in_model_pixels(generator: torch.Generator) -> None:
    """A point is seen at the same place of the picture, by the original camera and by the one that the model gets."""
    model, seen = hinted()
    result = model(gradient(*SIZE, 3), known=Known(intrinsics=[(100, 110, 50, 30)]))
    cameras = only(seen).cameras
    assert cameras is not None
    assert cameras.known is not None
    assert cameras.intrinsics_known is not None
    assert not cameras.known.any()
    assert cameras.intrinsics_known.all()
    assert torch.equal(cameras.world_from_camera, torch.eye(4).expand(1, 3, 4, 4))
    points = torch.randn(3, 5, 3, generator=generator) + torch.tensor([0, 0, 4.0])
    small, _ = project(points, Cameras(world_from_camera=torch.eye(4), intrinsics=cameras.intrinsics[0, 0]))
    original = torch.tensor([[100.0, 0, 50], [0, 110, 30], [0, 0, 1]])
    large, _ = project(points, Cameras(world_from_camera=torch.eye(4), intrinsics=original))
    back = result.fits.points_to_original(small, torch.arange(3)[:, None])
    torch.testing.assert_close(back, large, atol=1e-3, rtol=0)


def test_intrinsics_there_and_back(generator: torch.Generator) -> None:
    intrinsics = some_cameras(3, generator).intrinsics
    for size in ((272, 640), (640, 273), (32, 48)):
        chosen = fit.fit([size] * 3, (32, 48), 8)
        torch.testing.assert_close(chosen.to_original(chosen.to_model(intrinsics)), intrinsics)


def test_each_camera_of_a_rig_has_its_intrinsics() -> None:
    model, seen = hinted()
    known = Known(intrinsics=[(100, 100, 50, 30), (200, 200, 50, 30)])
    model([gradient(*SIZE, 2)] * 2, known=known)
    cameras = only(seen).cameras
    assert cameras is not None
    ratio = cameras.intrinsics[0, :, 0, 0] / cameras.intrinsics[0, 0, 0, 0]
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2, 1, 2]))
    with pytest.raises(UserError, match=r"there are 2 intrinsics; give one$"):
        model(gradient(*SIZE, 2), known=known)


def test_poses_of_any_world_arrive_in_the_first_frames(generator: torch.Generator) -> None:
    cameras = some_cameras(3, generator)
    model, seen = hinted()
    model(gradient(*SIZE, 3), known=Known(cameras=cameras))
    given = only(seen).cameras
    assert given is not None
    assert given.known is not None
    assert given.intrinsics_known is not None
    assert given.known.all()
    assert given.intrinsics_known.all()
    poses = invert_pose(cameras.world_from_camera[:1]) @ cameras.world_from_camera
    torch.testing.assert_close(given.world_from_camera[0], poses.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(given.world_from_camera[0, 0], torch.eye(4), atol=1e-6, rtol=0)


def test_a_frame_whose_camera_the_user_does_not_know_counts_as_unknown(generator: torch.Generator) -> None:
    """Its placeholder is not looked at; ``known`` holds for intrinsics too unless those are told apart."""
    some = some_cameras(3, generator)
    poses, intrinsics = some.world_from_camera.clone(), some.intrinsics.clone()
    poses[1], intrinsics[2] = 0, 0
    known, lenses = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics, known=known, intrinsics_known=lenses)
    model, seen = hinted()
    model(gradient(*SIZE, 3), known=Known(cameras=cameras))
    given = only(seen).cameras
    assert given is not None
    assert given.known is not None
    assert given.intrinsics_known is not None
    assert given.known.tolist() == [[True, False, True]]
    assert given.intrinsics_known.tolist() == [[True, True, False]]
    assert torch.equal(given.world_from_camera[0, 1], torch.eye(4))
    third = invert_pose(some.world_from_camera[0]) @ some.world_from_camera[2]
    torch.testing.assert_close(given.world_from_camera[0, 2], third.float(), atol=1e-6, rtol=0)
    lost = dataclasses.replace(cameras, known=torch.tensor([False, True, True]))
    with pytest.raises(UserError, match="the first frame's pose is not known"):
        model(gradient(*SIZE, 3), known=Known(cameras=lost))


def test_cameras_and_depth_as_written_are_read_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What `infer` writes is what it takes: of the frames taken, or of all the frames that a folder has."""
    folder, (model, seen) = write_folder(tmp_path / "video", gradient(*SIZE, 6)), hinted()
    first = infer(model, folder, tmp_path / "out")
    known = Known(cameras=tmp_path / "out" / "cameras.json", depth=str(tmp_path / "out" / "depth"))
    model(folder, known=known)
    clip = seen[-1]
    assert clip.cameras is not None
    assert clip.depth is not None
    assert clip.valid is not None
    assert first.prediction.cameras is not None
    assert first.depth is not None
    torch.testing.assert_close(clip.cameras.intrinsics[0], first.prediction.cameras.intrinsics, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(clip.depth[0], first.depth, atol=float(first.depth.max()) / 65535, rtol=0)
    assert clip.valid.all()
    model(folder, selection=Selection(max_frames=3), known=known)
    fewer = seen[-1]
    assert fewer.cameras is not None
    assert fewer.depth is not None
    torch.testing.assert_close(fewer.cameras.intrinsics[0], clip.cameras.intrinsics[0, [0, 2, 5]])
    assert torch.equal(fewer.depth[0], clip.depth[0, [0, 2, 5]])
    assert "same frames" not in capfd.readouterr().err


def test_cameras_of_other_times_are_noticed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, (model, _) = write_folder(tmp_path / "video", gradient(*SIZE, 9)), hinted()
    infer(model, folder, tmp_path / "out", selection=Selection(max_frames=6))
    known = Known(cameras=tmp_path / "out" / "cameras.json")
    model(folder, selection=Selection(max_frames=6, start=0.1), known=known, window=3, overlap=1)
    warnings = capfd.readouterr().err
    assert "frame 0 is of 0.12 s, its camera of 0.00 s; are these the same frames?" in warnings
    assert warnings.count("are these the same frames?") == 1, "not once per window"


def test_a_model_of_intrinsics_takes_those_of_cameras_and_says_so(
    generator: torch.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    model, seen = hinted(HintsConfig(intrinsics="optional"))
    model(gradient(*SIZE, 3), known=Known(cameras=some_cameras(3, generator)))
    assert "this model takes no poses: of the cameras only the intrinsics are used" in capfd.readouterr().err
    cameras = only(seen).cameras
    assert cameras is not None
    assert cameras.known is not None
    assert not cameras.known.any()
    assert torch.equal(cameras.world_from_camera[0], torch.eye(4).expand(3, 4, 4))
    assert cameras.intrinsics[0, :, 0, 0].diff().min() > 0, "each frame has its own"


# depth


def write_png(path: Path, counts: NDArray[np.integer]) -> None:
    Image.fromarray(counts.astype(np.uint16)).save(path)


def test_depth_pictures_arrive_on_the_models_grid(tmp_path: Path) -> None:
    """Depth that grows to the right and downwards is, at each model pixel, that of the place it looks at."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    counts = 1000 + 10 * x + 3 * y
    counts[:, :20] = 0
    for index in range(2):
        write_png(tmp_path / f"{index}.png", counts + 500 * index)
    model, seen = hinted()
    result = model(gradient(*SIZE, 2), known=Known(depth=tmp_path, depth_unit=0.001))
    clip = only(seen)
    assert clip.depth is not None
    assert clip.valid is not None
    rows, columns = result.fits.model
    row, column = np.mgrid[:rows, :columns] + 0.5
    grid = torch.from_numpy(np.stack([column, row], -1)).float()
    places = result.fits.points_to_original(grid, torch.tensor(0))
    expected = (1000 + 10 * (places[..., 0] - 0.5) + 3 * (places[..., 1] - 0.5)) / 1000
    known = places[..., 0] > 21
    torch.testing.assert_close(clip.depth[0, 0][known], expected[known], atol=0.007, rtol=0)
    torch.testing.assert_close(clip.depth[0, 1][known], expected[known] + 0.5, atol=0.007, rtol=0)
    assert torch.equal(clip.valid, clip.depth > 0)
    assert not clip.valid[0, 0][places[..., 0] < 19].any()
    array = np.where(counts > 0, counts / 1000, np.nan)
    model(gradient(*SIZE, 2), known=Known(depth=np.stack([array, array + 0.5])))
    assert seen[1].depth is not None
    torch.testing.assert_close(seen[1].depth[0, 0], clip.depth[0, 0])


def test_resized_depth_is_never_a_blend() -> None:
    depth = np.where(np.arange(112) < 50, 1.0, 9.0).astype(np.float32) * np.ones((64, 1), np.float32)
    (own,) = fit.fit([SIZE], (32, 48), 8).of_frames
    assert set(np.unique(resize_depth(depth, own)).tolist()) == {1.0, 9.0}


# refusals


CAMERA = Cameras(
    world_from_camera=torch.eye(4).repeat(3, 1, 1),
    intrinsics=torch.tensor([[100.0, 0, 50], [0, 110, 30], [0, 0, 1]]).repeat(3, 1, 1),
)
BROKEN = dataclasses.replace(CAMERA, world_from_camera=torch.full((3, 4, 4), float("nan")))
FLAT, SKEWED = (
    dataclasses.replace(CAMERA, intrinsics=torch.tensor([[100.0, skew, 50], [0, 110, 30], [0, 0, end]]).repeat(3, 1, 1))
    for skew, end in ((0, 0), (9, 1))
)
SQUASHED = dataclasses.replace(CAMERA, world_from_camera=torch.diag(torch.tensor([1.0, 1, 2, 1])).repeat(3, 1, 1))
MIRRORED = dataclasses.replace(CAMERA, world_from_camera=torch.diag(torch.tensor([1.0, 1, -1, 1])).repeat(3, 1, 1))
TWO = Cameras(world_from_camera=CAMERA.world_from_camera[:2], intrinsics=CAMERA.intrinsics[:2])


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (Known(intrinsics=[(-1, 100, 50, 30)]), r"intrinsics -1,100,50,30 \(fx,fy,cx,cy\) of frame 0 have no positive"),
        (Known(intrinsics=[(100, float("nan"), 50, 30)]), "have no positive focal lengths"),
        (
            Known(intrinsics=[(1000, 1000, 960, 540)]),
            "principal point outside the 112×64 picture; give them in pixels of",
        ),
        (Known(cameras=SQUASHED), "the pose of frame 0 is no rigid motion"),
        (Known(cameras=MIRRORED), "the pose of frame 0 is no rigid motion"),
        (Known(cameras=BROKEN), "the pose of frame 0 is no rigid motion"),
        (Known(cameras=FLAT), r"0\.0, 0\.0, 0\.0\]\] of frame 0 are no pinhole camera's; give \[\[fx, 0, cx\]"),
        (Known(cameras=SKEWED), "of frame 0 are no pinhole camera's"),
        (Known(cameras=TWO), "there are 2 cameras, and 3 frames were taken; give one for all, or one for each"),
        (Known(cameras="nowhere.json"), r"cannot read nowhere\.json"),
        (Known(depth=np.ones((2, 64, 112), np.float32)), "there are 2 depth maps, and 3 frames were taken"),
        (
            Known(depth=np.ones((3, 64, 111), np.float32)),
            r"depth is 111×64, frame 0 is 112×64; give it at that size",
        ),
        (Known(depth=np.zeros((1, 64, 112), np.float32)), "depth has no positive depth"),
        (Known(depth="nowhere"), "nowhere does not exist; give a folder of 16-bit PNGs"),
    ],
)
def test_wrong_numbers_are_one_clear_error(known: Known, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        hinted()[0](gradient(*SIZE, 3), known=known)
    assert len(str(raised.value).splitlines()) == 1


def test_wrong_depth_folders_are_one_clear_error(tmp_path: Path) -> None:
    model, frames = hinted()[0], gradient(*SIZE, 1)
    write_png(tmp_path / "0.png", np.ones(SIZE))
    with pytest.raises(
        UserError, match=r"has no depth\.json; say what one count of its PNGs is, as --depth-unit 0\.001"
    ):
        model(frames, known=Known(depth=tmp_path))
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"0\.png is no 16-bit grey picture \(its mode is L\)"):
        model(frames, known=Known(depth=tmp_path, depth_unit=0.001))
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png does not decode as an image"):
        model(frames, known=Known(depth=tmp_path, depth_unit=0.001))
    (tmp_path / "depth.json").write_text("{}")
    with pytest.raises(UserError, match=r"says in depth\.json what a count is"):
        model(frames, known=Known(depth=tmp_path, depth_unit=0.001))
    with pytest.raises(UserError, match="is not a depth folder of four_d"):
        model(frames, known=Known(depth=tmp_path))


def test_cameras_of_another_video_are_refused(tmp_path: Path) -> None:
    folder, (model, _) = write_folder(tmp_path / "video", gradient(*SIZE, 2)), hinted()
    infer(model, folder, tmp_path / "out")
    known = Known(cameras=tmp_path / "out" / "cameras.json")
    with pytest.raises(UserError, match=r"cameras\.json: a camera is of 112×64 pictures, frame 0 is 48×32"):
        model(gradient(32, 48, 2), known=known)
    content = json.loads((tmp_path / "out" / "cameras.json").read_text())
    content["frames"][1]["intrinsics_original"] = [[1, 2], [3]]
    (tmp_path / "out" / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not a cameras\.json of four_d"):
        model(folder, known=known)
    for frame in content["frames"]:
        frame["world_from_camera"] = frame["world_from_camera"][:3]
    (tmp_path / "out" / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"is not a cameras\.json of four_d \(matrices are \(3, 4\) instead of \(4, 4\)"
    ):
        model(folder, known=known)


@pytest.mark.parametrize(
    ("hints", "known", "message"),
    [
        (None, Known(intrinsics=[(1, 1, 1, 1)]), r"takes no hints \(backbone\.hints is off\), not intrinsics"),
        (None, Known(cameras=CAMERA), r"takes no hints \(backbone\.hints is off\), not intrinsics"),
        (HintsConfig(intrinsics="optional"), Known(depth="d"), "takes intrinsics, not depth; leave depth out"),
        (
            HintsConfig(intrinsics="off", poses="optional", masks="optional"),
            Known(depth="d"),
            "takes poses and masks, not",
        ),
    ],
)
def test_hints_that_a_model_does_not_take(hints: HintsConfig | None, known: Known, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hinted(hints)[0](gradient(*SIZE, 3), known=known)


def test_a_camera_that_stands_still_is_fine() -> None:
    model, seen = hinted()
    model(gradient(*SIZE, 3), known=Known(cameras=CAMERA, depth=np.ones((3, *SIZE), np.float32)))
    cameras = only(seen).cameras
    assert cameras is not None
    torch.testing.assert_close(cameras.world_from_camera[0], torch.eye(4).repeat(3, 1, 1))


@pytest.mark.parametrize(("size", "found"), [(1e-5, 1e-2), (2e-3, 1.0), (1.0, 1.0), (500.0, 1.0)])
def test_the_noise_of_a_camera_that_stands_still_stays_small(size: float, found: float) -> None:
    poses = torch.eye(4).repeat(1, 5, 1, 1)
    poses[0, 1:, 0, 3] = size * torch.tensor([0.5, 1, 1, 1.5])
    cameras = Cameras(world_from_camera=poses, intrinsics=torch.eye(3).repeat(1, 5, 1, 1))
    numbers = pose_numbers(cameras, torch.ones(1, 5, dtype=torch.bool), None)
    assert float(numbers[0, 1:, :3].norm(dim=-1).mean()) == pytest.approx(found)


def test_the_command_names_the_convention_of_wrong_poses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cameras, depth = room(6, SIZE)
    run = write_model(tmp_path / "run", with_hints(ALL))
    video = write_folder(tmp_path / "video", gradient(*SIZE, 6))
    for frame, counts in enumerate(depth.numpy()):
        (tmp_path / "depth").mkdir(exist_ok=True)
        write_png(tmp_path / "depth" / f"{frame}.png", np.round(counts * 1000))
    out, file = tmp_path / "out", tmp_path / "cameras.json"
    command = ["infer", str(video), "--model", str(run), "--out", str(out), "--cameras", str(file)]
    command += ["--depth", str(tmp_path / "depth"), "--depth-unit", "0.001"]
    opengl = cameras.world_from_camera @ torch.diag(cameras.world_from_camera.new_tensor([1, -1, -1, 1]))
    for poses, said in (
        (invert_pose(cameras.world_from_camera), "the poses are stored as camera_from_world: invert them"),
        (opengl, "the camera axes are those of OpenGL (y up, z backward): negate the poses' second and third column"),
    ):
        wrong = dataclasses.replace(cameras, world_from_camera=poses)
        names, times = [f"{i}.png" for i in range(6)], [i / 25 for i in range(6)]
        sizes = [SIZE] * 6
        table = CameraTable(
            times=times, images=names, model=wrong, model_size=SIZE, original=wrong, original_sizes=sizes, unit="m"
        )
        write_cameras(file, table)
        assert cli.main(command) == 2
        device, *lines = capfd.readouterr().err.splitlines()
        assert device.startswith("computing on ")
        assert len(lines) == 1
        assert lines[0].startswith("four-d: the poses contradict the depth: frames confirm ")
        assert lines[0].endswith(f"% if {said}")
        assert not out.exists()


def test_what_excludes_each_other() -> None:
    with pytest.raises(UserError, match="give intrinsics or cameras, not both"):
        Known(intrinsics=[(1, 1, 1, 1)], cameras="cameras.json")
    for unit, depth in ((0.001, None), (0.0, "d"), (-1.0, "d"), (float("nan"), "d")):
        with pytest.raises(UserError, match="depth_unit is"):
            Known(depth=depth, depth_unit=unit)
    model, clip = (
        hinted()[0],
        Clip(images=torch.zeros(1, 1, 3, 32, 48), times=torch.zeros(1, 1), camera_ids=torch.zeros(1, 1).long()),
    )
    with pytest.raises(UserError, match=r"a clip brings its own .* Clip\.cameras"):
        model(clip, known=Known())  # pyright: ignore[reportCallIssue]


def test_a_mask_is_taken_by_a_model_with_mask_hints() -> None:
    model, seen = hinted(HintsConfig(intrinsics="off", masks="optional"))
    mask = np.zeros((32, 48), bool)
    mask[:16] = True
    model(gradient(32, 48, 2), mask=mask)
    assert only(seen).dynamic is not None
    assert torch.equal(only(seen).dynamic[0, 1], torch.from_numpy(mask))  # pyright: ignore[reportOptionalSubscript]


# the command


def write_model(folder: Path, config: ModelConfig, *, still: bool = False) -> Path:
    """A run folder of a random model; ``still``: whose motion is 0."""
    torch.manual_seed(0)
    model = config.build()
    if still:
        for parameter in model.heads["motion"].parameters():
            torch.nn.init.zeros_(parameter)
    file = folder / checkpoints.LAST
    file.parent.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    given = {
        name: 1.0
        for name, use in vars(config.backbone.hints or HintsConfig(intrinsics="off")).items()
        if use == "required"
    }
    data = dataclasses.replace(RUN.data, hints=HintProbabilities(**given))
    plain = to_plain(dataclasses.replace(RUN, model=config, data=data))
    torch.save({"state_dict": state, "run": {"config": plain, "step": 7}}, file)
    return folder


def test_the_command_says_that_a_model_requires_intrinsics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_model(tmp_path / "run", with_hints(HintsConfig(intrinsics="required")))
    video = write_folder(tmp_path / "video", gradient(*SIZE, 2))
    command = ["infer", str(video), "--model", str(run), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    device, *said = capfd.readouterr().err.splitlines()
    assert device.startswith("computing on ")
    assert len(said) == 1
    assert "four-d: this model requires intrinsics" in said[0]
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--intrinsics", "100,100,50,30"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "depth").mkdir()
    for index in range(2):
        write_png(tmp_path / "depth" / f"{index}.png", np.ones(SIZE))
    assert cli.main([*command, "--depth", str(tmp_path / "depth"), "--depth-unit", "0.001", "--overwrite"]) == 2
    assert "takes intrinsics, not depth" in capfd.readouterr().err


def test_the_command_on_several_cameras_that_see_nothing_move(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_model(tmp_path / "run", MOTION, still=True)
    videos = [write_folder(tmp_path / f"cam{i}", gradient(*SIZE, 3)) for i in range(2)]
    out = tmp_path / "out"
    command = ["infer", *map(str, videos), "--model", str(run), "--out", str(out)]
    assert cli.main([*command, "--points", "20,30", "5,40,50"]) == 0
    assert "nothing moves" in capfd.readouterr().err
    table = read_cameras(out / "cameras.json")
    assert table.camera_ids == [0, 1, 0, 1, 0, 1]
    names = [f"camera{camera}/{time:06d}.png" for time in range(3) for camera in range(2)]
    assert table.images == names
    assert table.times == pytest.approx([0, 0, 0.04, 0.04, 0.08, 0.08])
    assert read_colmap(out / "colmap" / "original" / "sparse" / "0")[2] == names
    for name in names:
        assert (out / "colmap" / "model" / "images" / name).is_file()
    assert (out / "report.html").is_file()
    assert cli.main([*command, "--points", "20,30", "6,40,50"]) == 2
    assert "frame 6 of point 40,50 is not among the frames taken; choose 0 to 5" in capfd.readouterr().err


def test_one_frame_of_a_model_with_motion_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_model(tmp_path / "run", MOTION)
    video = write_folder(tmp_path / "video", gradient(*SIZE, 1))
    assert cli.main(["infer", str(video), "--model", str(run), "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().err
    assert "gives one frame: depth and points are meaningful, motion is not" in said
    assert "nothing moves" not in said


@pytest.mark.parametrize("wrong", [["--points", "1"], ["--points", "1,2,3,4"], ["--intrinsics", "1,2,3"]])
def test_the_command_refuses_what_is_no_point(wrong: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["infer", "video", "--out", "out", *wrong])
    assert "is not" in capfd.readouterr().err


def test_depth_that_another_model_saw_is_carried_to_this_ones_grid(tmp_path: Path) -> None:
    """A ramp of depth along x, on a grid of another shape, which sees less of the picture's width."""
    model, seen = hinted()
    other = fit.cover(SIZE, (24, 40))
    ramp = 1 + ((np.arange(40) + 0.5) / other.scale + other.left) / SIZE[1]
    write_depth(tmp_path / "depth", np.broadcast_to(ramp.astype(np.float32), (2, 24, 40)), "its own")
    model(gradient(*SIZE, 2), known=Known(depth=tmp_path / "depth"))
    clip = seen[-1]
    assert clip.depth is not None
    own = fit.cover(SIZE, (clip.images.shape[-2], clip.images.shape[-1]))
    x = (torch.arange(own.model[1]) + 0.5) / own.scale + own.left
    inside = (x > other.left) & (x < SIZE[1] - other.left)
    found = clip.depth[0, 0, own.model[0] // 2]
    step = 0.5 / other.scale / SIZE[1]
    expected = 1 + x / SIZE[1]
    factor = float((found[inside] / expected[inside]).median())  # the model's unit of depth
    torch.testing.assert_close(found[inside] / factor, expected[inside].to(found), rtol=0, atol=1.5 * step)
    assert not found[~inside].any()
