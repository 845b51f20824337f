"""An import that goes on says so if its source has changed since, whichever file it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.fingerprint import fingerprint
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.data_prep.test_import_datasets import WRITERS
from tests.data_prep.test_import_own import colmap, transforms
from tests.protocols import built, tracked, written

SOURCES: dict[str, Callable[[Path], object]] = {
    **built.SETS,
    **WRITERS,
    "worldtrack": tracked.worldtrack,
    "folder": written.folder,
    "colmap": lambda root: colmap(root, [f"{i:03d}.png" for i in range(4)]),
    "nerfstudio": transforms,
}
UNREAD = ("00009_1", "invalid_files", "TestSplit", "1_00000", "1341846313.633200")
"""Stems of files that choose what is read, or are of what is not."""


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_that_is_read_counts(name: str, tmp_path: Path) -> None:
    if name in ("spring", "cut3r_waymo"):
        pytest.importorskip("h5py")
    SOURCES[name](tmp_path)
    dataset = DATASETS[name]
    before = [fingerprint(sequence) for sequence in dataset.open(tmp_path)]
    assert before == [fingerprint(sequence) for sequence in dataset.open(tmp_path)]
    alike: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(each for each in tmp_path.rglob("*") if each.is_file() and each.stem not in UNREAD):
        alike.setdefault((path.parent, path.suffix), []).append(path)
    for path in [path for paths in alike.values() for path in dict.fromkeys((paths[0], paths[-1]))]:
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n")
        assert [fingerprint(sequence) for sequence in dataset.open(tmp_path)] != before, path
        path.write_bytes(whole)


def test_a_source_that_moved_is_the_same(tmp_path: Path) -> None:
    written.folder(tmp_path / "a" / "mine")
    written.folder(tmp_path / "b" / "mine")
    one, other = (DATASETS["folder"].open(tmp_path / place)[0] for place in ("a", "b"))
    assert fingerprint(one) == fingerprint(other)


def test_going_on_with_a_changed_source_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    tracked.worldtrack(source)
    dataset = DATASETS["worldtrack"]
    import_dataset(dataset, source, out, clips_per_shard=2)
    import_dataset(dataset, source, out, clips_per_shard=2)
    (changed,) = (source / "po_mini").glob("*.npz")
    changed.write_bytes(changed.read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"was made before po_mini/.* \(images, frame 0 and on\) was changed"):
        import_dataset(dataset, source, out, clips_per_shard=2)
