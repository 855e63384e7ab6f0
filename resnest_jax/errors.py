"""The exceptions whose message is one line for the user; commands print it as it stands."""


class InputError(ValueError):
    """Bad input: the message names the field, the value and what would be right."""


class DivergenceError(RuntimeError):
    """Training ran into a value that is not finite; the message names step and records."""


class StorageError(RuntimeError):
    """Something could not be written, a full disk for instance; what was whole before still is."""


class PreemptedError(RuntimeError):
    """The run was told to stop, and has stored all that it needs to go on."""
