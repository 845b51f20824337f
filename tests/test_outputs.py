"""Whatever is written appears whole or not at all, never over an input, and replaces only what four_d wrote."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from four_d import cli
from four_d.checkpoints import ModelInfo, write_info
from four_d.data.shards import finalise, write_shard
from four_d.errors import UserError
from four_d.outputs import check_json, keep_apart, new_file, new_folder, write_json, write_whole
from tests.helpers import box_clip
from tests.test_export import TINY, tiny_model, write_run

Capture = pytest.CaptureFixture[str]


def content(folder: Path) -> dict[str, bytes]:
    """All files under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# folders


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out, "test") as folder:
        (folder / "file").write_text("1")
        assert not out.exists()
    assert (out / "file").read_text() == "1"
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def make(out: Path, kind: str = "test", *, overwrite: bool = False, text: str = "1") -> None:
    with new_folder(out, kind, overwrite=overwrite) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(text)


def test_new_folder_replaces_its_like(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").touch()  # of a file manager
    with new_folder(tmp_path / "out", "test") as folder:
        (folder / "other").write_text("2")
    assert set(content(tmp_path / "out")) == {".four_d.json", "other"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "below/thesis.txt", "new/thesis.txt", ".hidden"])
def test_a_file_of_the_users_is_never_removed(tmp_path: Path, name: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    make(out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("precious")
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"out holds {name}, which four_d did not write"):
        make(out, overwrite=overwrite)
    (out / ".four_d.json").unlink()
    with pytest.raises(UserError, match="which four_d did not write"):
        make(out, overwrite=overwrite)
    assert content(tmp_path) == {name: held for name, held in before.items() if not name.endswith(".four_d.json")}


def test_overwrite_replaces_other_results_and_changed_ones(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "other")
    with pytest.raises(UserError, match=r"earlier other, no test; .* --overwrite"):
        make(out)
    make(out, overwrite=True)
    (out / "below" / "file").write_text("edited by hand")
    with pytest.raises(UserError, match="below/file was changed since four_d wrote it"):
        make(out)
    make(out, overwrite=True, text="3")
    assert (out / "below" / "file").read_text() == "3"


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there", target_is_directory=True)
    for text in ("1", "2"):
        make(tmp_path / "link", text=text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "below" / "file").read_text() == "2"
    assert {p.name for p in tmp_path.iterdir()} == {"link", "there"}


def test_links_in_a_circle_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for out in (tmp_path / "circle", tmp_path / "circle" / "out"):
        with pytest.raises(UserError, match=r"cannot write .*circle"):
            make(out)
    with pytest.raises(UserError, match=r"cannot write .*circle"):
        write_whole(tmp_path / "circle" / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["circle"]


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make(Path())
    assert (tmp_path / "here" / "below" / "file").is_file()


def write_half(out: Path) -> None:
    with new_folder(out, "test") as folder:
        (folder / "file").write_text("2")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_failure_leaves_nothing_behind_and_the_old_in_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
        write_half(out)
    with pytest.raises(ZeroDivisionError), new_folder(out, "test"):
        _ = 1 / 0
    with pytest.raises(FileNotFoundError, match="input"), new_folder(out, "test"):  # no word of writing
        (tmp_path / "input").read_text()
    assert content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"), new_folder(out, "test"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("place", ["in the work", "in the swap"])
def test_a_signal_leaves_the_former_state(tmp_path: Path, number: signal.Signals, place: str) -> None:
    make(tmp_path / "out")
    before = content(tmp_path)
    code = f"""
import os, signal as signals, sys
from pathlib import Path
from four_d.outputs import new_folder, new_file
signals.signal(signals.SIGHUP, signals.SIG_DFL)  # under nohup, or in the background, they would be ignored
signals.signal(signals.SIGINT, signals.default_int_handler)
from four_d.stopping import stopping_cleanly
signal = lambda: os.kill(os.getpid(), {int(number)})
if {place == "in the swap"}:
    rename, seen = Path.rename, []
    def interrupted(self, target):
        seen.append(rename(self, target))
        if len(seen) == 1:
            signal()
    Path.rename = interrupted
with stopping_cleanly(), new_folder(Path("out"), "test") as folder, new_file(Path("figures.json")) as file:
    (folder / "file").write_text("2")
    file.write_text("3")
    if {place == "in the work"}:
        signal()
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == (-number if number == signal.SIGINT else 128 + number), ended.stderr
    after = {name: held for name, held in content(tmp_path).items() if name != "figures.json"}
    assert after == before
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "figures.json"}


# files


def test_a_file_appears_whole(tmp_path: Path) -> None:
    file = tmp_path / "a" / "file.txt"
    write_whole(file, "1")
    with pytest.raises(ZeroDivisionError), new_file(file) as partial:
        _ = partial.write_text("2") / 0
    assert content(tmp_path) == {"a/file.txt": b"1"}
    (tmp_path / "link").symlink_to(file)
    write_whole(tmp_path / "link", "3")
    assert (tmp_path / "link").is_symlink()
    assert file.read_text() == "3"
    with pytest.raises(UserError, match="is a folder"):
        write_whole(tmp_path / "a", "4")
    with pytest.raises(UserError, match="no ordinary file"):
        write_whole(Path(os.devnull), "5")


def test_figures_go_over_figures_only(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    check_json(file, "digest")
    for _ in range(2):
        write_json(file, {"digest": 1})
        check_json(file, "digest")
    for text in ("my notes", '{"name": "package.json"}', "[]"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"figures\.json is there and was not written by this command"):
            check_json(file, "digest")
    with pytest.raises(UserError, match="is a folder"):
        check_json(tmp_path, "digest")


# apart from the inputs


@pytest.mark.parametrize(
    "out",
    ["photos", "photos/", "photos/below/new", ".", "link", "link/new", "other/../photos", "other/up/photos/new"],
)
def test_what_is_an_input_holds_one_or_lies_in_one(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "other" / "up").symlink_to("..", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for given in ("photos", "link", tmp_path / "photos", "other/../photos"):
        with pytest.raises(UserError, match="choose another place for the output"):
            keep_apart(Path(out), [None, given])
    keep_apart(Path("other"), ["photos"])
    keep_apart(Path("photos2"), ["photos", "not there"])
    (tmp_path / "photos" / "clip").touch()
    keep_apart(Path("photos/seen"), ["photos/clip"])
    os.link("photos/clip", "other/same")
    with pytest.raises(UserError, match="is an input"):
        keep_apart(Path("other/same"), ["photos/clip"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that is read: photos, masks, depth, shards, a run, an export, scores."""
    root = tmp_path_factory.mktemp("made")
    for name in ("photos", "masks", "depth"):
        (root / name).mkdir()
        for index in range(2):
            Image.new("L" if name != "photos" else "RGB", (48, 32), 255).save(root / name / f"{index}.png")
    write_shard(root / "data", 0, [box_clip(0, frames=3, cameras=2, size=32)])
    finalise(root / "data", "boxes")
    write_run(root / "run", tiny_model())
    (root / "scores.json").write_text('{"summary": {"ate": 0.125}}')
    assert cli.main(["export", str(root / "run"), "--out", str(root / "model"), "--format", "safetensors"]) == 0
    (root / "notes").mkdir()
    (root / "notes" / "notes.txt").write_text("mine")
    return root


TRAIN = "train vggt overlays/tiny overlays/debug data.sources.mine.path=data loop.max_steps=1"
INFER = "infer photos --model model --overwrite"
CONVERT = "weights convert vggt model/model.safetensors"


@pytest.mark.parametrize(
    "command",
    [
        f"{INFER} --out photos",
        f"{INFER} --out photos/seen",
        f"{INFER} --out .",
        f"{INFER} --out notes/../photos",
        f"{INFER} --out model",
        f"{INFER} --out model/seen",
        f"{INFER} --out masks --mask masks",
        f"{INFER} --out masks --mask masks/0.png",
        f"{INFER} --out depth --depth depth --depth-unit 0.001",
        f"{INFER} --out run --cameras run/checkpoints/cameras.json",
        f"{INFER} --out notes",
        f"{INFER} --out run",
        "export run --out run --overwrite",
        "export run --out run/model --overwrite",
        "export run/checkpoints/last.ckpt --out run/checkpoints --overwrite",
        "export model --out model --overwrite",
        "export run --out notes --overwrite",
        "export run --out notes --scores notes/notes.txt --overwrite",
        "eval model data=data frames=2 --json data/manifest.json",
        "eval model data=data frames=2 --json data/new.json",
        "eval model data=data frames=2 --json model/config.json",
        "eval model data=data frames=2 --json notes/notes.txt",
        "eval model protocol=davis16 root=photos --json photos/new.json",
        "data stats data --json data/manifest.json",
        "data stats data --json data/new.json",
        "data stats data --json notes/notes.txt",
        "data show data --out data",
        f"{CONVERT} model --overwrite",
        f"{CONVERT} notes --overwrite",
        "weights convert vggt model model/model.safetensors --reverse --overwrite",
        "weights convert vggt model notes/theirs.safetensors --reverse --overwrite",
        f"{TRAIN} folder=. name=data",
        f"{TRAIN} folder=data name=run",
        f"{TRAIN} folder=. name=run weights.path=run/checkpoints/last.ckpt",
        f"{TRAIN} folder=. name=begun",
        "data make photos",
    ],
)
def test_no_verb_writes_over_what_is_not_its_own(
    made: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(made)
    (made / "notes" / "theirs.safetensors").write_bytes((made / "model" / "model.safetensors").read_bytes()[:100])
    (made / "begun").mkdir(exist_ok=True)
    (made / "begun" / "config.yaml").write_text("# written by hand")
    (made / "photos" / "manifest.json").write_text('{"name": "of a web page"}')
    before = content(made)
    assert cli.main(command.split()) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("four-d: ")]
    assert len(told) == 1
    assert content(made) == before


def test_a_result_may_lie_beside_a_video(made: Path, tmp_path: Path) -> None:
    """A file's neighbours are no input, and an earlier result is replaced."""
    (tmp_path / "0.png").write_bytes((made / "photos" / "0.png").read_bytes())
    arguments = ["infer", str(made / "photos"), "--model", str(made / "model"), "--mask", str(tmp_path / "0.png")]
    for _ in range(2):
        assert cli.main([*arguments[:-2], "--out", str(tmp_path / "seen"), "--no-tracks"]) == 0
    assert (tmp_path / "seen" / "cameras.json").is_file()


def test_errors_that_need_no_model_come_before_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(made)
    (tmp_path / "model").mkdir()
    write_info(tmp_path / "model" / "config.json", ModelInfo(model=TINY, image_size=(32, 48), frames=8))
    model = f"--model {tmp_path / 'model'}"  # which has no weights: whoever reads it complains of that
    infer = f"infer photos {model} --out {tmp_path / 'out'}"
    for command, message in {
        f"infer nowhere {model} --out {tmp_path / 'out'}": "nowhere does not exist",
        f"infer notes {model} --out {tmp_path / 'out'}": "holds no images",
        f"infer photos {model} --out notes": "holds notes.txt",
        f"{infer} --mask nowhere": "nowhere does not exist",
        f"{infer} --depth nowhere": "nowhere does not exist",
        f"{infer} --cameras nowhere": "nowhere",
        f"{infer} --max-frames 0": "max_frames is 0",
        f"{infer} --start 9": "choose an earlier start",
        f"{infer} --window 1": "window is 1",
        f"{infer} --window 4 --overlap 4": "overlap is 4",
        f"{infer} --overlap 0": "overlap is 0",
        f"{infer} --device tpu9": "tpu9",
        f"{infer} --no-tracks --points 1,1": "leave one of the two out",
        f"{infer} --intrinsics 1,1,1,1 2,2,2,2": "there are 2 intrinsics",
        f"eval {tmp_path / 'model'} data=nowhere frames=2": "nowhere",
        f"eval {tmp_path / 'model'} data=data frames=2 device=tpu9": "tpu9",
        f"eval {tmp_path / 'model'} protocol=davis16 root=nowhere": "root is nowhere",
        f"export {tmp_path / 'model'} --out notes": "holds notes.txt",
        f"weights convert vggt {tmp_path / 'model'} notes": "holds notes.txt",
    }.items():
        assert cli.main(command.split()) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_marker_lists_files(tmp_path: Path) -> None:
    make(tmp_path / "out")
    assert json.loads((tmp_path / "out" / ".four_d.json").read_text()) == {"kind": "test", "files": {"below/file": 1}}
