"""The tests of four_d."""

from tests import typechecker as typechecker  # jaxtyping's option in pyproject.toml takes an attribute of this package
