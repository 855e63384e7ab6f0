"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Bad input of the user: the message is one line that a command prints as it stands."""
