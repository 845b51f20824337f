"""gsplat's kernels as ``gsplat/csrc.so``, which gsplat imports before it would compile them itself.

    python -m benchmarks.gpu.build          # compiles for compute capability 9.0 (H100, H200) unless told otherwise
    python -m benchmarks.gpu.build FOLDER   # and packs the library: FOLDER/csrc.so.xz

It fits one Python, one torch and one CUDA. `TORCH_CUDA_ARCH_LIST` and `MAX_JOBS` are heeded.
"""

from __future__ import annotations

import importlib.util
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "csrc"


def sources(package: Path) -> list[str]:
    """As gsplat 1.5.3 lists them (``gsplat/cuda/_backend.py``)."""
    cuda = package / "cuda"
    return [str(each) for each in (*sorted(cuda.glob("csrc/*.cu")), *sorted(cuda.glob("csrc/*.cpp")), cuda / "ext.cpp")]


def place() -> Path:
    """Folder of the installed gsplat, found without importing it."""
    found = importlib.util.find_spec("gsplat")
    if found is None or found.origin is None:
        raise SystemExit("gsplat is not installed; pip install 'gsplat>=1.5.3,<1.6'")
    return Path(found.origin).parent


def find_toolkit() -> None:
    """Set ``CUDA_HOME`` to where nvcc really is: what is on the path may be a script that only calls it."""
    nvcc = shutil.which("nvcc")
    if "CUDA_HOME" in os.environ or nvcc is None:
        return
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    here = re.search(r"^#\$ _HERE_=(.+)$", said.stderr, flags=re.MULTILINE)
    if here is not None:
        os.environ["CUDA_HOME"] = str(Path(here[1].strip()).parent)


def build(out: Path) -> Path:
    """Compile, and put the library into the folder ``out``."""
    find_toolkit()  # torch looks for it when this is imported
    from torch.utils import cpp_extension

    package = place()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0")
    os.environ.setdefault("MAX_JOBS", str(max(1, (os.cpu_count() or 1) - 2)))
    include = [package / "cuda/include", package / "cuda/csrc/third_party/glm"]
    with tempfile.TemporaryDirectory() as folder:
        cpp_extension.load(
            name=NAME,
            sources=sources(package),
            extra_cflags=["-O3", "-Wno-attributes"],
            extra_cuda_cflags=["-O3", "-use_fast_math"],
            extra_include_paths=[str(each) for each in include],
            build_directory=folder,
            with_cuda=True,
            is_python_module=False,
            is_standalone=False,
        )
        partial = out / f"{NAME}.so.partial"
        shutil.copyfile(Path(folder) / f"{NAME}.so", partial)
    return partial.rename(out / f"{NAME}.so")  # whole or not at all


def pack(library: Path, folder: Path) -> Path:
    """Compress the library into the folder."""
    packed = folder / f"{library.name}.xz"
    packed.write_bytes(lzma.compress(library.read_bytes(), preset=1))
    return packed


if __name__ == "__main__":
    made = build(place())
    print(pack(made, Path(sys.argv[1])) if len(sys.argv) > 1 else made)
