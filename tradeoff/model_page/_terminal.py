"""One model's scores as a table in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from legibility.tradeoff._record import RunRecord, ScoreEntry
from legibility.tradeoff.model_page._charts import number
from legibility.tradeoff.model_page._words import controls_of, cost_in_words, doubts_of, title_of


def print_model(record: RunRecord, console: Console | None = None) -> None:
    """Prints one run: its task, each score beside its controls, what has no value and why, what it cost.

    Args:
        record: the run.
        console: where to; standard output if None.

    Example:
        >>> import io
        >>> from legibility.tradeoff import CostEntry, ScoreEntry, TaskEntry
        >>> score = ScoreEntry("held_out_kl", 0.4, "nats", "lower", 0.1, "random-init", trained_on=False)
        >>> record = RunRecord("plain", 0, None, {}, [], TaskEntry("cross-entropy", 1.5, None, None, 64, "validation"),
        ...                    [score], CostEntry(None, None, None, None, None, {}, 10), {})
        >>> console = Console(file=io.StringIO(), width=100)
        >>> print_model(record, console)
        >>> "random-init 0.1 !" in console.file.getvalue()
        True
    """
    console = console or Console()
    name = f"{record.recipe}: {record.arm}" if record.recipe else record.arm
    loss = "" if record.task.loss is None else f", {record.task.name} {record.task.loss:.4g}"
    accuracy = "" if record.task.accuracy is None else f", accuracy {100 * record.task.accuracy:.1f} %"
    console.print(Text(f"{name}, seed {record.seed}{loss}{accuracy}", style="bold"))
    shown = [entry for entry in record.scores if entry.family is None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, justify in (("score", "left"), ("value", "right"), ("unit", "left"), ("better", "left")):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    table.add_column("controls (! does better)", overflow="fold")
    for entry in shown:
        if entry.value is not None:
            mark = " (trained on)" if entry.trained_on else ""
            cells = [
                title_of(entry.name) + mark,
                number(entry.value),
                entry.unit,
                entry.direction or "-",
                _controls(entry),
            ]
            table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    absent = [entry for entry in shown if entry.value is None]
    if absent:
        console.print(Text("Without a value:", style="bold"))
        for entry in absent:
            console.print(Text(f"  {title_of(entry.name)}: {entry.reason or 'no reason was given'}"))
    unmatched: dict[str, list[str]] = {}
    for entry in shown:
        if entry.value is not None and not controls_of(entry):
            for control, why in entry.control_reasons.items():
                unmatched.setdefault(f"{control}: {why}", []).append(title_of(entry.name))
    if unmatched:
        console.print(Text("No control beside:", style="bold"))
        for why, names in unmatched.items():
            console.print(Text(f"  {', '.join(names)}: {why}"))
    for note in record.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    if took := cost_in_words(record.cost):
        console.print(Text(took))


def _controls(entry: ScoreEntry) -> str:
    beaten = entry.beaten_by
    shown = [f"{name} {number(value)}{' !' if name in beaten else ''}" for name, value in controls_of(entry).items()]
    shown += [f"{name}, unlearnt, {number(value)} !" for name, value in doubts_of(entry.details)]
    return ", ".join(shown) or "-"
