"""Overrides of a command that don't fit, said in one sentence before anything runs."""

import contextlib
import io
import re

from legibility.recipes._plan import Job
from legibility.recipes._usage import UsageError


def check_overrides(job: Job) -> None:
    """Holds a run's overrides against the classes that they are for.

    Raises:
        UsageError: One doesn't fit.
    """
    if not job.overrides:
        return
    from legibility.recipes._engine import check

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            check(job)
    except (Exception, SystemExit) as error:
        text = printed.getvalue() if isinstance(error, SystemExit) else str(error)
        shown = ", ".join(_blamed(job.overrides, text))
        raise UsageError(
            f"`{shown}` does not fit the configuration of {job.recipe}, arm {job.arm}: {_reason(text)}"
        ) from error


def _blamed(overrides: tuple[str, ...], text: str) -> list[str]:
    """The overrides that the parser's message is about; all of them if it doesn't say."""
    keys = re.findall(r'key "([\w.]+)"|--([\w.]+)', text)
    named = [one for one in overrides if any(one.lstrip("-+").startswith(key or flag) for key, flag in keys)]
    return named or list(overrides)


def _reason(text: str) -> str:
    """The sentence that matters in a parser's message of many lines: the first of the innermost level.

    Example:
        >>> _reason("Does not validate:\\n  Errors:\\n    - Problem with 'L1Sparsity':\\n        Option 'x' is not accepted\\n")
        "Problem with 'L1Sparsity': Option 'x' is not accepted"
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("- ")), len(lines) - 1)
    said: list[str] = []
    for line in lines[max(0, first) :]:
        if not line.startswith(("Does not validate", "Subtypes:", "Errors:")):
            said.append(line.removeprefix("- "))
            if not line.endswith(":"):
                break
    return " ".join(said)
