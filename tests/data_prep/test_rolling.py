"""Rolling shutter: each row of a picture, and its truth, is of the row's own time."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from dataclasses import replace

from data_prep.synthetic import WorldSettings, generate
from data_prep.synthetic.clip import row_times
from data_prep.synthetic.effects import between, camera_between
from data_prep.synthetic.render import pixel_grid
from data_prep.synthetic.world import compose
from four_d.data.consistency import findings
from four_d.data.contract import RawClip, problems
from four_d.data.encoding import _encode_info, decode_info
from four_d.data.measures import Measure
from four_d.errors import UserError
from tests.data_prep.looks import look

PLAIN = WorldSettings(cameras=1, frames=2, width=16, height=9, duration_s=(0.2, 0.25), moving=(0.0, 0.9))
ROLLING = replace(PLAIN, rolling_shutter_s=0.1)


def test_each_row_shows_world_and_camera_at_its_time() -> None:
    clip, world = generate(3, ROLLING), compose(3, ROLLING)
    assert problems(clip) == []
    assert clip.surface is not None
    interval = world.times[1] - world.times[0]
    for frame in (0, 1):
        times = row_times(frame, world, ROLLING)
        assert times[4] == pytest.approx(frame)  # the middle row is the frame's time
        assert (times[-1] - times[0]) * interval == pytest.approx(0.1 * 8 / 9)
        for row in range(9):
            faces = clip.surface.faces[frame, row]
            seen = faces >= 0
            vertices = between(world.stage, times[row]).vertices_at(0).astype(float)
            second, third = clip.surface.barycentric[frame, :, row].astype(float) / 65535
            weights = np.stack([1 - second - third, second, third], -1)
            points = np.einsum("wk,wki->wi", weights, vertices[clip.surface.triangles[faces]])
            camera = camera_between(world.cameras[0], times[row])
            pose = camera.world_from_camera[0]
            image = (points - pose[:3, 3]) @ pose[:3, :3] @ camera.intrinsics.T
            centres = np.stack([np.arange(16) + 0.5, np.full(16, row + 0.5)], -1)
            assert np.abs(image[:, :2] / image[:, 2:] - centres)[seen].max() < 0.02


def failed(clip: RawClip) -> set[str]:
    return {finding.check for finding in findings(clip) if isinstance(finding, Measure) and not finding.ok}


def test_the_middle_row_is_that_of_a_global_shutter_and_poses_are_the_same() -> None:
    rolled, plain = generate(3, ROLLING), generate(3, PLAIN)
    assert rolled.surface is not None
    assert plain.surface is not None
    assert (rolled.surface.faces[:, 4] == plain.surface.faces[:, 4]).mean() > 0.9
    assert (rolled.surface.faces != plain.surface.faces).any()
    assert np.array_equal(rolled.world_from_camera, plain.world_from_camera)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(rolled.surface.moving_vertices, plain.surface.moving_vertices)
    assert plain.info.pixel_tolerance is None
    assert rolled.info.pixel_tolerance is not None
    looks = look(rolled)
    off = np.linalg.norm(looks.pixels - pixel_grid(16, 9).reshape(9, 16, 2), axis=-1)[looks.seen].max()
    assert off <= rolled.info.pixel_tolerance < off + 0.011
    assert decode_info(_encode_info(rolled.info)) == rolled.info
    assert not failed(rolled) & {"pixel centres", "pixel outliers"}
    pretended = replace(rolled, info=replace(rolled.info, pixel_tolerance=None))
    assert "pixel outliers" in failed(pretended)
    assert rolled.info.generator is not None
    assert rolled.info.generator["settings"]["rolling_shutter_s"] == 0.1  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "above 0"), (0.2, "time between frames, here as short as 0.1 s")])
def test_a_readout_longer_than_a_frame_is_refused(seconds: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(PLAIN, rolling_shutter_s=seconds)
