"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one or two lines that name the thing and the remedy. The command line prints it and exits with 2."""
