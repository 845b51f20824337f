"""Real HTTP and S3 servers on loopback, which go wrong as they are told."""

from __future__ import annotations

import http.server
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"


class Faults:
    """``plan[name]`` is what goes wrong at the next requests of a file (500, stall, truncate, change, grow; of HTTP
    loop).

    ``asked`` counts the requests of a file's content.
    """

    def __init__(self) -> None:
        self.plan: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.asked = Counter[str]()
        self.over = threading.Event()
        """Ends what stalls."""
        self._lock = threading.Lock()

    def next(self, name: str) -> str:
        with self._lock:
            self.asked[name] += 1
            planned = self.plan[name]
            return planned.pop(0) if planned else self.always.get(name, "")

    def body(self, fault: str, content: bytes) -> Iterator[bytes]:
        """Yield what is sent in place of the content, whose length was said."""
        if fault == "change":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault in ("truncate", "stall"):
            yield content[: len(content) // 2]
            if fault == "stall":
                self.over.wait()
            return
        yield content


@contextmanager
def http_server(folder: Path, faults: Faults) -> Generator[str]:
    """Serve a folder; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.partition("?")[0].lstrip("/")
            fault = faults.next(path.name)
            if fault == "500" or not path.is_file():
                self.send_error(500 if fault else 404)
                return
            if fault == "loop":
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            if fault == "grow":
                content += bytes(1 << 24)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                for part in faults.body(fault, content):
                    self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with _running(server, faults):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def s3_server(folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """Serve a folder from a bucket; yield its address. Credentials and the server are in the environment."""
    pytest.importorskip("s3fs", reason="the extra remote is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    import fsspec
    from werkzeug.serving import make_server

    inner = moto.DomainDispatcherApplication(moto.create_backend_app)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        name = environ["PATH_INFO"].rpartition("/")[2]
        fault = faults.next(name) if environ["REQUEST_METHOD"] == "GET" and "." in name else ""
        if fault == "500":
            start("500 Internal Server Error", [("Content-Length", "0")])
            return iter([b""])
        content = b"".join(inner(environ, start))
        return faults.body(fault, content) if fault else iter([content])

    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.log = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    with _running(server, faults):
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        if not system.exists(BUCKET):  # moto's state is that of this process
            system.mkdir(BUCKET)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            system.pipe_file(f"{BUCKET}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        faults.asked.clear()
        yield f"s3://{BUCKET}"


@contextmanager
def _running(server: Any, faults: Faults) -> Generator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        faults.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
