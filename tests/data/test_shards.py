"""Shards: bytes that repeat, files that are whole or absent, errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import pickle
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from four_d import workers
from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.encoding import BadMemberError, decode_gzip, decode_info, decode_npy, encode_gzip, encode_npy
from four_d.data.shards import CorruptSample, ShardReader, finalise, load_manifest, shard_done, write_shard
from four_d.errors import UserError
from tests.helpers import box_clip, without_surface


@pytest.fixture(scope="module")
def clips() -> list[RawClip]:
    return [box_clip(seed, frames=4, cameras=2, size=(24, 32)) for seed in range(3)]


@pytest.fixture
def folder(tmp_path: Path, clips: list[RawClip]) -> Path:
    write_shard(tmp_path, 0, clips[:2])
    write_shard(tmp_path, 1, clips[2:])
    finalise(tmp_path, "boxes")
    return tmp_path


def assert_same(a: object, b: object, *, images: bool = True) -> None:
    """Every array of two clips is equal, bit for bit."""
    for field in dataclasses.fields(a):  # pyright: ignore[reportArgumentType]
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if field.name != "images" or images:
                assert x.dtype == y.dtype, field.name
                np.testing.assert_array_equal(x, y, err_msg=field.name)
        elif dataclasses.is_dataclass(x):
            assert_same(x, y)
        else:
            assert x == y, field.name


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


class TestRoundTrip:
    def test_what_is_written_comes_back(self, folder: Path, clips: list[RawClip]) -> None:
        with ShardReader(load_manifest(folder)) as reader:
            assert len(reader) == 3
            for number, clip in enumerate(clips):
                back = reader.read(number)
                assert_same(clip, back, images=False)
                error = np.abs(clip.images.astype(int) - back.images.astype(int))
                assert error.mean() < 3  # JPEG

    def test_lossless_images_are_exact(self, tmp_path: Path, clips: list[RawClip]) -> None:
        write_shard(tmp_path, 0, clips[:1], lossless=True)
        finalise(tmp_path, "boxes")
        assert_same(clips[0], ShardReader(tmp_path).read(0))

    def test_sources_without_a_surface(self, tmp_path: Path, clips: list[RawClip]) -> None:
        clip = without_surface(clips[0])
        write_shard(tmp_path, 0, [clip], lossless=True)
        finalise(tmp_path, "boxes")
        back = ShardReader(tmp_path).read(0)
        assert clip.depth is not None
        assert back.depth is not None
        assert np.abs(clip.depth - back.depth).max() <= 0.0005 + 1e-6
        assert_same(dataclasses.replace(clip, depth=None), dataclasses.replace(back, depth=None))

    def test_only_images_and_info_are_obligatory(self, tmp_path: Path, clips: list[RawClip]) -> None:
        info = dataclasses.replace(clips[0].info, surface_times=None)
        bare = RawClip(key="bare", info=info, images=clips[0].images)
        write_shard(tmp_path, 0, [bare], lossless=True)
        manifest = finalise(tmp_path, "bare")
        assert manifest.modalities == []
        assert_same(bare, ShardReader(tmp_path).read(0))

    def test_frames_in_any_order(self, folder: Path) -> None:
        reader = ShardReader(folder)
        whole = reader.read(1)
        part = reader.read(1, [7, 2, 2])
        assert part.info.times == [whole.info.times[i] for i in (7, 2, 2)]
        assert part.info.camera_ids == [1, 0, 0]
        np.testing.assert_array_equal(part.images, whole.images[[7, 2, 2]])
        assert part.surface is not None
        assert whole.surface is not None
        np.testing.assert_array_equal(part.surface.faces, whole.surface.faces[[7, 2, 2]])

    def test_the_surface_comes_at_the_frames_times_and_beside_them(self, folder: Path) -> None:
        reader = ShardReader(folder)
        whole, part = reader.read(0), reader.read(0, [4])  # second camera, first time
        assert whole.info.surface_times is not None
        assert part.info.surface_times == whole.info.surface_times[:2]
        assert whole.surface is not None
        assert part.surface is not None
        np.testing.assert_array_equal(part.surface.moving_vertices, whole.surface.moving_vertices[:2])

    def test_a_frame_that_does_not_exist(self, folder: Path) -> None:
        with pytest.raises(IndexError, match="frames 0 to 7"):
            ShardReader(folder).read(0, [8])

    def test_the_same_clips_give_the_same_bytes(self, tmp_path: Path, clips: list[RawClip]) -> None:
        for name in "ab":
            write_shard(tmp_path / name, 0, clips)
            finalise(tmp_path / name, "boxes")
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name

    def test_webdataset_itself_reads_them(self, folder: Path, clips: list[RawClip]) -> None:
        import webdataset

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # its tar iterators leave their files to the collector
            samples = list(webdataset.WebDataset(str(folder / "shard-000000.tar"), shardshuffle=False))
            gc.collect()
        assert [sample["__key__"] for sample in samples] == [clip.key for clip in clips[:2]]
        assert json.loads(samples[0]["clip.json"])["times"] == clips[0].info.times
        assert {"f007.image.jpg", "f000.faces.npy.gz", "cameras.npy"} <= samples[0].keys()

    def test_manifest_counts(self, folder: Path) -> None:
        manifest = load_manifest(folder / "manifest.json")
        assert (manifest.clips, manifest.frames, manifest.sources["box"].clips) == (3, 24, 3)
        assert manifest.modalities == ["cameras", "surface"]
        assert manifest.units == {"length": "metre", "time": "second"}
        assert manifest.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
        assert manifest == dataclasses.replace(finalise(folder, "boxes"))


class TestProcesses:
    def test_a_reader_travels_by_pickle(self, folder: Path) -> None:
        reader = ShardReader(folder)
        reader.read(0, [0])
        assert_same(reader.read(2), pickle.loads(pickle.dumps(reader)).read(2))

    def test_a_reader_that_was_used_goes_to_other_processes(self, folder: Path) -> None:
        reader = ShardReader(folder)
        expected = [int(reader.read(i).images.sum()) for i in (0, 1, 2)]
        with workers.context().Pool(2) as pool:
            assert pool.map(_Sum(reader), [0, 1, 2, 0, 1, 2]) == expected * 2
            pool.close()  # leaving the block sends SIGTERM, which these workers hold back
            pool.join()

    def test_files_stay_few(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("four_d.data.shards.OPEN_FILES", 1)
        reader = ShardReader(folder)
        for index in (0, 2, 0, 2):
            reader.read(index, [0])
        assert len(reader._files) == 1

    def test_an_error_travels_by_pickle(self) -> None:
        error = pickle.loads(pickle.dumps(CorruptSample("shard-000000.tar", "k", "clip.json", "is bad")))
        assert (error.key, error.reason) == ("k", "is bad")


class _Sum:
    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __call__(self, index: int) -> int:
        return int(self.reader.read(index).images.sum())


class TestWriting:
    def test_a_finished_shard_is_not_made_again(self, folder: Path, clips: list[RawClip]) -> None:
        def never() -> Iterator[RawClip]:
            raise AssertionError("asked for a clip")
            yield clips[0]

        before = (folder / "shard-000000.tar").stat().st_mtime_ns
        assert shard_done(folder, 0)
        write_shard(folder, 0, never())
        assert (folder / "shard-000000.tar").stat().st_mtime_ns == before

    def test_a_failure_leaves_nothing(self, tmp_path: Path, clips: list[RawClip]) -> None:
        def failing() -> Iterator[RawClip]:
            yield clips[0]
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            write_shard(tmp_path, 0, failing())
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk(self, tmp_path: Path, clips: list[RawClip], monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left"):
            write_shard(tmp_path, 0, clips)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be(self, tmp_path: Path, clips: list[RawClip]) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot write"):
            write_shard(tmp_path / "file", 0, clips)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"key": "a.b"}, "key 'a.b'"),
            ({"images": np.zeros((8, 24, 31, 3), np.uint8)}, "images is"),
            ({"intrinsics": None}, "comes with intrinsics"),
            ({"depth": np.zeros((8, 24, 32), np.float32)}, "derived where there is a surface"),
        ],
    )
    def test_a_clip_that_breaks_the_layout(
        self, tmp_path: Path, clips: list[RawClip], change: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            write_shard(tmp_path, 0, [dataclasses.replace(clips[0], **change)])  # pyright: ignore[reportArgumentType]
        assert list(tmp_path.iterdir()) == []

    def test_frames_out_of_order(self, tmp_path: Path, clips: list[RawClip]) -> None:
        info = dataclasses.replace(clips[0].info, times=clips[0].info.times[::-1])
        with pytest.raises(ValueError, match="out of order"):
            write_shard(tmp_path, 0, [dataclasses.replace(clips[0], info=info)])

    def test_two_clips_of_one_key(self, tmp_path: Path, clips: list[RawClip]) -> None:
        with pytest.raises(ValueError, match="two clips have the key"):
            write_shard(tmp_path, 0, [clips[0], clips[0]])

    def test_skew_is_refused(self, tmp_path: Path, clips: list[RawClip]) -> None:
        assert clips[0].intrinsics is not None
        skewed = clips[0].intrinsics.copy()
        skewed[:, 0, 1] = 1.0
        with pytest.raises(ValueError, match="skew"):
            write_shard(tmp_path, 0, [dataclasses.replace(clips[0], intrinsics=skewed)])


class TestFinalise:
    def test_holes_are_named(self, tmp_path: Path, clips: list[RawClip]) -> None:
        for index in (0, 2, 5):
            write_shard(tmp_path, index, [dataclasses.replace(clips[0], key=f"k{index}")])
        with pytest.raises(UserError, match="shards 1, 3, 4 are missing"):
            finalise(tmp_path, "boxes")
        assert not (tmp_path / "manifest.json").exists()

    def test_an_unfinished_last_shard(self, tmp_path: Path, clips: list[RawClip]) -> None:
        write_shard(tmp_path, 0, clips)
        (tmp_path / "shard-000001.tar").touch()
        with pytest.raises(UserError, match="shards 1 are missing or unfinished"):
            finalise(tmp_path, "boxes")

    def test_the_same_key_in_two_shards(self, tmp_path: Path, clips: list[RawClip]) -> None:
        write_shard(tmp_path, 0, clips)
        write_shard(tmp_path, 1, clips[:1])
        with pytest.raises(UserError, match="box-000000 is in both"):
            finalise(tmp_path, "boxes")

    def test_two_licences_of_one_source(self, tmp_path: Path, clips: list[RawClip]) -> None:
        write_shard(tmp_path, 0, clips[:1])
        write_shard(
            tmp_path, 1, [dataclasses.replace(clips[1], info=dataclasses.replace(clips[1].info, licence="other"))]
        )
        with pytest.raises(UserError, match="more than one licence"):
            finalise(tmp_path, "boxes")

    @pytest.mark.parametrize("make", [False, True])
    def test_nothing_there(self, tmp_path: Path, make: bool) -> None:
        folder = tmp_path / "x"
        if make:
            folder.mkdir()
        with pytest.raises(UserError, match=r"no such folder|no finished shards"):
            finalise(folder, "x")


class TestBadInput:
    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"manifest.json: cannot read"):
            load_manifest(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "not a JSON object"),
            ('{"version": 9}', "layout version 9"),
            ('{"version": 1}', "lacks 'shards'"),
            ('{"version": 1, "shards": 3}', "is not a list"),
            (
                '{"version":1,"shards":[{"shard":"../x.tar","sidecar":"x.json","clips":1,"bytes":1,"sha256":""}]}',
                "plain file name",
            ),
        ],
    )
    def test_a_broken_manifest(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=message):
            load_manifest(tmp_path)

    def test_a_missing_shard(self, folder: Path) -> None:
        (folder / "shard-000001.tar").unlink()
        with pytest.raises(UserError, match=r"shard-000001.tar: shard is missing"):
            ShardReader(folder)

    def test_a_truncated_shard(self, folder: Path) -> None:
        path = folder / "shard-000001.tar"
        path.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(UserError, match=r"shard-000001.tar: truncated"):
            ShardReader(folder)

    def test_a_shard_truncated_while_it_is_read(self, folder: Path) -> None:
        reader = ShardReader(folder)
        path = folder / "shard-000001.tar"
        path.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(CorruptSample, match="truncated"):
            reader.read(2)
        reader.read(0)

    def test_a_sidecar_of_another_shard(self, folder: Path) -> None:
        (folder / "shard-000001.json").write_bytes((folder / "shard-000000.json").read_bytes())
        with pytest.raises(UserError, match=r"differs from manifest.json"):
            ShardReader(folder)

    @pytest.mark.parametrize("member", ["clip.json", "f003.image.jpg", "f001.faces.npy.gz", "cameras.npy"])
    def test_changed_bytes_are_named(self, folder: Path, member: str) -> None:
        reader = ShardReader(folder)
        offset, size, _ = reader.samples[1].members[member]
        damage(folder / "shard-000000.tar", offset + size // 2, b"\xff\x00\xff")
        with pytest.raises(CorruptSample) as caught:
            reader.read(1)
        assert (caught.value.shard, caught.value.key, caught.value.member) == (
            "shard-000000.tar",
            "box-000001",
            member,
        )
        assert len(str(caught.value).splitlines()) <= 2
        reader.read(0)

    def test_a_missing_member(self, folder: Path) -> None:
        reader = ShardReader(folder)
        members = dict(reader.samples[0].members)
        del members["f002.barycentric.npy.gz"]
        reader.samples[0] = dataclasses.replace(reader.samples[0], members=members)
        with pytest.raises(CorruptSample, match=r"f002.barycentric.npy.gz: is missing"):
            reader.read(0)
        reader.read(0, [0, 1])

    def test_an_unknown_key(self, folder: Path) -> None:
        assert ShardReader(folder).index("box-000002") == 2
        with pytest.raises(UserError, match="no clip 'nobody'"):
            ShardReader(folder).index("nobody")


class TestDecoders:
    def test_pickles_are_refused(self) -> None:
        import io

        stream = io.BytesIO()
        np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(BadMemberError, match="not a plain"):
            decode_npy(stream.getvalue(), "<f4", (None,))

    @pytest.mark.parametrize("shape", [(0,), (5,), (2, 3), (2, 0, 3)])
    @pytest.mark.parametrize("dtype", ["<f4", "<i4", "|b1", "<u2", "<f8"])
    def test_arrays_of_any_shape(self, dtype: str, shape: tuple[int, ...]) -> None:
        value = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
        np.testing.assert_array_equal(decode_npy(encode_npy(value), dtype, shape), value)

    def test_wrong_shapes_and_sizes(self) -> None:
        data = encode_npy(np.zeros((2, 3), np.float32))
        for dtype, shape in (("<f4", (3, 3)), ("<f8", (2, 3)), ("<f4", (2,))):
            with pytest.raises(BadMemberError, match="not"):
                decode_npy(data, dtype, shape)
        with pytest.raises(BadMemberError, match="bytes of data"):
            decode_npy(data[:-1], "<f4", (2, 3))

    def test_a_gzip_bomb_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("four_d.data.encoding.MAX_BYTES", 10**5)
        with pytest.raises(BadMemberError, match=r"decodes to \d+ bytes; at most 100000 are read"):
            decode_gzip(encode_gzip(encode_npy(np.zeros(10**6, np.uint8))))
        with pytest.raises(BadMemberError, match=r"decodes to more than the \d+ bytes that its header says"):
            decode_gzip(encode_gzip(encode_npy(np.zeros(4, np.uint8)) + bytes(10**6)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"times": ["a"]}, "finite number"),
            ({"width": "4"}, "not an integer"),
            ({"width": 10**400}, "not an integer of 64 bits"),
            ({"height": 0}, "not 1 to"),
            ({"width": 2**27}, "not 1 to"),
            ({"camera_ids": [10**30]}, "not an integer of 64 bits"),
            ({"colour": 1}, "'colour'"),
            ({"times": [float("nan")]}, "finite number"),
            ({"version": 2}, "layout version 2"),
            ({"objects": 3}, "not a list"),
        ],
    )
    def test_clip_json(self, clips: list[RawClip], change: dict[str, object], message: str) -> None:
        content = dataclasses.asdict(clips[0].info) | change
        with pytest.raises(BadMemberError, match=message):
            decode_info(json.dumps(content).encode())

    def test_clip_json_without_times(self, clips: list[RawClip]) -> None:
        content = dataclasses.asdict(clips[0].info)
        del content["times"]
        with pytest.raises(BadMemberError, match="'times'"):
            decode_info(json.dumps(content).encode())


class TestDocs:
    def test_the_page_s_example_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With arrays as its comment says, once and again: then the shard is there, and that is said."""
        page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
        code = next(part.split("```")[0] for part in page.split("```python\n")[1:] if "write_shard(" in part)
        comment = next(line.split("#")[1] for line in code.splitlines() if "my_videos()" in line)
        kinds = [np.dtype(word) for word in re.findall(r"u?int\d+|float\d+", comment)]
        assert len(kinds) == 3
        images = np.full((2, 32, 48, 3), 90, kinds[0])
        poses = np.broadcast_to(np.eye(4, dtype=kinds[1]), (2, 4, 4))
        intrinsics = np.broadcast_to(np.array([[40, 0, 24], [0, 40, 16], [0, 0, 1]], kinds[1]), (2, 3, 3))
        depth = np.full((2, 32, 48), 3, kinds[2])
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            exec(code, {"my_videos": lambda: [("mine", images, poses, intrinsics, depth)]})
        assert "shard-000000.tar already exists and is kept" in capsys.readouterr().err
        assert check(tmp_path / "my_data", shown=False).ok


class TestOthersFiles:
    def test_a_manifest_of_other_software_stays(self, tmp_path: Path, clips: list[RawClip]) -> None:
        (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
        with pytest.raises(UserError, match="not a manifest that four_d wrote"):
            write_shard(tmp_path, 0, clips[:1])
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]

    def test_a_tar_of_other_software_stays_and_one_cut_off_is_written_again(
        self, tmp_path: Path, clips: list[RawClip]
    ) -> None:
        tar = tmp_path / "shard-000000.tar"
        with tarfile.open(tar, "w") as file:
            file.addfile(tarfile.TarInfo("photo.jpg"))
        for held in (tar.read_bytes(), b"something else"):
            tar.write_bytes(held)
            with pytest.raises(UserError, match="not a shard that four_d wrote"):
                write_shard(tmp_path, 0, clips[:1])
            assert tar.read_bytes() == held
        tar.unlink()
        write_shard(tmp_path, 0, clips[:1]).unlink()
        write_shard(tmp_path, 0, clips[:1])
