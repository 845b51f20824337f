"""Programs for other runtimes: ONNX, which onnxruntime runs, and packages that AOTInductor compiles, of torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.tracing import Runner, Signature

ONNX, AOTI = "model.onnx", "model.aoti.pt2"
"""Names of their files in an exported folder."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
"""Version of ONNX's operators."""


def check_onnx() -> None:
    """Raise UserError where a package of the extra ``onnx`` is missing."""
    lacking = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"the format onnx needs {' and '.join(lacking)}: pip install 'four_d[onnx]', or leave onnx out of --format"
        )


def check_aoti() -> None:
    """Raise UserError where there is no C++ compiler, which AOTInductor calls."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"the format aoti needs a C++ compiler, and {compiler} is not found: install it, name one in CXX, or leave "
            "aoti out of --format"
        )


def write_onnx(file: Path, program: torch.export.ExportedProgram, taken: Signature, outputs: Sequence[str]) -> Runner:
    """Write a program as ONNX, and return it as onnxruntime runs it on the CPU.

    Weights of 2 GB and more lie beside the file, as ``model.onnx.data``.

    Raises:
        UserError: an operator that ONNX's converter does not have, by its name.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converter, about its own code
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(taken.inputs),
                output_names=list(outputs),
                verbose=False,
                custom_translation_table={
                    torch.ops.aten.sort.stable: _sort_stable,
                    torch.ops.aten.where.self: _where,
                },
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(_refusal(error)) from error
    assert made is not None
    made.save(str(file), external_data=_size(program) >= 2**31 - 2**20)
    return _onnxruntime(file, outputs)


def _size(program: torch.export.ExportedProgram) -> int:
    """Bytes of a program's weights."""
    return sum(value.numel() * value.element_size() for value in program.state_dict.values())


def _sort_stable(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:  # noqa: ANN401, ARG001
    """Sort as ONNX's TopK of all does, which puts the first of equal values first."""
    onnxscript = cast(Any, importlib.import_module("onnxscript"))
    operators = onnxscript.opset18
    size = operators.Gather(operators.Shape(self), operators.Constant(value_ints=[dim]), axis=0)
    return operators.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _where(condition: Any, self: Any, other: Any) -> Any:  # noqa: ANN401
    """Choose by a condition, among truth values by logic: onnxruntime has no kernel that chooses among those."""
    onnxscript = cast(Any, importlib.import_module("onnxscript"))
    operators = onnxscript.opset18
    if self.dtype != onnxscript.ir.DataType.BOOL:
        return operators.Where(condition, self, other)
    return operators.Or(operators.And(condition, self), operators.And(operators.Not(condition), other))


def _refusal(error: BaseException) -> str:
    """Say which operator the converter lacks."""
    text, cause = str(error), error.__cause__
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__
    named = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    if named is not None:
        return (
            f"ONNX has no counterpart of the operator {named[1]}, which this model computes with; leave onnx out of "
            "--format, and take pt2 or aoti; if cameras by matched pixels need it, --no-refine exports without them"
        )
    line = next((line for line in text.splitlines() if "Error" in line or "error" in line), text.splitlines()[0])
    return f"the model cannot be written as ONNX ({line.strip()[:200]}); leave onnx out of --format"


def _onnxruntime(file: Path, outputs: Sequence[str]) -> Runner:
    """Program as onnxruntime runs it, on as many threads as torch."""
    runtime = cast(Any, importlib.import_module("onnxruntime"))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of onnxruntime's own, for each of its error codes
        line = str(error).strip().splitlines()[0]
        raise UserError(f"onnxruntime does not run the program ({line[:200]}); leave onnx out of --format") from error
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Mapping[str, Tensor]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return {name: torch.from_numpy(value) for name, value in zip(outputs, session.run(list(outputs), given))}

    return run


def write_aoti(file: Path, program: torch.export.ExportedProgram) -> Runner:
    """Compile a program for this kind of processor into one package, and return it as it runs.

    Raises:
        UserError: inductor cannot compile it, with the reason.

    """
    inductor = cast(Any, importlib.import_module("torch._inductor"))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of inductor, about its own code
            inductor.aoti_compile_and_package(program, package_path=str(file))
            loaded = inductor.aoti_load_package(str(file))
    except Exception as error:  # of inductor, dynamo or the compiler: whatever they stumble over
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the model cannot be compiled ahead of time ({line[:200]}); leave aoti out of --format"
        ) from error
    return lambda *inputs: cast(Mapping[str, Tensor], loaded(*inputs))
