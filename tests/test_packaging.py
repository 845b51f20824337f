"""The wheel builds, installs into an empty environment and runs there, with its configs and without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the working copy")


def run(*command: str | Path, cwd: Path) -> str:
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_wheel_installs_and_runs_elsewhere(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    wheel = next((tmp_path / "dist").glob("four_d-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "four_d/py.typed" in names
    assert "four_d/configs/vggt.yaml" in names
    assert "four_d/references/models.json" in names
    assert "four_d/references/unified-base/model.safetensors" in names
    assert any(name.startswith("data_prep/synthetic/") for name in names)
    assert not any(name.startswith("tests/") for name in names)

    # its own folder ahead of everything: the working copy must not be what is imported
    site = tmp_path / "site"
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    source = "data.sources.s.path=x"
    show = f"""
import sys
sys.path.insert(0, {str(site)!r})
import four_d
from four_d.cli import main
print(four_d.__file__)
main(["config", "explain", "loop.ema"])
sys.exit(main(["config", "show", "vggt", "overlays/tiny", {source!r}]))
"""
    shown = run(sys.executable, "-c", show, cwd=tmp_path)
    assert str(site) in shown.splitlines()[0]
    assert "kind: alternating" in shown
    assert "Decay of the exponential moving average" in shown, "docstrings come from the installed source"

    # and a model that needs no --model, with no checkpoints/ in sight
    (tmp_path / "video").mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (index * 90, 10, 20)).save(tmp_path / "video" / f"{index}.png")
    infer = f"""
import sys
sys.path.insert(0, {str(site)!r})
from four_d.cli import main
sys.exit(main(["infer", "video", "--out", "out", "--no-tracks"]))
"""
    told = subprocess.run([sys.executable, "-c", infer], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert str(site / "four_d" / "references" / "unified-base") in told.stderr
    assert (tmp_path / "out" / "cameras.json").is_file()


def test_import_is_quick_and_light(tmp_path: Path) -> None:
    """`import four_d` loads neither torch nor anything heavier: names come when asked for."""
    heavy = ("torch", "lightning", "timm", "wandb", "gsplat")
    code = f"import sys, four_d; print(*(name for name in {heavy} if name in sys.modules))"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == ""
