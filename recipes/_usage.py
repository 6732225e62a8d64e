"""What is wrong with a command is said in one line, without a traceback."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """Something in the command is wrong; the message is all that the user needs."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What goes wrong inside is the command's fault.

    Example:
        >>> try:
        ...     with usage():
        ...         int("x")
        ... except UsageError as error:
        ...     print(error)
        invalid literal for int() with base 10: 'x'
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
