"""Gaussians written to files and read back look the same; files are as their formats say; mistakes are named."""

import dataclasses
import gzip
import importlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d.errors import UserError
from four_d.formats.glb import Builder, read_glb, to_linear
from four_d.formats.splats import (
    flip,
    read_gaussians,
    read_gltf,
    read_ply,
    read_spz,
    read_times,
    read_usd,
    sound,
    state_at,
    take,
    write_gltf,
    write_ply,
    write_spz,
    write_times,
    write_usd,
)
from four_d.formats.splats import sequence as sequences
from four_d.types import Cameras, Gaussians, map_tensors
from tests.formats.scene import SIZE, TIMES, cameras, moving, pictures, standing, turning

try:
    from pxr import UsdVol

    NO_USD = "" if hasattr(UsdVol, "ParticleField3DGaussianSplat") else "this OpenUSD knows no Gaussians"
except ImportError:
    NO_USD = "the extra usd is not installed"
needs_usd = pytest.mark.skipif(bool(NO_USD), reason=NO_USD)

MOVING = [
    pytest.param(write_times, read_times, "ply", id="ply"),
    pytest.param(lambda path, g: write_times(path, g, "spz"), read_times, "spz", id="spz"),
    pytest.param(write_gltf, read_gltf, "scene.glb", id="gltf"),
    pytest.param(write_usd, read_usd, "scene.usdc", id="usdc", marks=needs_usd),
    pytest.param(write_usd, read_usd, "scene.usda", id="usda", marks=needs_usd),
]
STANDING = [
    pytest.param(write_ply, read_ply, "scene.ply", id="ply"),
    pytest.param(write_spz, read_spz, "scene.spz", id="spz"),
    *MOVING[2:],
]


def assert_same_pictures(found: Gaussians, expected: Gaussians) -> None:
    assert (pictures(found) - pictures(expected)).abs().mean() <= 1 / 255


def test_the_scene_tells_mistakes() -> None:
    """Its pictures change with time, camera, and every field that a format could get wrong."""
    scene = moving()
    shown = pictures(scene)
    assert shown.std() > 0.15
    assert (shown[0] - shown[-2]).abs().mean() > 10 / 255
    assert (shown[0] - shown[1]).abs().mean() > 10 / 255
    turned = dataclasses.replace(scene, quats=scene.quats.roll(1, dims=-1))
    unlit = dataclasses.replace(scene, harmonics=scene.harmonics * torch.tensor([1.0] + [-1.0] * 15)[:, None])
    larger = dataclasses.replace(scene, scales=scene.scales * 1.2)
    assert (pictures(turning()) - shown).abs().mean() > 2 / 255
    for wrong in (turned, unlit, larger):
        assert (pictures(wrong) - shown).abs().mean() > 2 / 255


@pytest.mark.parametrize(("write", "read", "name"), MOVING)
@pytest.mark.parametrize("scene", [moving, turning])
def test_deformable_gaussians_come_back_the_same(
    scene: Callable[[], Gaussians],
    write: Callable[..., None],
    read: Callable[[Path], Gaussians],
    name: str,
    tmp_path: Path,
) -> None:
    write(tmp_path / name, scene())
    found = read(tmp_path / name)
    assert (found.turns is None) == (scene().turns is None)
    assert_same_pictures(found, scene())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("write", "read", "name"), STANDING)
def test_standing_gaussians_come_back_the_same(
    write: Callable[..., None], read: Callable[[Path], Gaussians], name: str, degree: int, tmp_path: Path
) -> None:
    write(tmp_path / name, standing(100, degree))
    found = read(tmp_path / name)
    assert found.offsets is None
    assert found.harmonics.shape == (100, (degree + 1) ** 2, 3)
    assert_same_pictures(found, standing(100, degree))


@pytest.mark.parametrize(("write", "read", "name"), [STANDING[0], *STANDING[2:]])
def test_exact_formats_are_exact(
    write: Callable[..., None], read: Callable[[Path], Gaussians], name: str, tmp_path: Path
) -> None:
    write(tmp_path / name, standing())
    found, expected = read(tmp_path / name), sound(standing())
    for field in ("means", "quats", "scales", "opacities", "harmonics"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("write", [write_ply, write_spz])
def test_one_time_of_many_is_written(write: Callable[..., None], tmp_path: Path) -> None:
    read = {write_ply: read_ply, write_spz: read_spz}[write]
    write(tmp_path / "scene", moving(), 0.2)
    torch.testing.assert_close(read(tmp_path / "scene").means, state_at(moving(), 0.2).means, atol=1e-5, rtol=0)


def test_state_at_is_linear_between_and_still_beyond() -> None:
    scene = moving()
    assert scene.offsets is not None
    for time, offset in [
        (-3.0, scene.offsets[0]),
        (0.1, scene.offsets[1]),
        (0.15, 0.75 * scene.offsets[1] + 0.25 * scene.offsets[2]),
        (7.0, scene.offsets[2]),
    ]:
        found = state_at(scene, time)
        torch.testing.assert_close(found.means, scene.means + offset)
        assert found.offsets is None
    assert torch.equal(state_at(standing(), 3.0).means, standing().means)


def test_flipped_axes_look_the_same_to_flipped_cameras() -> None:
    """Harmonics of every degree and quaternions turn with the axes; twice is nothing."""
    half_turn = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    turned = dataclasses.replace(cameras(), world_from_camera=half_turn @ cameras().world_from_camera)
    torch.testing.assert_close(pictures(flip(moving()), turned), pictures(moving()), atol=1e-4, rtol=0)
    torch.testing.assert_close(flip(flip(moving())).harmonics, moving().harmonics)


def one(**changes: torch.Tensor) -> Gaussians:
    """A Gaussian whose fields are easy to know again."""
    plain = Gaussians(
        means=torch.tensor([[1.0, 2.0, 3.0]]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 2.0]]),
        scales=torch.tensor([[1.0, 0.5, 0.25]]),
        opacities=torch.tensor([0.75]),
        harmonics=torch.arange(12).reshape(1, 4, 3) / 16,
    )
    return dataclasses.replace(plain, **changes)


def test_ply_is_laid_out_as_3dgs_has_it(tmp_path: Path) -> None:
    write_ply(tmp_path / "one.ply", one())
    head, _, body = (tmp_path / "one.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1] for line in head.decode().splitlines() if line.startswith("property float")]
    found = dict(zip(names, struct.unpack(f"<{len(names)}f", body), strict=True))
    assert [found[n] for n in ("x", "y", "z")] == [1, 2, 3]
    assert [found[f"f_dc_{i}"] for i in range(3)] == [0, 1 / 16, 2 / 16]
    # red of the three harmonics of degree 1, then green, then blue
    assert [16 * found[f"f_rest_{i}"] for i in range(9)] == [3, 6, 9, 4, 7, 10, 5, 8, 11]
    assert found["opacity"] == pytest.approx(np.log(3))
    assert [found[f"scale_{i}"] for i in range(3)] == pytest.approx([0, np.log(0.5), np.log(0.25)])
    assert [found[f"rot_{i}"] for i in range(4)] == pytest.approx([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])


def test_ply_of_another_program_is_read(tmp_path: Path) -> None:
    """Other orders, types and further properties."""
    names = ["opacity", "extra", *(f"rot_{i}" for i in range(4)), *(f"scale_{i}" for i in range(3))]
    names += [*(f"f_dc_{i}" for i in range(3)), "z", "y", "x"]
    kinds = ["uchar" if name == "extra" else "double" for name in names]
    values = [0.0, 7, 1, 0, 0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 3, 2, 1]
    properties = "".join(f"property {kind} {name}\n" for kind, name in zip(kinds, names, strict=True))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{properties}end_header\n"
    (tmp_path / "x.ply").write_bytes(header.encode() + struct.pack("<dB13d", *values))
    found = read_ply(tmp_path / "x.ply")
    assert found.means.tolist() == [[1, 2, 3]]
    assert found.opacities.tolist() == [0.5]
    assert found.scales.tolist() == [[1, 1, 1]]
    assert found.harmonics.shape == (1, 1, 3)


def test_zero_and_one_are_kept_in_logarithms(tmp_path: Path) -> None:
    extreme = one(opacities=torch.tensor([1.0]), scales=torch.zeros(1, 3), quats=torch.zeros(1, 4))
    write_ply(tmp_path / "one.ply", extreme)
    found = read_ply(tmp_path / "one.ply")
    assert found.opacities.item() == pytest.approx(1, abs=1e-6)
    assert (found.scales > 0).all()
    assert found.scales.max() < 1e-11
    assert found.quats.tolist() == [[1, 0, 0, 0]]


def test_spz_is_laid_out_as_published(tmp_path: Path) -> None:
    write_spz(tmp_path / "one.spz", one())
    content = gzip.decompress((tmp_path / "one.spz").read_bytes())
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", content)
    assert (magic, version, count, degree, flags, reserved) == (0x5053474E, 3, 1, 1, 0, 0)
    body = content[16:]
    places = [int.from_bytes(body[3 * i : 3 * i + 3], "little", signed=True) / 2**bits for i in range(3)]
    assert places == pytest.approx([1, -2, -3], abs=1e-5), "axes right, up, back"
    assert body[9] == 191  # opacity
    assert list(body[10:13]) == [round(255 * (0.5 + 0.15 * c / 16)) for c in (0, 1, 2)]
    assert list(body[13:16]) == [160, round(16 * (10 + np.log(0.5))), round(16 * (10 + np.log(0.25)))]
    (packed,) = struct.unpack("<I", body[16:20])
    # (w, x, y, z) = √½ (1, 0, 0, 1) becomes √½ (1, 0, 0, -1); of equals z is taken as the largest, hence turned round
    assert packed >> 30 == 2
    assert packed & (2**30 - 1) == (1 << 9 | 511)
    # degree 1 goes with y, z, x, of which the first two are turned
    assert list(body[20:]) == [128 - 8 * c for c in (3, 4, 5, 6, 7, 8)] + [128 + 8 * c for c in (9, 10, 11)]


def test_spz_version_2_is_read(tmp_path: Path) -> None:
    header = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 0, 12, 1, 0)
    place = b"".join((v & 0xFFFFFF).to_bytes(3, "little") for v in (4096, 8192, -2048))
    quaternion = bytes(round(127.5 + 127.5 * v) for v in (0.6, 0, 0))
    body = place + bytes([255]) + bytes([128] * 3) + bytes([160, 144, 128]) + quaternion
    (tmp_path / "x.spz").write_bytes(gzip.compress(header + body))
    found = read_spz(tmp_path / "x.spz")
    assert found.means.tolist() == [[1, -2, 0.5]]
    torch.testing.assert_close(found.scales, torch.tensor([[0.0, -1, -2]]).exp())
    torch.testing.assert_close(found.quats, torch.tensor([[0.8, 0.6, 0, 0]]), atol=0.01, rtol=0)
    assert found.opacities.tolist() == [1]


@pytest.mark.parametrize("far", [1e-3, 1.0, 7.99, 3e4])
def test_spz_positions_use_their_bits(tmp_path: Path, far: float) -> None:
    place = torch.tensor([[far, -far / 3, -far]])
    write_spz(tmp_path / "x.spz", one(means=place))
    worst = max(far * 2**-22, 2**-21)
    torch.testing.assert_close(read_spz(tmp_path / "x.spz").means, place, atol=worst, rtol=0)


def test_spz_too_far_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1e\+08 away"):
        write_spz(tmp_path / "x.spz", one(means=torch.tensor([[1e8, 0, 0]])))
    assert not list(tmp_path.iterdir())


def test_gltf_says_what_the_extension_asks_for(tmp_path: Path) -> None:
    write_gltf(tmp_path / "one.glb", one())
    document = read_glb(tmp_path / "one.glb")
    assert "KHR_gaussian_splatting" in document.content["extensionsUsed"]
    assert "extensionsRequired" not in document.content, "others show points"
    primitive = document.content["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    said = primitive["extensions"]["KHR_gaussian_splatting"]
    assert said == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    get = {name: document.array(index)[0] for name, index in primitive["attributes"].items()}
    assert get["POSITION"].tolist() == [1, -2, -3]
    assert get["KHR_gaussian_splatting:SCALE"].tolist() == [1, 0.5, 0.25]
    assert get["KHR_gaussian_splatting:OPACITY"].item() == 0.75
    half = np.sqrt(0.5)
    np.testing.assert_allclose(get["KHR_gaussian_splatting:ROTATION"], [0, 0, -half, half], atol=1e-6)
    np.testing.assert_allclose(get["KHR_gaussian_splatting:SH_DEGREE_1_COEF_0"] * 16, [-3, -4, -5])
    np.testing.assert_allclose(get["KHR_gaussian_splatting:SH_DEGREE_1_COEF_2"] * 16, [9, 10, 11])
    colours = np.append(to_linear(0.5 + 0.28209479 * np.array([0, 1, 2]) / 16), 0.75)
    np.testing.assert_allclose(get["COLOR_0"], colours, atol=1e-5)


def test_gltf_moves_by_morph_targets(tmp_path: Path) -> None:
    write_gltf(tmp_path / "x.glb", moving())
    document = read_glb(tmp_path / "x.glb")
    animation = document.content["animations"][0]
    assert animation["channels"][0]["target"] == {"node": 0, "path": "weights"}
    sampler = animation["samplers"][0]
    assert sampler["interpolation"] == "LINEAR"
    np.testing.assert_allclose(document.array(sampler["input"]), [0, 0.1, 0.3])
    weights = document.array(sampler["output"]).reshape(3, 3)
    assert weights.tolist() == np.eye(3).tolist()
    mesh = document.content["meshes"][0]
    assert len(mesh["primitives"][0]["targets"]) == len(mesh["weights"]) == 3
    assert list(mesh["primitives"][0]["targets"][0]) == ["POSITION"]


def test_gltf_turns_by_morph_targets(tmp_path: Path) -> None:
    """Base and the weighted targets, summed and normalised as for any attribute, are the rotations at any time."""
    write_gltf(tmp_path / "x.glb", turning())
    primitive = (document := read_glb(tmp_path / "x.glb")).content["meshes"][0]["primitives"][0]
    name = "KHR_gaussian_splatting:ROTATION"
    changes = [document.array(target[name]) for target in primitive["targets"]]
    found = torch.tensor(document.array(primitive["attributes"][name]) + 0.65 * changes[1] + 0.35 * changes[2])
    found = torch.nn.functional.normalize(found.roll(1, dims=-1), dim=-1)
    expected = flip(state_at(sound(turning()), 0.1 + 0.35 * 0.2)).quats
    torch.testing.assert_close((found * expected).sum(-1).abs(), torch.ones(300))


def test_gltf_is_what_another_program_reads(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra synth has it")
    write_gltf(tmp_path / "x.glb", standing())
    cloud = next(iter(trimesh.load(tmp_path / "x.glb").geometry.values()))
    np.testing.assert_allclose(cloud.vertices, flip(standing()).means, atol=1e-6)


@needs_usd
def test_usd_samples_in_time(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom

    write_usd(tmp_path / "x.usda", moving())
    stage = Usd.Stage.Open(str(tmp_path / "x.usda"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 3)
    assert stage.GetTimeCodesPerSecond() == pytest.approx(10)
    prim = stage.GetDefaultPrim()
    assert prim.GetTypeName() == "ParticleField3DGaussianSplat"
    positions = prim.GetAttribute("positions")
    for time in TIMES:
        expected = flip(state_at(moving(), time)).means
        found = torch.tensor(np.array(positions.Get(Usd.TimeCode(time * 10))))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert prim.GetAttribute("radiance:sphericalHarmonicsDegree").Get() == 3
    assert not prim.GetAttribute("orientations").GetTimeSamples()


@needs_usd
def test_usd_samples_turns_in_time(tmp_path: Path) -> None:
    from pxr import Usd

    write_usd(tmp_path / "x.usda", turning())
    stage = Usd.Stage.Open(str(tmp_path / "x.usda"))
    orientations = stage.GetDefaultPrim().GetAttribute("orientations")
    assert orientations.GetTimeSamples() == [0, 1, 3]
    for time in TIMES:
        expected = flip(state_at(sound(turning()), time)).quats
        found = torch.tensor(np.array(orientations.Get(Usd.TimeCode(time * 10)))).roll(1, dims=-1)
        assert (found * expected).sum(-1).abs().min() > 0.998, "the pace within a gap differs"
        if time not in (0.13,):
            torch.testing.assert_close((found * expected).sum(-1).abs(), torch.ones(300))


def test_usd_without_openusd_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    for act in (lambda: write_usd(tmp_path / "x.usda", standing()), lambda: read_usd(tmp_path / "x.usda")):
        with pytest.raises(UserError, match=r"pip install 'four_d\[usd\]'"):
            act()
    assert not list(tmp_path.iterdir())


@needs_usd
def test_usd_of_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.ply cannot be the name of a USD file"):
        write_usd(tmp_path / "x.ply", standing())


def test_files_over_time_say_when(tmp_path: Path) -> None:
    write_times(tmp_path / "out", moving())
    frames = json.loads((tmp_path / "out" / "times.json").read_text())["frames"]
    assert [frame["file"] for frame in frames] == ["0000.ply", "0001.ply", "0002.ply"]
    assert [frame["time"] for frame in frames] == pytest.approx([0, 0.1, 0.3])
    write_times(tmp_path / "out", standing())
    assert read_times(tmp_path / "out").offsets is None, "an earlier result gives way"


def test_files_over_time_appear_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, gaussians: Gaussians, time: float) -> None:
        write_ply(path, gaussians, time)
        if time > 0.2:
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(sequences._WRITERS, "ply", fails)
    with pytest.raises(UserError, match="No space left"):
        write_times(tmp_path / "out", moving())
    assert not list(tmp_path.iterdir())


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"mine\.txt"):
        write_times(tmp_path, moving())
    with pytest.raises(UserError, match="no Gaussians over time"):
        read_times(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": torch.tensor([[1.0, float("nan"), 0]])}, "means of the Gaussians are not finite"),
        ({"scales": torch.tensor([[-1.0, 1, 1]])}, "not their logarithms"),
        ({"harmonics": torch.zeros(1, 2, 3)}, "2 harmonics"),
    ],
)
def test_unsound_gaussians_are_refused(changes: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    for write in (write_ply, write_spz, write_gltf):
        with pytest.raises(UserError, match=message):
            write(tmp_path / "x", one(**changes))
    assert not list(tmp_path.iterdir())


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="one of the batch"):
        sound(map_tensors(one(), lambda tensor: tensor[None]))


def test_gltf_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Gaussians to write"):
        write_gltf(tmp_path / "x.glb", standing(0))


def test_empty_ply_and_spz_come_back_empty(tmp_path: Path) -> None:
    write_ply(tmp_path / "x.ply", standing(0))
    write_spz(tmp_path / "x.spz", standing(0))
    assert len(read_ply(tmp_path / "x.ply").means) == len(read_spz(tmp_path / "x.spz").means) == 0


@pytest.mark.parametrize(("write", "read", "name"), STANDING)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_cut_off_files_are_named(
    write: Callable[..., None], read: Callable[[Path], Gaussians], name: str, share: float, tmp_path: Path
) -> None:
    write(tmp_path / name, standing())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


@pytest.mark.parametrize(("write", "read", "name"), STANDING)
def test_missing_files_are_named(
    write: Callable[..., None], read: Callable[[Path], Gaussians], name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


def test_glb_without_gaussians_is_named(tmp_path: Path) -> None:
    builder = Builder()
    builder.scene(builder.add("meshes", {"primitives": []}))
    builder.write(tmp_path / "x.glb")
    with pytest.raises(UserError, match="holds no Gaussians"):
        read_gltf(tmp_path / "x.glb")


FOREIGN = Path(__file__).parent.parent / "data" / "splats"
"""`standing(12)` as other programs wrote it (see SOURCE.md there)."""


@pytest.mark.parametrize(
    ("name", "axes", "rough"),
    [
        ("foreign.ply", (1, 1, 1), False),
        ("foreign.spz", (1, 1, 1), True),
        # its writer has the front of a scene look along z, as ours has the back: half a turn about y between them
        ("foreign.glb", (-1, 1, -1), False),
        pytest.param("foreign.usdc", (1, 1, 1), False, marks=needs_usd),
    ],
)
def test_files_of_other_programs_are_read(name: str, axes: tuple[int, int, int], rough: bool) -> None:
    found, expected = read_gaussians(FOREIGN / name), sound(standing(12))
    turn = torch.tensor(axes)
    near, coarse = (2e-4, 0.04) if rough else (2e-6, 2e-6)
    torch.testing.assert_close(found.means, expected.means * turn, atol=near, rtol=0)
    torch.testing.assert_close(found.scales, expected.scales, atol=2e-6, rtol=coarse)
    torch.testing.assert_close(found.opacities, expected.opacities, atol=coarse, rtol=0)
    torch.testing.assert_close(found.harmonics[:, 0], expected.harmonics[:, 0], atol=coarse, rtol=0)
    shape = turn[:, None] * _covariances(expected) * turn
    torch.testing.assert_close(_covariances(found), shape, atol=2e-6 + 0.002 * rough, rtol=0)
    assert found.harmonics.shape == expected.harmonics.shape
    if name in ("foreign.ply", "foreign.spz"):  # the other two turn the scene, not all of them its harmonics
        higher = (found.harmonics - expected.harmonics)[:, 1:].abs()
        assert higher.max() <= (0.07 if rough else 2e-6), "5 and 4 bits"


def _covariances(gaussians: Gaussians) -> torch.Tensor:
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats, dim=-1).unbind(-1)
    first = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1)
    second = torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1)
    third = torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1)
    axes = torch.stack([first, second, third], dim=-2) * gaussians.scales[:, None]
    return axes @ axes.mT


def test_newer_spz_is_named() -> None:
    with pytest.raises(UserError, match=r"foreign4\.spz is SPZ of version 4 or later; save it as version 3"):
        read_spz(FOREIGN / "foreign4.spz")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes", 0, "translation"), [0, 0, 1], "in a node with a transform"),
        (("meshes", 0, "primitives", 0, "extensions", "KHR_gaussian_splatting", "colorSpace"), "lin", "colorSpace lin"),
        (("meshes", 0, "primitives", 0, "extensions", "KHR_gaussian_splatting", "kernel"), "box", "kernel box"),
    ],
)
def test_gltf_that_would_look_otherwise_is_refused(
    path: tuple[str | int, ...], value: Any, message: str, tmp_path: Path
) -> None:
    write_gltf(tmp_path / "x.glb", standing(5))
    document = read_glb(tmp_path / "x.glb")
    content: Any = json.loads(json.dumps(document.content))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    Builder(content=content, body=bytearray(document.body)).write(tmp_path / "y.glb")
    with pytest.raises(UserError, match=message):
        read_gltf(tmp_path / "y.glb")


def test_gltf_refuses_a_moved_parent_and_takes_still_nodes(tmp_path: Path) -> None:
    write_gltf(tmp_path / "x.glb", standing(5))
    document = read_glb(tmp_path / "x.glb")
    for parent, fits in [({"scale": [1.0, 1.0, 1.0]}, True), ({"scale": [2.0, 2.0, 2.0]}, False)]:
        nodes = [*document.content["nodes"], {"children": [0], **parent}]
        Builder(content=document.content | {"nodes": nodes}, body=bytearray(document.body)).write(tmp_path / "y.glb")
        if fits:
            assert len(read_gltf(tmp_path / "y.glb").means) == 5
        else:
            with pytest.raises(UserError, match="in a node with a transform"):
                read_gltf(tmp_path / "y.glb")


def test_gltf_says_what_arrays_are_for(tmp_path: Path) -> None:
    """Attributes and morph targets are vertices; times and weights of the animation are not."""
    write_gltf(tmp_path / "x.glb", moving(5))
    content = read_glb(tmp_path / "x.glb").content
    views = [content["bufferViews"][accessor["bufferView"]].get("target") for accessor in content["accessors"]]
    sampler = content["animations"][0]["samplers"][0]
    times = {sampler["input"], sampler["output"]}
    assert [target for index, target in enumerate(views) if index not in times] == [34962] * (len(views) - 2)
    assert {views[index] for index in times} == {None}


@needs_usd
def test_usd_is_in_metres_and_its_extent_takes_in_all_that_shows(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom

    write_usd(tmp_path / "x.usda", moving())
    stage = Usd.Stage.Open(str(tmp_path / "x.usda"))
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    prim = stage.GetDefaultPrim()
    for code in prim.GetAttribute("positions").GetTimeSamples():
        means, scales = np.array(prim.GetAttribute("positions").Get(code)), np.array(prim.GetAttribute("scales").Get())
        low, high = np.array(prim.GetAttribute("extent").Get(code))
        reach = 3 * scales.max(axis=-1, keepdims=True)
        np.testing.assert_allclose(low, (means - reach).min(axis=0), atol=1e-5)
        np.testing.assert_allclose(high, (means + reach).max(axis=0), atol=1e-5)


def test_pictures_have_the_size_that_is_meant() -> None:
    shown = pictures(standing(3), Cameras(world_from_camera=torch.eye(4)[None], intrinsics=cameras().intrinsics[:1]))
    assert shown.shape == (len(TIMES), 3, *SIZE)


def broken(gaussians: Gaussians) -> Gaussians:
    """The same with a third that is not finite in one value."""
    scales = gaussians.scales.clone()
    scales[2, 1] = torch.inf
    return dataclasses.replace(gaussians, scales=scales)


@pytest.mark.parametrize(("write", "read", "name"), STANDING[2:])
def test_broken_gaussians_are_left_out_of_every_format(
    write: Callable[..., None],
    read: Callable[[Path], Gaussians],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("gltf", "usd"):  # another program's writer, which does not look
        monkeypatch.setattr(f"four_d.formats.splats.{module}.sound", broken)
    write(tmp_path / name, standing(5))
    torch.testing.assert_close(read(tmp_path / name).means, standing(5).means[[0, 1, 3, 4]], atol=2e-6, rtol=0)
    assert f"{name}: 1 of 5 Gaussians are not finite and left out" in capsys.readouterr().err


def rewritten(path: Path, change: Callable[[Any], None], body: bytes = b"") -> Path:
    """A GLB with other JSON, and more behind its arrays."""
    document = read_glb(path)
    content: Any = json.loads(json.dumps(document.content))
    change(content)
    Builder(content=content, body=bytearray(document.body + body)).write(path)
    return path


def test_gltf_of_several_primitives_reads_the_first_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gltf(tmp_path / "x.glb", standing(5))
    rewritten(tmp_path / "x.glb", lambda c: c["meshes"].append(c["meshes"][0]))
    assert len(read_gltf(tmp_path / "x.glb").means) == 5
    assert "of 2 primitives of Gaussians only the first is read" in capsys.readouterr().err


def _pack(content: Any) -> None:
    said = content["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]
    said["extensions"] = {"KHR_gaussian_splatting_compression_spz_2": {"bufferView": 0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pack, "packed with KHR_gaussian_splatting_compression_spz_2; save them without"),
        (lambda c: c["bufferViews"][0].update(extensions={"EXT_meshopt_compression": {}}), "packed or in another file"),
        (lambda c: c["bufferViews"][0].update(buffer=1), "packed or in another file"),
        (lambda c: c["accessors"][0].update(count=2), "2 positions but 5 KHR"),
        (lambda c: c["animations"][0]["samplers"][0].update(interpolation="STEP"), "interpolation STEP"),
        (lambda c: c["animations"][0]["channels"][0]["target"].update(path="translation"), "node that moves"),
    ],
)
def test_gltf_that_is_packed_or_moves_otherwise_is_named(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    write_gltf(tmp_path / "x.glb", take(moving(), torch.arange(5)))
    with pytest.raises(UserError, match=message):
        read_gltf(rewritten(tmp_path / "x.glb", change))


def test_gltf_takes_signed_integers_as_they_are(tmp_path: Path) -> None:
    """KHR_mesh_quantization stores positions so."""
    write_gltf(tmp_path / "x.glb", standing(2))
    places = np.array([[1, -2, 3, 0], [-300, 5, -6, 0]], "<i2")

    def change(content: Any) -> None:
        view = {"buffer": 0, "byteOffset": len(body), "byteLength": 16, "byteStride": 8}
        content["bufferViews"].append(view)
        at = content["meshes"][0]["primitives"][0]["attributes"]["POSITION"]
        content["accessors"][at] |= {"bufferView": len(content["bufferViews"]) - 1, "componentType": 5122}

    body = read_glb(tmp_path / "x.glb").body
    found = read_gltf(rewritten(tmp_path / "x.glb", change, places.tobytes()))
    assert found.means.tolist() == [[1, 2, -3], [-300, -5, 6]]


@needs_usd
@pytest.mark.parametrize("change", ["half", "z", "above", "several", "package"])
def test_usd_as_other_programs_write_it(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pxr import Gf, Usd, UsdGeom, UsdUtils, UsdVol

    scene, path = standing(3, 0), tmp_path / "x.usda"
    write_usd(path, scene)
    stage: Any = Usd.Stage.Open(str(path))
    field = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    if change == "half":
        for name in ("Positions", "Scales", "Orientations", "Opacities", "RadianceSphericalHarmonicsCoefficients"):
            attribute = getattr(field, f"Get{name}Attr")()
            values = np.array(attribute.Get())
            attribute.Clear()
            kind = type(getattr(field, f"Create{name}hAttr")().GetTypeName().type.pythonClass())
            getattr(field, f"Get{name}hAttr")().Set(kind.FromNumpy(values.astype(np.float16)))
    elif change == "z":
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    elif change == "several":
        UsdVol.ParticleField3DGaussianSplat.Define(stage, "/other")
    elif change == "above":
        UsdGeom.Xform.Define(stage, "/world").AddTranslateOp().Set(Gf.Vec3d(0, 0, 1))
        editor = Usd.NamespaceEditor(stage)
        editor.MovePrimAtPath("/gaussians", "/world/gaussians")
        assert editor.ApplyEdits()
    stage.Save()
    if change == "package":
        UsdUtils.CreateNewUsdzPackage(str(path), str(tmp_path / "x.usdz"))
        path = tmp_path / "x.usdz"
    if change == "above":
        with pytest.raises(UserError, match="particle field with a transform"):
            read_gaussians(path)
        return
    found, expected = read_gaussians(path), scene
    rough = 2e-3 if change == "half" else 2e-6
    if change == "z":  # its (x, y, z) are right, away, up, and were written as right, up, back
        turned = flip(scene).means @ torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        expected = dataclasses.replace(scene, means=turned)
    torch.testing.assert_close(found.means, expected.means, atol=rough, rtol=0)
    torch.testing.assert_close(found.opacities, expected.opacities, atol=rough, rtol=0)
    assert ("of 2 particle fields only /gaussians" in capsys.readouterr().err) == (change == "several")


@pytest.mark.parametrize("suffix", [".splat", ".ksplat", ".sog", ".SPLAT", ".gltf"])
def test_formats_that_are_not_read_are_named(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match=rf"x{suffix} is .* not supported; (convert it to PLY|save it as one)"):
        read_gaussians(tmp_path / f"x{suffix}")
