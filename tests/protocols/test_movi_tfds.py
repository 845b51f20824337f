"""MOVi as TFDS ships it: what is read is what was rendered, its tracks are the scene's, and damage is named."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.fingerprint import fingerprint
from four_d.data.shards import ShardReader
from four_d.datasets import tfrecord
from four_d.datasets.files import OPENGL
from four_d.datasets.png import png16
from four_d.datasets.sequence import Sequence, WorldTracks
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols import movi
from tests.protocols.movi import FRAMES, SIZE

SETS = {"movi_f": 512, "movi_a": 256}
"""Sets, and the width of their rendered pictures."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each set, of two records."""
    return {name: movi.write(tmp_path_factory.mktemp(name), name) for name in SETS}


@pytest.fixture(params=SETS)
def sequence(request: pytest.FixtureRequest, written: dict[str, Path]) -> Sequence:
    return DATASETS["movi_tfds"].open(written[request.param].parent)[1]


def sampled(rendered: int) -> float:
    """Place of a map's value in its pixel: of a block of n × n, the pixel before the middle."""
    step = rendered // SIZE
    return ((step - 1) // 2 + 0.5) / step


def tracks_of(sequence: Sequence) -> WorldTracks:
    assert sequence.world_tracks is not None
    return sequence.world_tracks()


def test_every_record_is_a_sequence(written: dict[str, Path]) -> None:
    root = written["movi_f"].parents[3]
    found = DATASETS["movi_tfds"].open(root)
    names = [f"movi_f/{SIZE}x{SIZE}/1.0.0/train/00000/{i}" for i in range(2)]
    assert [each.name for each in found] == names
    assert found[0].times == tuple(i / 12 for i in range(FRAMES))
    (one,) = DATASETS["movi_tfds"].open(root, only=(names[1],))
    assert one.name == names[1]


def test_they_are_scored_by_their_name(written: dict[str, Path]) -> None:
    found = PROTOCOLS["movi_tfds"].open(written["movi_f"].parent)
    assert [each.name for each in found] == ["train/00000/0", "train/00000/1"]
    assert {each.tasks for each in found} == {("pose", "video_depth", "depth", "points")}


def test_what_is_read_is_what_was_rendered(sequence: Sequence, request: pytest.FixtureRequest) -> None:
    known, wanted = movi.scene(), [3, 0]
    rendered = [movi.render(frame, sampled(SETS[request.node.callspec.params["sequence"]])) for frame in wanted]
    part = sequence.take(wanted)
    np.testing.assert_array_equal(part.images(), np.stack([each["image"] for each in rendered]))
    assert part.cameras is not None
    cameras = part.cameras()
    np.testing.assert_allclose(cameras.intrinsics[0].numpy(), [[70, 0, 32], [0, 70, 32], [0, 0, 1]], atol=1e-4)
    turn = cameras.world_from_camera[:, :3, :3].numpy() @ OPENGL[:3, :3]
    np.testing.assert_allclose(turn, known.turn[wanted], atol=1e-6)
    np.testing.assert_allclose(cameras.world_from_camera[:, :3, 3].numpy(), known.eye[wanted], atol=1e-6)
    assert part.depth is not None
    depth, valid = part.depth()
    assert valid.all()
    corners = movi.corners()
    at = sampled(SETS[request.node.callspec.params["sequence"]])
    for i, frame in enumerate(wanted):
        ahead = -known.rays(frame, corners + at) @ known.turn[frame][:, 2]
        np.testing.assert_allclose(depth[i].ravel(), rendered[i]["distance"].ravel() * ahead, atol=2e-4)
    assert part.masks is not None
    for mask, each in zip(part.masks(), rendered, strict=True):
        np.testing.assert_array_equal(mask, each["box"] == 1)  # the tumbling one


def test_tracks_are_where_the_scene_has_them(sequence: Sequence) -> None:
    """Each point is on the box that it is of, at every time, or stands still on floor or dome."""
    known, tracks = movi.scene(), tracks_of(sequence)
    assert tracks.known.all()
    assert len(tracks.points) > 1000
    path = np.linalg.norm(np.diff(tracks.points, axis=1), axis=-1).max(1)
    moved = path > 0.01
    assert 100 < moved.sum() < len(moved)
    start = known.fractions(0, tracks.points[:, 0], np.ones(len(moved), int))
    for frame in range(FRAMES):
        points = tracks.points[:, frame]
        inside = [known.fractions(frame, points, np.full(len(points), box)) for box in range(2)]
        on_box = [np.abs(np.abs(each - 0.5).max(-1) - 0.5) < 1e-3 for each in inside]
        on_floor = np.abs(points[:, 2]) < 2e-3
        on_dome = np.abs(np.linalg.norm(points, axis=-1) - movi.DOME) < 2e-3
        assert on_box[1][moved].all()
        assert (on_box[0] | on_floor | on_dome)[~moved].all()
        np.testing.assert_allclose(inside[1][moved], start[moved], atol=1e-4)


def test_tracks_are_visible_where_their_ray_meets_them_first(sequence: Sequence) -> None:
    """Cast in the scene itself; a point nearer to an edge than a pixel may be told either way."""
    known, tracks = movi.scene(), tracks_of(sequence)
    agree: list[np.ndarray] = []
    for frame in range(FRAMES):
        points = tracks.points[:, frame]
        way = points - known.eye[frame]
        distance = np.linalg.norm(way, axis=-1)
        local = way @ known.turn[frame]
        pixel = local[:, :2] / -local[:, 2:] * [70, -70] + SIZE / 2
        inside = (local[:, 2] < 0) & (pixel > 0).all(-1) & (pixel < SIZE).all(-1)
        truth = inside & (known.hits(frame, way / distance[:, None])[0] > distance * 0.999)
        assert truth.any()
        assert not truth.all()
        agree.append(truth == tracks.visible[:, frame])
        assert not (tracks.visible[:, frame] & ~inside).any()
        wrong = tracks.visible[:, frame] & ~truth
        assert wrong.mean() < 0.02
    assert np.mean(agree) > 0.97


def test_they_become_shards_after_the_check_of_the_import(written: dict[str, Path], tmp_path: Path) -> None:
    import_dataset(DATASETS["movi_tfds"], written["movi_f"].parent, tmp_path, only=("train/00000/0",))
    with ShardReader(tmp_path) as reader:
        clip = reader.read(0)
    assert clip.tracks is not None
    assert clip.tracks.visible.any(-1).all()
    assert clip.dynamic is not None
    assert 0.01 < clip.dynamic.mean() < 0.3


def test_damage_is_named(written: dict[str, Path], tmp_path: Path) -> None:
    whole, name = written["movi_a"].read_bytes(), written["movi_a"].name
    size = len(whole) // 2
    path = tmp_path / name

    def told(content: bytes, load: bool = False) -> str:
        path.write_bytes(content)
        listed = DATASETS["movi_tfds"].open(tmp_path) if load else []
        with pytest.raises(UserError, match=name) as caught:
            listed[1].images() if load else DATASETS["movi_tfds"].open(tmp_path)
        return str(caught.value)

    assert "record 1, at byte" in told(whole[:-3])
    assert "cut short" in told(whole[:-3])
    assert "damaged length" in told(whole[:size] + b"\1" + whole[size + 1 :])
    flipped = bytearray(whole)
    flipped[size + 500] ^= 4
    assert f"{name}, record 1 is damaged: its checksum" in told(bytes(flipped), load=True)
    assert "no tf.train.Example" in told(movi.framed(b"\xff\xff\xff"))
    assert "has no video" in told(movi.framed(movi.example({"label": np.array(3)})))
    (tmp_path / "dataset_info.json").write_text('{"splits": [{"name": "train", "shardLengths": ["2"]}]}')
    assert "has 1 records, by dataset_info.json it should have 2" in told(whole[:size])


@pytest.mark.parametrize(
    ("feature", "value", "words"),
    [
        ("metadata/width", np.array(60), "no variant of pictures of 512"),
        ("camera/positions", np.zeros((5, 3)), "no readable numbers camera/positions of 6 × 3"),
        ("instances/bboxes_3d", np.zeros((1, 6, 8, 3)), "shows object 2 and has 1 objects"),
        ("segmentations", [b"x"] * 6, "no readable picture as segmentations"),
        ("object_coordinates", [movi.png(np.zeros((64, 64), np.uint8))] * 6, "as object_coordinates"),
        (
            "object_coordinates",
            [movi.png_of_words(np.zeros((64, 64, 3), np.uint16))] * 6,
            "agree in [01]% of the objects",
        ),
    ],
)
def test_features_that_do_not_fit_are_named(
    feature: str, value: list[bytes] | np.ndarray, words: str, tmp_path: Path
) -> None:
    movi.write(tmp_path, records=1, changed={feature: value})
    (sequence,) = DATASETS["movi_tfds"].open(tmp_path)
    with pytest.raises(UserError, match=words):
        tracks_of(sequence)


def test_a_changed_file_is_read_again_and_noticed(written: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / written["movi_f"].name
    path.write_bytes(written["movi_f"].read_bytes())
    sequence = DATASETS["movi_tfds"].open(tmp_path)[0]
    sequence.images()
    before = fingerprint(sequence)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))
    assert fingerprint(sequence) != before
    with pytest.raises(UserError, match="is damaged"):
        sequence.images()


def test_one_record_is_in_memory(written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """When one is read, the last one has gone; while it is used, it is not read again."""
    sequences = DATASETS["movi_tfds"].open(written["movi_a"].parent)
    alive: weakref.WeakSet[tfrecord.Example] = weakref.WeakSet()
    counts: list[int] = []
    original = tfrecord.read

    def read(path: Path, place: tfrecord.Place, name: str) -> tfrecord.Example:
        counts.append(len(alive))
        example = original(path, place, name)
        alive.add(example)
        return example

    monkeypatch.setattr(tfrecord, "read", read)
    for index in (1, 0, 1):
        sequences[index].images()
        tracks_of(sequences[index])
    assert counts == [0, 0, 0]


def test_an_empty_root_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected layout"):
        DATASETS["movi_tfds"].open(tmp_path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_rfc_3720(data: bytes, expected: int) -> None:
    assert tfrecord.crc32c(data) == expected


@pytest.mark.parametrize("size", [131071, 131072, 140000, 393219])
def test_checksums_of_long_data_do_not_depend_on_how_they_are_computed(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert tfrecord.crc32c(data) == tfrecord.bytewise(data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def test_records_of_another_writer(tmp_path: Path) -> None:
    """TensorBoard's, which has its own checksums."""
    writers = pytest.importorskip("tensorboard.summary.writer.record_writer")
    contents = [movi.example({"a": np.arange(3), "b": np.array([0.5]), "c": [b"x", b"yz"]}), b"", b"z" * 200_000]
    with (tmp_path / "some").open("wb") as file:
        writer = writers.RecordWriter(file)
        for content in contents:
            writer.write(content)
        writer.flush()
        places = tfrecord.places(tmp_path / "some")
    assert [place.size for place in places] == [len(content) for content in contents]
    first = tfrecord.read(tmp_path / "some", places[0], "some")
    assert first.numbers("a", 3).tolist() == [0, 1, 2]
    assert first.numbers("b", 1).tolist() == [0.5]
    assert first.strings("c", [1, 0]) == [b"yz", b"x"]
    with pytest.raises(UserError, match="some has no readable numbers c"):
        first.numbers("c", 2)


def test_numbers_may_be_negative_and_lists_unpacked() -> None:
    example = tfrecord.Example(movi.example({"a": np.array([-1, 2**40])}), "some")
    assert example.numbers("a", 2).tolist() == [-1, 2**40]
    feature = b"\x1a\x04\x08\x03\x08\x07"
    entry = b"\x0a\x01a\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    unpacked = tfrecord.Example(b"\x0a" + bytes([len(features)]) + features, "some")
    assert unpacked.numbers("a", 2).tolist() == [3, 7]


def test_pictures_of_16_bits_a_channel_keep_all_of_them() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (11, 7, 3)).astype(np.uint16)
    data = movi.png_of_words(values)
    np.testing.assert_array_equal(png16(data), values)
    np.testing.assert_array_equal(png16(movi.png(values[..., 0]))[..., 0], values[..., 0])
    for damaged in (data[:-20], data[:60] + b"x" + data[61:], b"x", movi.png(np.zeros((2, 2), np.uint8))):
        with pytest.raises(ValueError, match=r"it|its|a chunk"):
            png16(damaged)
