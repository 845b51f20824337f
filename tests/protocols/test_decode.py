"""Decoders: values as written, and one clear error for each way a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from four_d.datasets import decode
from four_d.errors import UserError
from tests.protocols import written


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_tagged_files(rng: np.random.Generator, tmp_path: Path) -> None:
    depth, flow = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(5, 7, 2)).astype(np.float32)
    np.testing.assert_array_equal(decode.depth_dpt(written.tagged(tmp_path / "a.dpt", depth)), depth)
    np.testing.assert_array_equal(decode.flow_flo(written.tagged(tmp_path / "a.flo", flow)), flow)


@pytest.mark.parametrize("counts", [5000.0, 1000.0, 256.0])
def test_depth_png(counts: float, tmp_path: Path) -> None:
    values = np.array([[0, 1, 1000], [5000, 256, 65535]], np.uint16)
    path = written.picture(tmp_path / "a.png", values)
    np.testing.assert_allclose(decode.depth_png(path, counts), values / counts, rtol=1e-7)


def test_pictures(rng: np.random.Generator, tmp_path: Path) -> None:
    rgba = rng.integers(0, 256, (3, 4, 4), np.uint8)
    np.testing.assert_array_equal(decode.image(written.picture(tmp_path / "a.png", rgba)), rgba[..., :3])
    grey = rgba[..., 0]
    path = written.picture(tmp_path / "b.png", grey)
    np.testing.assert_array_equal(decode.image(path), np.repeat(grey[..., None], 3, -1))
    assert decode.image_size(path) == (3, 4)


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "RGBA", "I;16"])
def test_masks_of_every_kind(mode: str, tmp_path: Path) -> None:
    truth = np.array([[True, False, True], [False, False, True]])
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(truth.astype(np.uint16)).save(path)
    elif mode == "P":
        index = Image.fromarray(truth.astype(np.uint8) * 3, mode="P")
        index.putpalette([0] * 768)
        index.save(path)
    else:
        Image.fromarray(truth.astype(np.uint8) * 255).convert(mode).save(path)
    np.testing.assert_array_equal(decode.mask(path), truth)


def test_lists_of_times(tmp_path: Path) -> None:
    path = written.text(tmp_path / "rgb.txt", "# one\n1.5 rgb/1.5.png\n\n2.5,rgb/b c.png\n3.5\tx\n")
    times, names = decode.stamped(path)
    assert times.tolist() == [1.5, 2.5, 3.5]
    assert names == ["rgb/1.5.png", "rgb/b c.png", "x"]


@pytest.mark.parametrize("seed", range(20))
def test_association_is_greedy_by_closeness(seed: int) -> None:
    """Against the rule spelt out: all pairs by distance, each time used once."""
    rng = np.random.default_rng(seed)
    a, b = np.sort(rng.uniform(0, 2, 60)), np.sort(rng.uniform(0, 2, 90))
    pairs = sorted((abs(x - y), x, y) for x in a for y in b if abs(x - y) < 0.02)
    left, right, expected = set(a), set(b), []
    for _, x, y in pairs:
        if x in left and y in right:
            left.remove(x)
            right.remove(y)
            expected.append((x, y))
    first, second = decode.associate(a, b, 0.02)
    assert list(zip(a[first], b[second])) == sorted(expected)


def test_association_of_nothing() -> None:
    first, second = decode.associate(np.array([0.0, 1.0]), np.array([5.0]), 0.02)
    assert len(first) == len(second) == 0


def test_matrices_keep_what_is_not_finite(tmp_path: Path) -> None:
    path = written.text(tmp_path / "a.txt", "1 2 -inf\nnan 5 6\n")
    values = decode.matrix(path, 2, 3)
    assert values[0, 2] == -np.inf
    assert np.isnan(values[1, 0])
    assert decode.matrices(path, 1, 3).shape == (2, 1, 3)


def _cut(path: Path) -> None:
    content = path.read_bytes()  # a PNG that lacks but its last bytes still shows its picture
    path.write_bytes(content[: len(content) // 2] if path.suffix == ".png" else content[:-3])


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"....")


def _other(path: Path) -> None:
    path.write_bytes(b"<html>404 not found</html> and more of that page")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [_cut, _longer, _other, _empty, Path.unlink]
DECODERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.dpt", decode.depth_dpt),
    ("a.flo", decode.flow_flo),
    ("a.cam", decode.camera_cam),
    ("a.png", decode.image),
    ("d.png", lambda path: decode.depth_png(path, 1000.0)),
    ("m.png", decode.mask),
    ("a.npy", decode.depth_npy),
    ("a.txt", lambda path: decode.matrix(path, 2, 2)),
    ("rgb.txt", decode.stamped),
    ("a.json", decode.camera_nerfies),
]


def _write(path: Path) -> None:
    values = np.random.default_rng(0).uniform(1, 2, (40, 50)).astype(np.float32)
    match path.name:
        case "a.dpt":
            written.tagged(path, values)
        case "a.flo":
            written.tagged(path, values.reshape(40, 25, 2))
        case "a.cam":
            written.binary(path, np.float32([202021.25]), np.arange(21.0))
        case "a.npy":
            np.save(path, values)
        case "a.txt":
            path.write_text("1 2\n3 4e123")
        case "rgb.txt":
            path.write_text("1.0 rgb/1.png\n1.5 x")
        case "a.json":
            path.write_text(json.dumps(written._nerfies(written.world(), 0)))
        case _:
            written.picture(path, (values * 20000).astype(np.uint16 if path.name == "d.png" else np.uint8))


@pytest.mark.parametrize(("name", "decoder"), DECODERS, ids=[name for name, _ in DECODERS])
@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "longer", "other", "empty", "missing"])
def test_damage_is_named(name: str, decoder: Callable[[Path], object], damage: Callable, tmp_path: Path) -> None:
    path = tmp_path / name
    _write(path)
    decoder(path)
    harmless = {"longer": ("a.png", "d.png", "m.png", "a.npy", "rgb.txt")}.get(damage.__name__.strip("_"), ())
    damage(path)
    if name in harmless:
        decoder(path)
        return
    with pytest.raises(UserError) as caught:
        decoder(path)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


def test_eight_bit_depth_is_refused(tmp_path: Path) -> None:
    path = written.picture(tmp_path / "a.png", np.ones((2, 2), np.uint8))
    with pytest.raises(UserError, match="mode L, not one channel of 16 bits"):
        decode.depth_png(path, 1000.0)


def test_npy_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable"):
        decode.depth_npy(path)
    np.save(path, np.zeros((2, 3, 4), np.float32))
    with pytest.raises(UserError, match="not depth"):
        decode.depth_npy(path)


def test_a_header_of_nonsense_size_is_refused(tmp_path: Path) -> None:
    path = written.binary(tmp_path / "a.dpt", np.float32([202021.25]), np.int32([-4, 2**30]))
    with pytest.raises(UserError, match="implausible size, -4 × 1073741824"):
        decode.depth_dpt(path)


def test_a_distorted_camera_is_refused(tmp_path: Path) -> None:
    content = written._nerfies(written.world(), 0) | {"radial_distortion": [0.1, 0, 0]}
    path = written.text(tmp_path / "a.json", json.dumps(content))
    with pytest.raises(UserError, match="undistort the images first"):
        decode.camera_nerfies(path)


def test_a_line_that_is_no_time_is_named(tmp_path: Path) -> None:
    path = written.text(tmp_path / "rgb.txt", "# x\n1.0 a\nsoon b\n")
    with pytest.raises(UserError, match=r"rgb\.txt:3 is not 'time name'"):
        decode.stamped(path)
