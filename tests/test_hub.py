"""Models go to a stub of the hub's HTTP endpoint on loopback and come back; every refusal names its remedy."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import four_d
from four_d import checkpoints, cli, exporting, hub
from four_d.errors import UserError
from four_d.exporting import export
from tests.test_export import tiny_model, write_run

client = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"


class Hub:
    """Content of a hub of one user, ``org``; what it was asked for, and how it refuses."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuses: int | None = None
        """Status of every answer."""
        self.address = ""

    def create(self, said: dict[str, Any]) -> tuple[int, object]:
        name = f"{said['organization']}/{said['name']}"
        if name in self.models:
            return 409, {"error": "exists", "url": f"{self.address}/{name}"}
        self.models[name], self.private[name] = {}, said.get("visibility") == "private" or bool(said.get("private"))
        return 200, {"url": f"{self.address}/{name}"}

    def commit(self, name: str, body: bytes) -> tuple[int, object]:
        for line in body.decode().splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                self.models[name][said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}"}

    def post(self, path: str, body: bytes) -> tuple[int, object]:
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name, _, action = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if action == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return 200, {"files": [{**each, "shouldIgnore": False} for each in files]}
        return self.commit(name, body)

    def get(self, path: str) -> tuple[int, object]:
        """JSON, or the bytes of a file."""
        parts = path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        files = self.models.get("/".join(parts[:2]))
        if files is None:
            return 404, {"error": "Repository not found"}
        if parts[2] == "resolve":
            return 200, files["/".join(parts[4:])]
        if parts[2] == "tree":
            listed = [(each, len(content), hashlib.sha1(content).hexdigest()) for each, content in files.items()]
            return 200, [{"type": "file", "path": path, "size": size, "oid": oid} for path, size, oid in listed]
        return 200, {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": []}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """A hub on loopback that the client asks, with a token, in an empty folder with an empty cache."""
    there = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, content: object) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            there.asked.append(self.path)
            self.answer(*((there.refuses, {}) if there.refuses else there.get(self.path)))

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            there.asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
                return
            self.answer(*((there.refuses, {}) if there.refuses else there.post(self.path, body)))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    there.address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", there.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield there
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_model())


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("models") / "tiny", formats=["safetensors"])


def test_a_model_goes_to_the_hub_and_comes_back_the_same(
    server: Hub, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", str(exported), "org/tiny", "--private", "--licence", "cc-by-4.0"]) == 0
    assert capsys.readouterr().out == f"{server.address}/org/tiny\n"
    assert server.private == {"org/tiny": True}
    assert set(server.models["org/tiny"]) == {
        checkpoints.WEIGHTS,
        checkpoints.CONFIG,
        checkpoints.CARD,
        exporting.NOTE,
    }
    model = four_d.load("org/tiny")
    assert "org/tiny is no folder here: taken from the hub, commit 0123456789ab" in capsys.readouterr().err
    for name, value in four_d.load(exported).model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], value, rtol=0, atol=0)
    assert cli.main(["push", str(exported), "org/tiny", "--licence", "mit"]) == 0  # once more, in place


def test_infer_takes_it_by_name(server: Hub, exported: Path) -> None:
    exporting.push(exported, "org/tiny", licence="mit")
    Path("frames").mkdir()
    for index in range(2):
        Image.new("RGB", (48, 32), (90 * index, 60, 30)).save(f"frames/{index}.png")
    assert cli.main(["infer", "frames", "--model", "org/tiny", "--out", "seen", "--device", "cpu"]) == 0
    assert Path("seen/cameras.json").is_file()


def test_the_card_there_has_the_licence_and_loads_by_name(server: Hub, exported: Path) -> None:
    exporting.push(exported, "org/tiny", licence="apache-2.0")
    card = server.models["org/tiny"][checkpoints.CARD].decode()
    assert card.startswith("---\nlibrary_name: four_d\nlicense: apache-2.0\ntags: ")
    assert 'four_d.load("org/tiny")' in card
    assert "## Licence" in card
    assert "path/to/this/folder" in (exported / checkpoints.CARD).read_text()  # as it was


def test_a_run_is_exported_on_the_way(server: Hub, run: Path) -> None:
    exporting.push(run, "org/of-run", licence="mit")
    assert four_d.load("org/of-run").info.steps == 7


@pytest.mark.parametrize(
    ("trained_on", "licence"),
    [
        ({"a": "CC0-1.0", "b": "CC0-1.0 (from home)"}, "cc0-1.0"),
        ({"a": "CC0-1.0", "b": "CC BY-NC 4.0"}, "other"),
        ({"a": "of my own"}, "other"),
    ],
)
def test_the_licence_is_that_of_all_data(
    server: Hub, exported: Path, tmp_path: Path, trained_on: dict[str, str], licence: str
) -> None:
    for name in (checkpoints.WEIGHTS, checkpoints.CARD, checkpoints.CONFIG):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    info = json.loads((tmp_path / checkpoints.CONFIG).read_text())
    (tmp_path / checkpoints.CONFIG).write_text(json.dumps({**info, "trained_on": trained_on}))
    exporting.push(tmp_path, "org/tiny")
    card = server.models["org/tiny"][checkpoints.CARD].decode()
    assert f"\nlicense: {licence}\n" in card
    assert ("license_link: README.md" in card) == (licence == "other")


def test_without_a_known_licence_nothing_goes_there(server: Hub, exported: Path) -> None:
    with pytest.raises(UserError, match=r"licence of boxes is not known; name .* --licence cc-by-4.0"):
        exporting.push(exported, "org/tiny")
    assert not server.asked


def test_what_is_here_wins(server: Hub, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exporting.push(exported, "org/tiny", licence="mit")
    server.asked.clear()
    Path("org").mkdir()
    with pytest.raises(UserError, match="org/tiny does not exist"):  # another file of a folder that is here
        four_d.load("org/tiny")
    Path("org/tiny").symlink_to(exported)
    assert four_d.load("org/tiny").path == Path("org/tiny")
    assert "hub" not in capsys.readouterr().err
    assert not server.asked


@pytest.mark.parametrize("name", ["tiny", "./org/tiny", "/org/tiny", "a/b/c", "org/m.safetensors", "org/m.pt2", "org/"])
def test_other_names_are_of_this_machine_only(server: Hub, name: str) -> None:
    assert not hub.is_id(name)
    with pytest.raises(UserError, match=r"does not exist|cannot be read|no such"):
        four_d.load(name)
    assert not server.asked


def test_a_wrong_name_says_so(server: Hub) -> None:
    with pytest.raises(UserError, match=r"org/none is no folder here, and the hub has no model org/none \(404\)"):
        four_d.load("org/none")
    assert server.asked


@pytest.mark.parametrize(("status", "told"), [(401, "HF_TOKEN"), (403, "HF_TOKEN .* may write there"), (404, "name")])
def test_a_refusal_names_the_remedy(server: Hub, exported: Path, status: int, told: str) -> None:
    server.refuses = status
    with pytest.raises(UserError, match=rf"org/tiny.*\({status}\).*{told}"):
        exporting.push(exported, "org/tiny", licence="mit")
    assert not server.models


def test_a_wrong_token_says_so(server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"401.*HF_TOKEN"):
        exporting.push(exported, "org/tiny", licence="mit")


def test_without_a_network_the_last_state_is_taken(
    server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting.push(exported, "org/tiny", licence="mit")
    four_d.load("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where no one listens
    assert four_d.load("org/tiny").info.name == "tiny"
    with pytest.raises(UserError, match=r"org/none is no folder here, and the hub cannot be reached .* network"):
        four_d.load("org/none")
    with pytest.raises(UserError, match=r"the hub cannot be reached .* network"):
        exporting.push(exported, "org/tiny", licence="mit")


def test_only_models_of_four_d_load_and_no_other_file_is_fetched(server: Hub) -> None:
    server.models["org/other"] = {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "config.json": b"{}",
    }
    with pytest.raises(UserError, match=r"org/other on the hub has no model.safetensors, so it is no model of four_d"):
        four_d.load("org/other")
    assert not [path for path in server.asked if "modeling" in path or ".bin" in path]


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "org/", "org/a b"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_asked(server: Hub, exported: Path, name: str) -> None:
    with pytest.raises(UserError, match="give org/name"):
        exporting.push(exported, name, licence="mit")
    assert not server.asked


def test_without_the_extra_load_and_push_name_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"org/tiny is no folder here, .*pip install 'four_d\[hub\]'"):
        four_d.load("org/tiny")
    with pytest.raises(UserError, match=r"pip install 'four_d\[hub\]'"):
        exporting.push(exported, "org/tiny", licence="mit")
