"""PLY files of any program are read as their headers describe them; what is broken is left out or named."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.errors import UserError
from four_d.formats import clouds
from four_d.formats.ply import read_vertices
from four_d.formats.splats import read_gaussians, write_times
from four_d.formats.splats.ply import read_ply
from four_d.types import Gaussians

NAMES = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
NAMES += ["rot_0", "rot_1", "rot_2", "rot_3"]
ROWS = [[i + 1, 2, 3, 0.25, 0.5, 0.75, 0, 0, -1, 1, 1, 0, 0, 0] for i in range(3)]
"""Three Gaussians at x = 1, 2 and 3."""


def head(
    encoding: str = "binary_little_endian",
    *,
    count: int = 3,
    names: Sequence[str] = tuple(NAMES),
    kind: str = "float",
    before: str = "",
    after: str = "",
    line_end: str = "\n",
) -> bytes:
    vertices = f"element vertex {count}\n" + "".join(f"property {kind} {name}\n" for name in names)
    lines = f"ply\nformat {encoding} 1.0\ncomment by ünïcode\nobj_info x\n{before}{vertices}{after}end_header\n"
    return lines.replace("\n", line_end).encode()


def body(order: str = "<", kind: str = "f", rows: Sequence[Sequence[float]] = tuple(ROWS)) -> bytes:
    return b"".join(struct.pack(f"{order}{len(row)}{kind}", *row) for row in rows)


def text(rows: Sequence[Sequence[float]] = tuple(ROWS), line_end: str = "\n") -> bytes:
    return "".join(" ".join(str(value) for value in row) + line_end for row in rows).encode()


FACES = "element face 2\nproperty list uchar int vertex_indices\nproperty uchar flag\n"
CAMERA = "element camera 1\nproperty double fov\nproperty short index\n"


def faces(order: str = "<") -> bytes:
    return struct.pack(f"{order}B3iB", 3, 0, 1, 2, 7) + struct.pack(f"{order}B4iB", 4, 0, 1, 2, 3, 9)


def camera(order: str = "<") -> bytes:
    return struct.pack(f"{order}dh", 0.5, 3)


LAWFUL = {
    "plain": head() + body(),
    "big-endian": head("binary_big_endian") + body(">"),
    "text": head("ascii") + text(),
    "text, double": head("ascii", kind="float64") + text(),
    "text, last line open": head("ascii") + text().rstrip(),
    "sized names": head(kind="float32") + body(),
    "double": head(kind="double") + body(kind="d"),
    "lines of Windows": head(line_end="\r\n") + body(),
    "lines of old Macs": head(line_end="\r") + body(),
    "text of Windows": head("ascii", line_end="\r\n") + text(line_end="\r\n"),
    "a further line end": head() + body() + b"\n",
    "padding": head() + body() + b"\0" * 7,
    "faces after": head(after=FACES) + body() + faces(),
    "faces after, in text": head("ascii", after=FACES) + text() + b"3 0 1 2 7\n4 0 1 2 3 9\n",
    "a camera after": head(after=CAMERA) + body() + camera(),
    "a camera after, big-endian": head("binary_big_endian", after=CAMERA) + body(">") + camera(">"),
    "a camera and faces before": head(before=CAMERA + FACES) + camera() + faces() + body(),
    "faces before, big-endian": head("binary_big_endian", before=FACES) + faces(">") + body(">"),
    "faces before, in text": head("ascii", before=FACES) + b"3 0 1 2 7\n4 0 1 2 3 9\n" + text(),
    "lists of vertices": head(names=["x"], after="property list uchar short seen_by\n")[: -len("end_header\n")]
    + "".join(f"property float {name}\n" for name in NAMES[1:]).encode()
    + b"end_header\n"
    + b"".join(
        struct.pack("<f", row[0]) + struct.pack(f"<B{n}h", n, *range(n)) + struct.pack("<13f", *row[1:])
        for n, row in enumerate(ROWS)
    ),
    "lists of vertices, in text": head("ascii", after="property list uchar int seen_by\n")
    + b"".join(text([row]).rstrip() + f" {n} {'5 ' * n}\n".encode() for n, row in enumerate(ROWS)),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_what_ply_allows_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ply").write_bytes(LAWFUL[name])
    found = read_ply(tmp_path / "x.ply")
    assert found.means.tolist() == [[1, 2, 3], [2, 2, 3], [3, 2, 3]]
    assert found.harmonics.tolist() == [[[0.25, 0.5, 0.75]]] * 3
    assert found.opacities.tolist() == [0.5] * 3
    torch.testing.assert_close(found.scales[0].log(), torch.tensor([0.0, -1, 1]))
    assert found.quats.tolist() == [[1, 0, 0, 0]] * 3
    assert not capsys.readouterr().err


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_of_each_degree_in_any_order(degree: int, tmp_path: Path) -> None:
    count = (degree + 1) ** 2 - 1
    rest = [f"f_rest_{i}" for i in range(3 * count)]
    order = np.random.default_rng(degree).permutation(len(NAMES) + len(rest))
    names, row = [*NAMES, *rest], [*ROWS[0], *range(3 * count)]
    content = head(count=1, names=[names[i] for i in order]) + body(rows=[[row[i] for i in order]])
    (tmp_path / "x.ply").write_bytes(content)
    found = read_ply(tmp_path / "x.ply").harmonics[0]
    assert found[0].tolist() == [0.25, 0.5, 0.75]
    assert found[1:].T.flatten().tolist() == list(range(3 * count)), "red's, then green's, then blue's"


@pytest.mark.parametrize("encoding", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize(
    ("column", "value"), [(0, "nan"), (2, "-inf"), (4, "nan"), (6, "nan"), (8, "inf"), (12, "inf")]
)
def test_broken_rows_are_left_out_and_counted(
    encoding: str, column: int, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [list(row) for row in ROWS]
    rows[1][column] = float(value)
    data = text(rows) if encoding == "ascii" else body("<" if "little" in encoding else ">", rows=rows)
    (tmp_path / "x.ply").write_bytes(head(encoding) + data)
    assert read_gaussians(tmp_path / "x.ply").means[:, 0].tolist() == [1, 3]
    assert "x.ply: 1 of 3 Gaussians are not finite and left out" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["-nan(ind)", "1.#QNAN", "-1.#IND", "1.#INF", "NaN", "nan", "-Infinity", "1e999"])
def test_what_is_no_number_in_text_is_left_out(word: str, tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_bytes(head("ascii") + text().replace(b"2 2 3", f"2 {word} 3".encode()))
    assert read_ply(tmp_path / "x.ply").means[:, 0].tolist() == [1, 3]


def test_doubles_that_no_float_holds_are_left_out(tmp_path: Path) -> None:
    rows = [ROWS[0], [1e300, *ROWS[1][1:]]]
    (tmp_path / "x.ply").write_bytes(head(count=2, kind="double") + body(kind="d", rows=rows))
    assert read_ply(tmp_path / "x.ply").means[:, 0].tolist() == [1]


def test_certain_opacities_and_flat_scales_are_kept(tmp_path: Path) -> None:
    """Their logits and logarithms are infinite, they themselves are not."""
    rows = [[*ROWS[0][:6], infinite, -np.inf, *ROWS[0][8:]] for infinite in (np.inf, -np.inf)]
    (tmp_path / "x.ply").write_bytes(head(count=2) + body(rows=rows))
    found = read_ply(tmp_path / "x.ply")
    assert found.opacities.tolist() == [1, 0]
    assert found.scales[:, 0].tolist() == [0, 0]


def test_gaussians_of_two_scales_are_flat(tmp_path: Path) -> None:
    names, rows = [n for n in NAMES if n != "scale_2"], [[*row[:9], *row[10:]] for row in ROWS]
    (tmp_path / "x.ply").write_bytes(head(names=names) + body(rows=rows))
    torch.testing.assert_close(read_ply(tmp_path / "x.ply").scales[0], torch.tensor([0.0, -1, -torch.inf]).exp())


def test_further_properties_are_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, rows = [*NAMES, "nx", "red", "motion_0"], [[*row, 0, 255, 5] for row in ROWS]
    (tmp_path / "x.ply").write_bytes(head(names=names) + body(rows=rows))
    assert len(read_ply(tmp_path / "x.ply").means) == 3
    assert capsys.readouterr().err.strip().endswith("x.ply: ignoring motion_0")


@pytest.mark.parametrize("encoding", ["binary_little_endian", "ascii"])
def test_no_vertices_are_no_gaussians(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_bytes(head(encoding, count=0))
    assert len(read_ply(tmp_path / "x.ply").means) == 0
    assert len(clouds.read_ply(tmp_path / "x.ply")) == 0


BROKEN = {
    "3 of 14 bytes": (
        head() + body()[:-3],
        r"2 of 3 rows of the element vertex are complete, 3 bytes are missing; copy",
    ),
    "a line": (head("ascii") + text(ROWS[:2]), r"2 of 3 rows .* 1 lines are missing"),
    "half a line": (head("ascii") + text().rsplit(b" 0 0", 1)[0], r"has a vertex that is not all numbers"),
    "lists": (head(before=FACES) + faces()[:-9], r"1 of 2 rows of the element face are complete"),
    "vertices after lists": (head(before=FACES) + faces() + body()[:-1], r"2 of 3 rows of the element vertex"),
    "the header": (head()[:150], r"has no line 'end_header'; copy it again"),
    "a transfer as text": (
        (head() + body(rows=[[10, *[8.6e-33] * 13] for _ in range(3)])).replace(b"\n", b"\r\n"),
        r"a transfer in text mode has inserted bytes; copy it again in binary mode",
    ),
    "words": (head("ascii") + text().replace(b"0.75", b"blue", 1), r"not all numbers"),
    "too many numbers": (head("ascii") + text([[*row, 5] for row in ROWS]), r"15 numbers a row .* says 14"),
    "a type": (head(kind="float128"), r"an unknown header line: 'property float128 x'"),
    "twice": (head(names=["x", "x"]), r"two properties x of a vertex"),
    "no format": (head().replace(b"format binary_little_endian 1.0\n", b""), r"has no format line"),
    "an encoding": (head("binary_middle_endian"), r"unknown header line: 'format binary_middle"),
    "no vertices": (head().replace(b"element vertex", b"element face"), r"holds no vertices but face"),
    "another file": (b"\x1f\x8b\x08\x00", r"is not a PLY file"),
    "nothing": (b"", r"is not a PLY file"),
    "points": (head(names=["x", "y", "z"], count=0), r"has no f_dc_0: it holds no Gaussians; give a PLY of 3D"),
    "f_rest": (head(names=[*NAMES, "f_rest_0"], count=0), r"1 f_rest properties where 0, 9, 24 or 45 are known"),
    "nothing finite": (head(count=1) + body(rows=[[np.nan] * 14]), r"no Gaussian left: 1 of 1 Gaussians"),
    "SuperSplat": (
        head(names=["packed_position", "packed_rotation", "packed_scale", "packed_color"], kind="uint", count=0),
        r"a compressed PLY \(of SuperSplat\), which is not supported; save it as a plain PLY",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / "x.ply").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ply .*" + message):
        read_ply(tmp_path / "x.ply")


def test_bytes_that_belong_to_nothing_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ply").write_bytes(head() + body() + b"thirteen more")
    assert len(read_ply(tmp_path / "x.ply").means) == 3
    assert "ignoring 13 bytes after its last element" in capsys.readouterr().err
    (tmp_path / "x.ply").write_bytes(head(after=CAMERA) + body() + camera()[:-1])
    assert len(read_ply(tmp_path / "x.ply").means) == 3
    assert "truncated after its vertices, which are complete" in capsys.readouterr().err


def test_gaussians_broken_at_one_time_are_left_out_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = Gaussians(
        means=torch.arange(9.0).reshape(3, 3),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        scales=torch.ones(3, 3),
        opacities=torch.full((3,), 0.5),
        harmonics=torch.zeros(3, 1, 3),
        offsets=torch.zeros(2, 3, 3),
        offset_times=torch.tensor([0.0, 1.0]),
    )
    write_times(tmp_path / "out", still)
    later = tmp_path / "out" / "0001.ply"
    later.write_bytes(later.read_bytes().replace(struct.pack("<3f", 3, 4, 5), struct.pack("<3f", 3, np.nan, 5)))
    found = read_gaussians(tmp_path / "out")
    assert found.means.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert found.offsets is not None
    assert found.offsets.shape == (2, 2, 3)
    assert "1 of 3 Gaussians are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code", "value"),
    [("uchar", "B", 51), ("ushort", "H", 51 * 257), ("float", "f", 0.2), ("double", "d", 0.2)],
)
@pytest.mark.parametrize("encoding", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_points_of_other_programs(encoding: str, kind: str, code: str, value: float, tmp_path: Path) -> None:
    """Open3D writes doubles, MeshLab an alpha and faces, others colours of another type, or none."""
    colour = "".join(f"property {kind} {name}\n" for name in ("red", "green", "blue", "alpha"))
    lines = f"ply\nformat {encoding} 1.0\nelement vertex 2\n" + "".join(f"property double {n}\n" for n in "zyx")
    data = [(3.0, 2.0, 1.0, value, 0, 0, 0), (np.nan, 2.0, 1.0, value, 0, 0, 0)]
    order = ">" if "big" in encoding else "<"
    packed = text(data) if encoding == "ascii" else b"".join(struct.pack(f"{order}3d4{code}", *row) for row in data)
    (tmp_path / "x.ply").write_bytes((lines + colour + "end_header\n").encode() + packed)
    cloud = clouds.read_ply(tmp_path / "x.ply")
    assert cloud.points.tolist() == [[1, 2, 3]]
    assert cloud.colours.tolist() == [[51, 0, 0]]
    assert (cloud.frames.tolist(), cloud.confidence.tolist()) == ([0], [1])


def test_points_without_colour_are_white(tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_bytes(head(names=["x", "y", "z"], count=1) + body(rows=[[1, 2, 3]]))
    assert clouds.read_ply(tmp_path / "x.ply").colours.tolist() == [[255, 255, 255]]
    (tmp_path / "x.ply").write_bytes(head(names=["x", "y"], count=1) + body(rows=[[1, 2]]))
    with pytest.raises(UserError, match="has no z: it holds no points"):
        clouds.read_ply(tmp_path / "x.ply")


def test_columns_keep_their_types(tmp_path: Path) -> None:
    kinds = {"char": "b", "uint8": "B", "int16": "h", "ushort": "H", "int": "i", "uint32": "I", "float64": "d"}
    lines = "".join(f"property {kind} {kind}\n" for kind in kinds)
    for encoding, data in {
        "binary_big_endian": struct.pack(">" + "".join(kinds.values()), -1, 255, -300, 60000, -70000, 4000000000, 0.5),
        "ascii": b"-1 255 -300 60000 -70000 4000000000 0.5\n",
    }.items():
        header = f"ply\nformat {encoding} 1.0\nelement vertex 1\n{lines}end_header\n"
        (tmp_path / "x.ply").write_bytes(header.encode() + data)
        found = read_vertices(tmp_path / "x.ply")
        assert [value[0].item() for value in found.values()] == [-1, 255, -300, 60000, -70000, 4000000000, 0.5]
        assert [value.dtype.char for value in found.values()] == ["b", "B", "h", "H", "i", "I", "d"]
