"""Pictures of one object, rendered as they are read: a source of its own kind beside shards."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d import schema
from four_d.data.augment import NO_AUGMENT
from four_d.data.loading import DataConfig, TrainingSteps, ValidationClips
from four_d.data.renders import RendersConfig
from four_d.data.sampling import SamplingConfig
from four_d.data.shards import finalise, write_shard
from four_d.data.sources import SourceConfig, Sources
from four_d.errors import UserError
from four_d.geometry import project, rigid_part, unproject
from four_d.types import Cameras
from four_d.viewpoints import FOCAL, encode_pose, framed, view_angles, view_rotation
from tests.helpers import box_clip
from tests.object_scene import box, write_box


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_box(tmp_path_factory.mktemp("object") / "box.ply")


@pytest.fixture
def config(file: Path) -> RendersConfig:
    return RendersConfig(path=str(file), count=40, size=32)


def training(*sources: RendersConfig | SourceConfig, **more: object) -> DataConfig:
    settings = DataConfig(
        sources={f"s{place}": source for place, source in enumerate(sources)},
        sampling=SamplingConfig(min_frames=1, max_frames=1),
        augment=NO_AUGMENT,
        image_size=(32, 32),
        images_per_batch=6,
        world="stored",
        normalisation="stored",
    )
    return dataclasses.replace(settings, **more)  # pyright: ignore[reportArgumentType]


def test_a_source_is_chosen_by_its_kind_and_shards_have_none(file: Path) -> None:
    plain = {"sources": {"a": {"path": "x"}, "b": {"kind": "renders", "path": str(file), "count": 3}}}
    built = schema.build(DataConfig, plain, "data")
    assert built.sources == {"a": SourceConfig(path="x"), "b": RendersConfig(path=str(file), count=3)}
    assert schema.build(DataConfig, schema.to_plain(built), "data") == built
    with pytest.raises(UserError, match=r"data\.sources\.b: elevation is -1\.0; choose 0 or more"):
        schema.build(DataConfig, {"sources": {"b": {**plain["sources"]["b"], "elevation": -1.0}}}, "data")
    with pytest.raises(UserError, match=r"nowhere\.ply"):
        RendersConfig(path="nowhere.ply").open()


def test_pictures_depend_on_seed_and_number_alone(config: RendersConfig) -> None:
    reader, again = config.open(), pickle.loads(pickle.dumps(config.open()))
    last = again.read(7)
    for number in (3, 7):
        one, two = reader.read(number), again.read(number)
        assert one.key == two.key == reader.samples[number].key
        assert np.array_equal(one.images, two.images)
        assert np.array_equal(one.world_from_camera, two.world_from_camera)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(last.images, reader.read(7, [0]).images)
    assert not np.array_equal(last.images, reader.read(8).images)
    assert not np.array_equal(last.images, dataclasses.replace(config, seed=1).open().read(7).images)
    assert len(reader.read(7, [0, 0]).info.times) == 2
    with pytest.raises(IndexError):
        reader.read(7, [1])


def test_cameras_masks_and_depth_are_those_of_the_picture(config: RendersConfig) -> None:
    """Seen points lie on the box, and the box's corners project into the mask's surroundings."""
    reader = dataclasses.replace(config, deformation=0.0, bend=0.0, occluders=0, size=64).open()
    radius = reader.gaussians.means.abs().amax(0)
    for number in range(4):
        raw = reader.read(number)
        cameras = Cameras(
            world_from_camera=torch.from_numpy(raw.world_from_camera).float(),
            intrinsics=torch.from_numpy(raw.intrinsics).float(),
        )
        mask = torch.from_numpy(raw.dynamic)[0]
        assert 0.05 < float(mask.float().mean()) < 0.95
        points = unproject(torch.from_numpy(raw.depth), cameras)[0][mask]
        assert float((points.abs() <= radius + 0.1).all(-1).float().mean()) > 0.95  # discs reach over the edges
        on_a_side = ((points.abs() - radius).abs() < 0.1).any(-1)
        assert float(on_a_side.float().mean()) > 0.95
        pixels, z = project(reader.gaussians.means[None], cameras)
        inside = ((pixels >= 0) & (pixels < 64)).all(-1)[0]
        x, y = pixels[0, inside].long().unbind(-1)
        assert bool((z > 0).all())
        assert float(mask[y, x].float().mean()) > 0.9


def test_bent_objects_have_the_pose_of_the_whole(config: RendersConfig) -> None:
    reader = dataclasses.replace(config, deformation=0.1, bend=0.8).open()
    rest = reader.gaussians
    for seed in range(4):
        deformed = reader.deformed(np.random.default_rng(seed))
        moved = (deformed.means - rest.means).norm(dim=-1)
        assert float(moved.max()) > 0.1
        assert torch.allclose(rigid_part(rest.means, deformed.means), torch.eye(4), atol=1e-3)
        assert torch.allclose(deformed.quats.norm(dim=-1), torch.ones(len(moved)), atol=1e-4)
    still = dataclasses.replace(config, deformation=0.0, bend=0.0).open()
    assert torch.allclose(still.deformed(np.random.default_rng(0)).means, rest.means, atol=1e-5)


def test_a_later_pass_renders_nothing(config: RendersConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = config.open()
    first = reader.read(3, [0, 0])
    before = first.images.copy()
    first.images[:] = 0  # a reader's own
    monkeypatch.setattr("four_d.data.renders.render", None)
    assert np.array_equal(reader.read(3, [0, 0]).images, before)
    monkeypatch.undo()
    monkeypatch.setattr("four_d.data.renders.KEPT", 0)
    full = config.open()
    assert np.array_equal(full.read(3).images, before[:1])
    monkeypatch.setattr("four_d.data.renders.render", None)
    with pytest.raises(TypeError):
        full.read(3)


def test_poses_fill_the_ranges(config: RendersConfig) -> None:
    reader = dataclasses.replace(config, roll=0.0).open()
    poses = [
        encode_pose(
            Cameras(
                world_from_camera=torch.from_numpy(raw.world_from_camera), intrinsics=torch.from_numpy(raw.intrinsics)
            ),
            (32, 32),
        )
        for raw in map(reader.read, range(40))
    ]
    looks = torch.cat([pose.rotation[:, 2] for pose in poses])
    assert float(looks[:, 1].abs().asin().rad2deg().max()) <= 45 + 1e-3
    assert {(bool(x > 0), bool(z > 0)) for x, _, z in looks} == {(a, b) for a in (True, False) for b in (True, False)}
    assert 0.02 < float(torch.cat([pose.offset for pose in poses]).std()) < 0.2
    assert 0.1 < float(torch.cat([pose.log_distance for pose in poses]).std()) < 0.5


def test_framed_objects_fill_the_same_part_from_all_sides() -> None:
    points = box().means.double()
    for azimuth, elevation, roll in ((0.0, 0.0, 0.0), (1.2, 0.5, -0.3), (3.0, -0.7, 0.4)):
        rotation = view_rotation(*(torch.tensor(angle, dtype=torch.float64) for angle in (azimuth, elevation, roll)))
        seen = points @ rotation.mT + framed(points, rotation)
        pixels = FOCAL * seen[:, :2] / seen[:, 2:]
        assert torch.allclose(pixels.amin(0), -pixels.amax(0), atol=1e-3)
        assert float((pixels.amax(0) - pixels.amin(0)).max()) == pytest.approx(0.8, abs=2e-3)
        assert float(view_angles(rotation, rotation[None])) == pytest.approx(0, abs=1e-6)
        assert math.asin(float(rotation[2, 1])) == pytest.approx(elevation, abs=1e-6), "from above, it looks down"


def test_renders_are_loaded_as_shards_are_in_the_objects_own_world(config: RendersConfig) -> None:
    steps = TrainingSteps(training(config), 5)
    batch = steps[2].batches[0]
    assert batch.targets.images.shape == (6, 1, 3, 32, 32)
    assert batch.inputs.cameras is None
    reader = config.open()
    assert batch.targets.cameras is not None
    for row, key in enumerate(batch.key):
        raw = reader.read(int(key.split("-")[1]))
        stored = torch.from_numpy(raw.world_from_camera).float()
        assert torch.equal(batch.targets.cameras.world_from_camera[row], stored)
        assert float(batch.targets.scale[row]) == 1  # pyright: ignore[reportOptionalSubscript]
    first = TrainingSteps(training(config, world="first_camera", normalisation="mean_distance"), 5)[2].batches[0]
    assert torch.allclose(first.targets.cameras.world_from_camera, torch.eye(4).expand(6, 1, 4, 4), atol=1e-5)  # pyright: ignore[reportOptionalMemberAccess]
    held_out = ValidationClips(training(config, validation={"r": config}, validation_frames=1, validation_clips=3))
    assert [held_out[place].batches[0].key for place in range(3)] == [["0-0000000"], ["0-0000020"], ["0-0000039"]]


def test_the_fingerprint_is_the_objects_and_the_ranges(config: RendersConfig, file: Path, tmp_path: Path) -> None:
    def of(source: RendersConfig) -> str:
        return Sources({"r": source}).fingerprint()

    moved = tmp_path / "moved.ply"
    moved.write_bytes(file.read_bytes())
    assert of(config) == of(dataclasses.replace(config, path=str(moved)))
    assert of(config) != of(dataclasses.replace(config, roll=10.0))
    other = write_box(tmp_path / "other.ply", torch.rand(6, 3, generator=torch.Generator().manual_seed(0)))
    assert of(config) != of(dataclasses.replace(config, path=str(other)))


def test_renders_and_shards_mix(config: RendersConfig, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [box_clip(seed, frames=2, cameras=1, size=32) for seed in range(3)])
    finalise(tmp_path, "boxes")
    mixed = training(config, SourceConfig(path=str(tmp_path)), surface=False)
    keys = [key for index in range(4) for key in TrainingSteps(mixed, 0)[index].batches[0].key]
    own = {sample.key for sample in config.open().samples}
    assert 0 < sum(key in own for key in keys) < len(keys)
    assert Sources(mixed.sources).having(["depth"]) == {"s0": 1.0, "s1": 1.0}
