"""Models as one file, which runs without their code: programs (`tracing`), written, read, and run as a `Model`."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch

from four_d import fields, schema
from four_d.abilities import Abilities, Hint, ModelModule, ModelSpec, Use, World
from four_d.checkpoints import ModelInfo
from four_d.devices import Precision
from four_d.errors import UserError
from four_d.query import query_times
from four_d.tracing import Signature, inputs_of, signature
from four_d.types import Clip, Prediction, merge_predictions

RECORD = "four_d.json"
"""Entry of a program's file that says what the program takes and gives, and how its model was trained."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ProgramConfig(ModelSpec):
    """Description of an `ExportedModel`, from the file of its program."""

    signature: Signature
    outputs: tuple[str, ...]
    """Fields of its predictions."""
    queried: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    """Classes that declare the outputs, as module:name; of this package's `Prediction` none."""
    units_depth: bool = False
    """True if depth of a clip tells its unit of length, in which the program is given the poses."""
    stride: int = 1
    key_frames: int = 0
    key_cameras: int | None = None
    multiple: int = 1
    world: World = "first_camera"

    @property
    def abilities(self) -> Abilities:
        """Abilities of the program. UserError if a class that declares its outputs is not imported."""
        taken, gaussians = self.signature, "gaussians" in self.outputs
        hints: dict[Hint, Use] = {"depth": "optional"} if self.units_depth else {}
        hints |= {cast(Hint, hint): "required" for hint in taken.hints}
        return Abilities(
            outputs=frozenset(self.outputs),
            predictions=tuple(_class_named(name) for name in self.predictions) or (Prediction,),
            queried=frozenset(self.queried),
            hints=hints,
            masks="masks" in taken.hints,
            times=taken.frames if gaussians else None,
            stride=self.stride,
            key_frames=self.key_frames if gaussians else 0,
            key_cameras=self.key_cameras if gaussians else None,
            multiple=self.multiple,
            world=self.world,
            image_size=taken.image_size,
            frames=taken.frames,
        )

    def build(self) -> ModelModule:
        """Raise UserError: a program cannot be built anew."""
        raise UserError("a program has fixed weights and cannot be trained; name the exported folder or the run")


def _class_named(name: str) -> type[Prediction]:
    """Imported subclass of `Prediction`, of the form module:name; one of a script's own is whatever has its name."""
    below: list[type[Prediction]] = [Prediction]
    for kind in below:
        below += kind.__subclasses__()
    module, _, own = name.partition(":")
    matching = [kind for kind in below if kind.__qualname__ == own and module in (kind.__module__, "__main__")]
    if not matching:
        raise UserError(f"the program's outputs are declared by {own} of {module}; import it before loading")
    return matching[-1]  # a notebook's cell may have made it again


class ExportedModel(ModelModule):
    """A program as a model: what it was traced with is fixed, which its abilities say.

    It computes in float32 on the CPU, and clips of a batch, as query times, one after the other, each in a whole pass.
    """

    def __init__(self, program: torch.export.ExportedProgram, described: ProgramConfig) -> None:
        super().__init__()
        self.config = described
        self._program = program.module()
        self._abilities = described.abilities
        self._kind = type(merge_predictions([kind() for kind in self._abilities.predictions]))
        self.precision: Precision | None = "fp32"

    @property
    def abilities(self) -> Abilities:
        """Abilities of the program."""
        return self._abilities

    def without(self, *outputs: str) -> ExportedModel:
        """Model that leaves these fields out of its predictions; the program computes them all the same."""
        left = tuple(name for name in self.config.outputs if name not in outputs)
        queried = tuple(name for name in self.config.queried if name in left)
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, outputs=left, queried=queried)
        other._abilities = other.config.abilities
        return other

    def forward(self, clip: Clip) -> Prediction:
        """Predict for a batched clip of the program's sizes, with the answers to all of its query times.

        UserError for another size or number of frames, several cameras, or a missing hint.
        """
        return fields.join(list(self.answers(clip)), "q")

    def answers(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction per query time of a batched clip, only the first with outputs that depend on none."""
        self._check(clip)
        asked, queried = query_times(clip), self._abilities.queried
        if not queried or not asked.shape[1]:
            yield _left_out(self._whole(dataclasses.replace(clip, query_times=clip.times[:, :1])), queried)
            return
        for index, time in enumerate(asked.split(1, dim=1)):
            prediction = self._whole(dataclasses.replace(clip, query_times=time))
            yield _left_out(prediction, self._abilities.outputs - queried) if index else prediction

    def _whole(self, clip: Clip) -> Prediction:
        """Prediction of a batch for one query time, clip by clip."""
        singles = (fields.take(clip, "b", slice(index, index + 1)) for index in range(len(clip.images)))
        outputs = [self._program(*inputs_of(single, self.config.signature)) for single in singles]
        kept = [fields.of_names(self._kind, tensors) for tensors in outputs]
        left = {each.name for each in fields.declared(self._kind)} - self._abilities.outputs
        return _left_out(fields.join(kept, "b"), left)

    def _check(self, clip: Clip) -> None:
        """Raise UserError for a clip that the program does not take."""
        taken, (count, _, height, width) = self.config.signature, clip.images.shape[1:]
        wanted = taken.image_size
        instead = "or load the folder it was exported into, whose model takes others"
        if (height, width) != wanted:
            raise UserError(
                f"this program takes images of {wanted[0]} × {wanted[1]} pixels (rows first), and these are "
                f"{height} × {width}; resize them, {instead}"
            )
        if count != (taken.frames or count) or count < taken.least:
            exact = f"exactly {taken.frames}" if taken.frames is not None else f"{taken.least} or more"
            raise UserError(f"this program takes {exact} frames, and the clip has {count}; give as many, {instead}")
        if bool((clip.camera_ids != clip.camera_ids[:, :1]).any()):
            raise UserError(f"this program takes the frames of one camera; give each camera alone, {instead}")
        if clip.references is not None and bool(clip.references.any()):
            raise UserError(f"this program takes no reference frames; leave them out, {instead}")

    def set_precision(self, precision: Precision) -> None:
        """Accept fp32, and tf32, which is the same here. UserError for bf16: the program was traced in float32."""
        if precision == "bf16":
            raise UserError("a program computes in fp32; choose that, or load the folder that it was exported into")

    def to(self, *args: Any, **kwargs: Any) -> ExportedModel:  # noqa: ANN401 - as torch's
        """Stay on the CPU, for which the program was traced. UserError for another device."""
        if any(isinstance(each, str | torch.device) and torch.device(each).type != "cpu" for each in args):
            raise UserError(
                f"a program runs on the CPU, where it was traced, not on {args[0]}; choose the device cpu, or load the "
                "folder that it was exported into"
            )
        return super().to(*args, **kwargs)

    def train(self, mode: bool = True) -> ExportedModel:
        """Stay in evaluation mode. UserError for training."""
        if mode:
            raise UserError("a program has fixed weights and cannot be trained; name the exported folder or the run")
        return self


def _left_out(prediction: Prediction, names: Iterable[str]) -> Prediction:
    return dataclasses.replace(prediction, **cast(dict[str, Any], dict.fromkeys(names)))


def describe(model: ModelModule, info: ModelInfo, labels: Sequence[str]) -> ProgramConfig:
    """Describe the program of a model, whose outputs have these names."""
    able = model.abilities
    kinds = [kind for kind in able.predictions if kind is not Prediction]
    given = {top for kind in able.predictions for top, names in fields.labels(kind).items() if names & set(labels)}
    return ProgramConfig(
        signature=signature(able, info.image_size),
        units_depth=info.normalisation == "disparity" and able.hints.get("depth") == "optional",
        outputs=tuple(sorted(given)),
        queried=tuple(sorted(given & able.queried)),
        predictions=tuple(f"{kind.__module__}:{kind.__qualname__}" for kind in kinds),
        stride=able.stride,
        key_frames=able.key_frames,
        key_cameras=able.key_cameras,
        multiple=able.multiple,
        world=able.world,
    )


def write(file: Path, program: torch.export.ExportedProgram, described: ProgramConfig, info: ModelInfo) -> None:
    """Write a program into one file, with its description and its training's."""
    record = {
        "format": FORMAT,
        "program": schema.to_plain(described),
        "info": {**cast(dict[str, object], schema.to_plain(info)), "model": None},
    }
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={RECORD: json.dumps(record)})
    file.write_bytes(buffer.getvalue())


def read(file: Path) -> tuple[ExportedModel, ModelInfo]:
    """Read a program that `export` wrote. Torch unpickles parts of it: read those of people whom you trust.

    UserError if it is none, or damaged, or of a newer format.
    """
    record = _record(file)
    if record.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {record.get('format')}, this four_d reads {FORMAT}; update four_d or export it again"
        )
    described = schema.build(ProgramConfig, record.get("program"), str(file))
    facts = cast(dict[str, Any], record.get("info"))
    own: dict[str, Any] = {"model": described, "image_size": described.signature.image_size}
    try:
        info = ModelInfo(**{**facts, **own})
        program = torch.export.load(file)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, UnpicklingError) as error:
        raise UserError(
            f"{file} cannot be read ({str(error).strip().partition(chr(10))[0]}); export it again"
        ) from error
    return ExportedModel(program, described), info


def _record(file: Path) -> dict[str, Any]:
    """Content of a program's `RECORD`, without unpickling anything."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a program that four-d export wrote")
    try:
        with zipfile.ZipFile(file) as opened:
            names = [name for name in opened.namelist() if name.rpartition("/")[2] == RECORD]
            content = json.loads(opened.read(names[0])) if names else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no program, or is damaged ({error}); export it again") from error
    if not isinstance(content, dict):
        compiled = "; a compiled package (aoti) is run by torch alone, as docs/inference.md shows"
        raise UserError(f"{file} does not say what it takes and gives; write it with this four-d export{compiled}")
    return cast(dict[str, Any], content)
