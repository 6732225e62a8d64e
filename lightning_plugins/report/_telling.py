"""What a report says on the terminal: a bar while it measures, estimates before, the share of the fit's time after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as ProgressBar

from legibility.tradeoff import CostEntry

Progress = Callable[[str, float], None]
Say = Callable[[str], None]


@contextmanager
def telling(on: bool) -> Iterator[tuple[Progress, Say]]:
    """While inside, a bar is shown; it goes away at the end.

    Args:
        on: Whether anything is shown: the user's wish, on rank zero.

    Yields:
        What is to be called with what is measured and the share done, and what prints a line above the bar.
    """
    if not on:
        yield (lambda name, share: None), (lambda text: None)
        return
    with ProgressBar(transient=True) as bar:
        task = bar.add_task("measuring", total=1.0)

        def update(name: str, share: float) -> None:
            bar.update(task, description=f"measuring: {name}", completed=share)

        yield update, lambda text: bar.console.print(text, highlight=False, markup=False)


def say(on: bool, text: str) -> None:
    """One line, where there is no bar."""
    if on:
        Console(soft_wrap=True).print(text, highlight=False, markup=False)


def cost_in_words(cost: CostEntry, page: Path | None) -> str:
    """What the report took, and where the page is.

    Example:
        >>> cost_in_words(CostEntry(30.0, 100, 0.3, 1.5, None, {}, 10, report_share=0.05), None)
        'InterpretabilityReport took 1.5 s, 5.0 % of the fit (30.0 s).'
    """
    share = ""
    if cost.report_share is not None:
        share = f", {100 * cost.report_share:.1f} % of the fit ({cost.fit_seconds or 0.0:.1f} s)"
    shown = "" if page is None else f" Page: {page}"
    return f"InterpretabilityReport took {cost.report_seconds or 0.0:.1f} s{share}.{shown}"
