"""The one error that means "the input is wrong, and here is the remedy"."""


class InputError(ValueError):
    """Wrong usage or input. The command line prints its message and exits with code 2."""
