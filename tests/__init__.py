"""The tests. Types and shapes of the package are checked at run time in them, and nowhere else."""

from tests import typechecker

typechecker.install()
