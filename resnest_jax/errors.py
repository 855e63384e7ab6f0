"""The exceptions whose message is one line for the user; commands print it as it stands."""


class InputError(ValueError):
    """Bad input: the message names the field, the value and what would be right."""


class DivergenceError(RuntimeError):
    """Training ran into a value that is not finite; the message names the step."""
