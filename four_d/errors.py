"""Error for problems that the user can fix, and others' texts within it."""


class UserError(ValueError):
    """Bad input: one or two lines that name the thing and the remedy. The command line prints it and exits with 2."""


def first_line(error: Exception) -> str:
    """First line of an error's text; its type's name without text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
