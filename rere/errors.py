"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input. Its message is one line that names the file, key or row and the remedy."""
