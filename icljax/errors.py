"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what the user gave: one clear line, and exit code 2 on the command line.

    The message says what was given, what was expected, and what to do.
    """
