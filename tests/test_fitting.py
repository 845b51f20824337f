"""``four-d fit``: from files to a scene and its page, and a clear answer to files that do not belong together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from four_d import checkpoints, config
from four_d.cli.program import main
from four_d.config import RunConfig
from four_d.deformation import DirectMotionConfig
from four_d.errors import UserError
from four_d.fitting import FitRequest, fit
from four_d.fitting.clip import write_clip
from four_d.fitting.stages import FILLS, OF_TRACKS, from_the_front, pinhole, run_config
from four_d.fitting.tracks import read_any, write_fit_tracks
from four_d.geometry import invert_pose, rays
from four_d.inference import load
from four_d.losses.tracked_pixels import read_tracks
from four_d.objects import read_object
from four_d.scene import DeformableScene, DeformableSceneConfig
from four_d.training import TrainingModule
from four_d.training.record import read_metrics
from four_d.training.run import RunData, TrainResult, train
from tests.test_scene import FRAMES, SIZE, SMALL, footage, masks_of


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> FitRequest:
    return footage(tmp_path_factory.mktemp("video"))


def test_one_command_gives_a_model_and_a_page(request_: FitRequest, tmp_path: Path) -> None:
    out, given = tmp_path / "fit", request_
    words = [str(given.video), "--object", str(given.object), "--mask", str(given.mask), "--out", str(out)]
    words += ["--size", str(SIZE), "--focal", "1.25", "--gaussians", "200", "--pose-steps", "2", "--steps", "2"]
    assert main(["fit", *words, "--set", *SMALL]) == 0
    assert {"clip", "pose_net", "start", "scene", "result", "fit.json"} <= {each.name for each in out.iterdir()}
    assert (out / "result" / "report.html").stat().st_size > 1000
    assert load(out / "scene").abilities.gives_gaussians
    assert main(["fit", *words, "--set", *SMALL]) == 0, "what is done is done"


def test_its_progress_is_told_and_drawn(
    request_: FitRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("four_d.progress.LOG_EVERY_S", 0.0)
    result = fit(request_, tmp_path / "fit", SMALL)
    told = re.findall(r"training scene: 6/6 .*frame_psnr ([\d.]+)", capfd.readouterr().err)
    assert told == [f"{result_before(result.folder):.4g}"], "the last validation before the line"
    pictures = sorted((result.folder / "pictures").iterdir())
    assert [each.name for each in pictures] == [f"clip-0-{step:07d}.png" for step in (0, 3, 6)]
    rows, columns = np.asarray(Image.open(pictures[-1])).shape[:2]
    assert rows > 3 * 128  # frame, render, error
    assert columns > FRAMES * 128
    found = validated_twice(result.folder)
    assert found[0] == found[1], "random backgrounds are the same at every validation"


def result_before(folder: Path) -> float:
    """PSNR of the last validation but one."""
    lines = [line for line in read_metrics(folder) if line["split"] == "validation"]
    return cast(float, lines[-2]["frame_psnr"])


def validated_twice(folder: Path) -> list[float]:
    """The run's reconstruction loss in validation, after two other draws."""
    run = config.load([folder / "config.yaml"])
    module, clips = TrainingModule(run, checkpoints.read(folder)).eval(), RunData(run).validation
    assert clips is not None
    found = list[float]()
    for seed in (1, 2):
        torch.manual_seed(seed)
        terms = cast("dict[str, torch.Tensor]", module.validation_step(clips[0], 0)["terms"])
        found.append(float(terms["reconstruction"]))
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1)), "and the generator is left as it was"
    return found


@pytest.mark.slow
def test_a_stop_in_the_pose_network_ends_the_fit_and_the_next_call_goes_on(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out, calls = replace(request_, pose_steps=2, steps=1), tmp_path / "fit", list[str]()

    def stopped(run: RunConfig, **options: object) -> TrainResult:
        calls.append(run.name)
        return replace(train(run, **options), exit_code=143)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr("four_d.fitting.stages.train", stopped)
        assert fit(given, out, SMALL).exit_code == 143
    assert calls == ["pose_net"]
    assert not (out / "start").exists()
    assert fit(given, out, SMALL).exit_code == 0


@pytest.mark.slow
def test_a_pose_network_of_before_and_settings_of_the_model_are_those_of_the_fit(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    fit(replace(request_, pose_steps=2, steps=1), first, SMALL)
    trained = list[str]()

    def noted(run: RunConfig, **options: object) -> TrainResult:
        trained.append(run.name)
        return train(run, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("four_d.fitting.stages.train", noted)
    given = replace(request_, pose_steps=2, steps=1, pose_net=first / "pose_net")
    fit(given, tmp_path / "second", [*SMALL, "model.deformation.motion={kind: direct}"])
    assert trained == ["scene"]
    found = load(tmp_path / "second" / "scene").model
    assert isinstance(found, DeformableScene)
    assert found.config.deformation.motion == DirectMotionConfig()
    with pytest.raises(UserError, match="leave one out"):
        replace(given, pose_steps=0)


def test_what_goes_on_does_not_decode_the_video_again(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(replace(request_, steps=1), tmp_path / "fit", SMALL)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("four_d.fitting.stages.write_clip", refused)
    assert fit(replace(request_, steps=2), tmp_path / "fit", SMALL).steps == 2
    (tmp_path / "fit" / "start" / checkpoints.CONFIG).unlink()
    with pytest.raises(AssertionError, match="decoded"):
        fit(replace(request_, steps=3), tmp_path / "fit", SMALL)


BOX = """v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
f 1 2 3 4
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


def test_an_object_in_millimetres_and_without_colours_is_fitted_like_any(request_: FitRequest, tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="the extra mesh is not installed")
    metres, millimetres = tmp_path / "m.obj", tmp_path / "mm.obj"
    metres.write_text(BOX)
    millimetres.write_text(
        re.sub(r"(?m)(?<=[ -])1(?= |$)", "1000", re.sub(r"(?m)^f.*\n", "", BOX)) + BOX[BOX.index("f") :]
    )
    one, other = (read_object(file, gaussians=200) for file in (metres, millimetres))
    assert other.file_from_object.scale == pytest.approx(1000 * one.file_from_object.scale)
    assert not one.coloured
    torch.testing.assert_close(other.gaussians.means, one.gaussians.means)
    torch.testing.assert_close(other.gaussians.scales, one.gaussians.scales)
    result = fit(replace(request_, object=millimetres, gaussians=200, steps=2), tmp_path / "fit", SMALL)
    assert np.isfinite(result.validation["frame_psnr"])


def test_another_request_does_not_go_on_with_a_fit(request_: FitRequest, tmp_path: Path) -> None:
    out = tmp_path / "fit"
    fit(replace(request_, steps=1), out, SMALL)
    with pytest.raises(UserError, match=r"holds a fit with gaussians 300, and now it is 200; choose another --out"):
        fit(replace(request_, gaussians=200), out, SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds files and no fit"):
        fit(request_, tmp_path / "other", SMALL)
    with pytest.raises(UserError, match="video"):
        fit(request_, request_.video / "fit", SMALL)


def test_videos_and_masks_that_cannot_be_fitted(request_: FitRequest, tmp_path: Path) -> None:
    black = tmp_path / "black"
    black.mkdir()
    for index in range(FRAMES):
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(black / f"{index}.png")
    with pytest.raises(UserError, match="marks nothing in any frame"):
        write_clip(request_.video, black, SIZE, tmp_path / "clip")
    with pytest.raises(UserError, match="one frame; a fit needs two"):
        write_clip(request_.video / "00.png", masks_of(request_) / "00.png", SIZE, tmp_path / "clip")
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        (few / name).write_bytes((masks_of(request_) / name).read_bytes())
    with pytest.raises(UserError, match="3 masks, and 6 frames"):
        write_clip(request_.video, few, SIZE, tmp_path / "clip")
    with pytest.raises(UserError, match="size is at least 16"):
        replace(request_, size=8)
    assert not (tmp_path / "clip").exists()


def test_an_object_that_leaves_the_frame_is_fitted_where_it_is(request_: FitRequest, tmp_path: Path) -> None:
    mask = tmp_path / "masks"
    mask.mkdir()
    for index, file in enumerate(sorted(masks_of(request_).iterdir())):
        image = np.asarray(Image.open(file)) * (index < FRAMES - 2)
        Image.fromarray(image.astype(np.uint8)).save(mask / file.name)
    result = fit(replace(request_, mask=mask, steps=2), tmp_path / "fit", SMALL)
    assert np.isfinite(result.validation["loss"])


def test_tracks_of_three_programs_are_one(request_: FitRequest, tmp_path: Path) -> None:
    clip = write_clip(request_.video, masks_of(request_), SIZE // 2, tmp_path / "clip")
    pixels = np.random.default_rng(0).uniform(2, 30, (4, FRAMES, 2))
    seen = np.ones((4, FRAMES), bool)
    seen[1, 2] = False
    files = {name: tmp_path / f"{name}.npz" for name in ("cotracker", "tapir", "own")}
    np.savez(files["cotracker"], tracks=pixels.swapaxes(0, 1)[None], visibility=seen.T[None])
    np.savez(files["tapir"], tracks=pixels, occluded=~seen)
    np.savez(
        files["own"],
        queries=np.zeros((4, 3), np.float32),
        times=clip.times,
        frame_times=clip.times,
        frame_cameras=np.zeros(FRAMES, np.int64),
        visible=seen.astype(np.float32),
        moving=np.ones(4, bool),
        unit="",
        pixels=pixels.astype(np.float32),
    )
    for name, file in files.items():
        out = tmp_path / f"fitted-{name}.npz"
        assert write_fit_tracks(file, clip, out) == 4
        times, found, visible = read_tracks(out)
        np.testing.assert_allclose(times, clip.times, rtol=1e-6)
        np.testing.assert_allclose(found, pixels / 2, rtol=1e-4)
        assert torch.equal(visible > 0.5, torch.from_numpy(seen))


def test_of_a_longer_video_frames_are_taken_evenly_and_so_are_its_tracks(request_: FitRequest, tmp_path: Path) -> None:
    for name in ("frames", "masks"):
        (tmp_path / name).mkdir()
        files = sorted((request_.video if name == "frames" else masks_of(request_)).iterdir())
        for index in range(30):
            (tmp_path / name / f"{index:02d}.png").write_bytes(files[index % FRAMES].read_bytes())
    whole = write_clip(tmp_path / "frames", tmp_path / "masks", SIZE, tmp_path / "whole")
    assert len(whole.times) == whole.total == 30
    clip = write_clip(tmp_path / "frames", tmp_path / "masks", SIZE, tmp_path / "clip", most=10)
    assert (len(clip.times), clip.total, clip.indices[:3]) == (10, 30, (0, 3, 6))
    file, pixels = tmp_path / "tracks.npz", np.random.default_rng(0).uniform(2, 30, (4, 30, 2))
    np.savez(file, tracks=pixels, occluded=np.zeros((4, 30), bool))
    write_fit_tracks(file, clip, tmp_path / "out.npz")
    np.testing.assert_allclose(read_tracks(tmp_path / "out.npz")[1], pixels[:, clip.indices], rtol=1e-4)


def test_tracks_that_are_none_or_of_another_video(request_: FitRequest, tmp_path: Path) -> None:
    clip = write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")
    file = tmp_path / "tracks.npz"
    np.savez(file, tracks=np.zeros((4, 9, 2)), visible=np.ones((4, 9)))
    with pytest.raises(UserError, match="tracks through 9 frames, and the video has 6"):
        write_fit_tracks(file, clip, tmp_path / "out.npz")
    np.savez(file, tracks=np.zeros((4, 6, 2)))
    with pytest.raises(UserError, match="does not say where its tracks are visible"):
        read_any(file, (FRAMES,))
    np.savez(file, tracks=np.zeros((4, 6, 3)), visible=np.ones((4, 6)))
    with pytest.raises(UserError, match=r"tracks are \(4, 6, 3\)"):
        read_any(file, (FRAMES,))
    file.write_text("no archive")
    with pytest.raises(UserError, match="cannot be read as NPZ"):
        read_any(file, (FRAMES,))
    assert not (tmp_path / "out.npz").exists()


def test_losses_of_tracks_are_those_of_fits_with_tracks(request_: FitRequest, tmp_path: Path) -> None:
    model = DeformableSceneConfig(frames=FRAMES, gaussians=300, image_size=(SIZE, SIZE))
    without = run_config(request_, model, tmp_path, ())
    assert {"reconstruction", "rigidity", "cameras"} <= set(without.losses)
    assert set(OF_TRACKS).isdisjoint(without.losses)
    given = run_config(replace(request_, tracks=Path("any.npz")), model, tmp_path, ("losses.flow.weight=0.5",))
    assert [getattr(given.losses[name], "file", "") for name in OF_TRACKS] == [str(tmp_path / "tracks.npz")] * 2
    assert given.losses["flow"].weight == 0.5


def test_the_camera_of_the_beginning_sees_the_object_at_its_size() -> None:
    lens = pinhole(1.5, (48, 64))
    pose = from_the_front(lens, (48, 64))
    distance = invert_pose(pose)[2, 3]
    edge = rays(lens[None], torch.tensor([[[32.0, 24 + FILLS * 24]]]))[0, 0]
    torch.testing.assert_close(edge[1] * distance, torch.tensor(1.0))
