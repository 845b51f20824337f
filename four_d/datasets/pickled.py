"""Pickles of published sets, read without running what is in them: containers, numbers, text, bytes and arrays only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError


class PlainUnpickler(pickle.Unpickler):
    """Unpickler for containers and arrays of numbers or bytes; anything else in the file is refused and never run."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> object:
        """Look up a class, if it is one of the few that arrays need."""
        name = module_name.replace("numpy.core", "numpy._core")
        if (name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module_name}.{global_name}; only plain values are read")
        # numpy 2 renamed numpy.core, and files name the module of the version that wrote them
        old = np.lib.NumpyVersion(np.__version__) < "2.0.0"
        return super().find_class(name.replace("numpy._core", "numpy.core") if old else name, global_name)


def read_pickle(path: Path, layout: str) -> object:
    """Read the plain value of a pickle. UserError names the file, the reason and the expected ``layout``."""
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except MemoryError:
        raise
    except Exception as error:
        # damaged pickles raise whatever the opcodes that they seem to hold stumble over
        raise UserError(
            f"{path} cannot be read ({error or type(error).__name__}); expected layout: {layout}"
        ) from error


def read_npy_dictionary(path: Path, layout: str) -> dict[str, NDArray[np.generic]]:
    """Read the arrays of a dictionary that ``np.save`` pickled. UserError as `read_pickle`."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version[0] > 1:
                raise ValueError(f"npy version {version}")
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            if shape != () or not kind.hasobject:
                raise ValueError("it holds an array, not a dictionary")
            value: object = np.asarray(PlainUnpickler(file).load()).item()
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not a dictionary")
        return {str(key): np.asarray(each) for key, each in cast(dict[object, object], value).items()}
    except MemoryError:
        raise
    except Exception as error:
        # as above
        raise UserError(
            f"{path} cannot be read ({error or type(error).__name__}); expected layout: {layout}"
        ) from error
