"""The command line: ``legibility ls | cp | validate | run | sweep | compare | report``."""

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from legibility.recipes._find import copy_recipe, find, shipped
from legibility.recipes._folder import RECORD
from legibility.recipes._overrides import check_overrides
from legibility.recipes._plan import forget_failures, other_code, plan, unfinished
from legibility.recipes._sweep_command import add_sweep_arguments, planned, sweep_command
from legibility.recipes._usage import UsageError, usage


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``legibility``.

    Args:
        arguments: What follows the command; None for this process's own.

    Returns:
        0 if all went well, 1 if a run failed or a recipe is not valid, 2 if the command was wrong, 130 after Ctrl-C.
    """
    parsed, overrides = _parser().parse_known_args(arguments)
    if overrides and parsed.verb not in ("run", "sweep"):
        _parser().error(f"unrecognized arguments: {' '.join(overrides)}")
    parsed.overrides = overrides
    verb: Callable[[argparse.Namespace, Console], int] = parsed.call
    try:
        with _terminated_like_interrupted():
            return verb(parsed, Console(soft_wrap=True))
    except UsageError as error:
        print(f"legibility {parsed.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A request to end (``timeout``, CI) is answered like Ctrl-C: workers end, what is finished is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("legibility", description="Runs recipes and compares what they measured.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(call: Callable[[argparse.Namespace, Console], int], text: str) -> argparse.ArgumentParser:
        name = call.__name__.strip("_")
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(call=call)
        return added

    def runs(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--preset", help="how much is run (default: the recipe's first preset)")
        parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
        parser.add_argument("--wandb", metavar="PROJECT", help="log to this W&B project; WANDB_MODE says how")
        parser.epilog = (
            "Further arguments --key=value change the configuration as in LightningCLI: --trainer.max_epochs=3, "
            "--model.init_args.dropout=0.1, --trainer.callbacks.strength=2 (the arm's last callback)."
        )

    verb(_ls, "list the recipes")
    one = verb(_cp, "copy a recipe, to change it; the copy runs by its path")
    one.add_argument("recipe", metavar="RECIPE")
    one.add_argument("destination", metavar="DEST", nargs="?", help="default: my_RECIPE.py")
    one = verb(_validate, "hold a recipe's configurations against the classes they name, without training")
    one.add_argument("recipes", metavar="RECIPE", nargs="+", help="name, or path of an own recipe")
    one = verb(_run, "run one arm of a recipe with one seed")
    one.add_argument("recipe", metavar="NAME", help="name, or path of an own recipe")
    one.add_argument("--arm", help="default: the recipe's baseline")
    one.add_argument("--seed", type=int, help="default: the preset's first seed")
    runs(one)
    one = verb(_sweep, "run all arms with all seeds; what is finished already is skipped")
    add_sweep_arguments(one)
    runs(one)
    one = verb(_report, "show one model: its scores beside their controls here, many small pictures on one page")
    one.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or its run record")
    one.add_argument("--html", type=Path, metavar="FILE", help="the page (default: model.html beside the record)")
    one.add_argument(
        "--measure",
        action="store_true",
        help="first measure what the budget of time left out, from the run's checkpoint",
    )
    one = verb(_compare, "compare finished runs: a table here and one HTML file")
    one.add_argument(
        "sources",
        metavar="RUNS",
        nargs="+",
        help="folders of runs, run records, W&B's offline runs (wandb/offline-run-...), or a W&B project: entity/project",
    )
    one.add_argument("--baseline", help="the arm that the others are compared with (default: plain)", default="plain")
    one.add_argument("--html", type=Path, help="the file to write (default: tradeoff.html in the first folder)")
    one.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="FILE",
        help="write this too, as its suffix says: .png .svg .pdf (picture), .md .csv (tables), .runs.csv; repeatable",
    )
    one.add_argument("--wandb", metavar="PROJECT", help="log the comparison to this W&B project too")
    one.add_argument("--wandb-report", action="store_true", help="with --wandb: write a W&B report of its runs")
    return parser


def _ls(parsed: argparse.Namespace, console: Console) -> int:
    for name in shipped():
        recipe = find(name).recipe
        console.print(f"[bold]{name}[/bold]  {recipe.question}", highlight=False)
        table = Table.grid(padding=(0, 2))
        table.add_row("  arms", ", ".join(recipe.arms))
        if recipe.controls:
            table.add_row("  controls", ", ".join(recipe.controls))
        for preset_name, preset in recipe.presets.items():
            count = len(preset.seeds)
            time = "" if preset.minutes is None else f", about {preset.minutes:g} min on 2 cores"
            table.add_row(f"  {preset_name}", f"{count} seed{'s' * (count > 1)}{time}")
        console.print(table, highlight=False)
    return 0


def _cp(parsed: argparse.Namespace, console: Console) -> int:
    with usage():
        written = copy_recipe(parsed.recipe, parsed.destination)
    shown = f"./{written[0]}" if not written[0].is_absolute() else str(written[0])
    console.print(f"Wrote {written[0]} and {written[1]}. Run it: legibility run {shown}", highlight=False)
    return 0


def _validate(parsed: argparse.Namespace, console: Console) -> int:
    from legibility.recipes._engine import check

    wrong = 0
    for name in parsed.recipes:
        try:
            recipe = find(name).recipe
            jobs = [
                job for preset in recipe.presets for job in plan([name], preset=preset, seeds=[0], out=Path("runs"))
            ]
        except (ValueError, OSError, TypeError, SyntaxError) as error:
            console.print(f"{name}: {error}", highlight=False, markup=False)
            wrong += 1
            continue
        failures = 0
        for job in jobs:
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    check(job)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever does not fit is the answer
                failures += 1
                console.print(f"{job.label.rpartition('/')[0]}: {error}", highlight=False, markup=False)
        wrong += failures
        if not failures:
            count = len(recipe.arms) + len(recipe.controls)
            console.print(f"{name}: {count} arms, {len(recipe.presets)} presets, all fit", highlight=False)
    return 1 if wrong else 0


def _run(parsed: argparse.Namespace, console: Console) -> int:
    with usage():
        recipe = find(parsed.recipe).recipe
        arm = recipe.baseline if parsed.arm is None else parsed.arm
    jobs = planned(parsed, [parsed.recipe], [arm], None if parsed.seed is None else [parsed.seed])
    # One run is one run in W&B too: an agent's. What it needs first is not logged.
    jobs = [j if j.arm == arm else replace(j, project=None) for j in jobs if j.seed == jobs[0].seed]
    check_overrides(jobs[-1])
    from legibility.recipes._engine import run

    forget_failures(jobs)
    if note := other_code([job for job in jobs if job.arm != arm]):
        console.print(note, highlight=False, markup=False)
    for job in unfinished(jobs, again=arm):
        console.print(f"{job.label} -> {job.folder}", highlight=False, markup=False)
        run(job, written=_also_written_to, bar=console.is_terminal, again=job.arm == arm)
    console.print(f"Record: {jobs[-1].folder / RECORD}", highlight=False, markup=False)
    return 0


def _sweep(parsed: argparse.Namespace, console: Console) -> int:
    return sweep_command(parsed, console)


def _report(parsed: argparse.Namespace, console: Console) -> int:
    from legibility.recipes._show import find_record, show_model

    with usage():
        path = find_record(parsed.run)
        if parsed.measure:
            from legibility.recipes._measure_again import measure_again

            with console.status("measuring from the checkpoint"):
                filled = measure_again(path)
            console.print(f"{filled} scores have a value now that had none.", highlight=False)
        try:
            show_model(path, parsed.html, console)
        except ImportError as error:
            raise UsageError(str(error)) from error
    return 0


def _compare(parsed: argparse.Namespace, console: Console) -> int:
    from legibility.recipes._compare import compare_runs

    if parsed.wandb_report and not parsed.wandb:
        raise UsageError("--wandb-report is about the runs of a W&B project: name it with --wandb PROJECT")
    with usage():
        try:
            compared, written = compare_runs(parsed.sources, parsed.baseline, parsed.html, console, parsed.export)
        except ImportError as error:
            raise UsageError(str(error)) from error
    if parsed.wandb:
        from legibility.recipes._wandb_publish import publish

        return publish(compared, written, parsed.wandb, console, report=parsed.wandb_report)
    return 0


@contextlib.contextmanager
def _also_written_to(path: Path) -> Iterator[None]:
    """What Python prints goes to the terminal as before and, without progress bars, into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(out, file), _Tee(err, file)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


class _Tee(io.TextIOBase):
    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        if "\r" not in text and "\x1b" not in text:
            self._file.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()


if __name__ == "__main__":
    sys.exit(main())
