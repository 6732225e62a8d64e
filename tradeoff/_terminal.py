"""The comparison as tables in a terminal, 80 columns or more, with or without colour."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from legibility.tradeoff._arms import Arm, Comparison, Metric, Section
from legibility.tradeoff._matched_words import matched_sentences
from legibility.tradeoff._verdicts import Outcome, judge, verdicts
from legibility.tradeoff._wording import change, heading, role, title, value
from legibility.tradeoff.page._in_short import findings
from legibility.tradeoff.statistics import compare_at_matched_loss

_STYLES: dict[Outcome, str] = {"gain": "bold green", "worse": "red", "no difference": "dim", "one seed": "italic"}
_MARKS: dict[Outcome, str] = {"unsure": "?", "unmatched": "‡", "no gain over control": "="}
_ASCII = str.maketrans({"±": "~", "–": "-", "↓": "v", "↑": "^", "†": "+", "‡": "#", "○": "o", "·": "-"})
_ARM, _NUMBER = 18, 13
_SENTENCES = 20


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints, for each recipe: warnings, the table of arms, what it says in words, methods at equal loss, the legend.

    A cell holds the change against the baseline (paired by seed, half-width of the 95 % t interval), below it the mean
    over seeds. Scores that don't fit beside each other go into a further table, each with its task-loss column.

    Args:
        comparison: from `compare`.
        console: where to; standard output if None. Without a terminal rich prints no colour codes.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> import io
        >>> console = Console(file=io.StringIO(), width=80)
        >>> print_comparison(compare([run("plain", 2.0, 0.5), run("legibility-0.3", 2.02, 0.4)]), console)
        >>> "-20.0 %" in console.file.getvalue()
        True
    """
    console = console or Console()
    sentences = verdicts(comparison)
    for section in comparison.sections:
        runs = sum(len(arm.records) for arm in section.arms)
        counts = f"{len(section.arms)} arm{'s'[: len(section.arms) > 1]}, {runs} run{'s'[: runs > 1]}"
        line = f"{heading(section)} · {counts} · change against {section.baseline}"
        console.print()
        console.print(_text(console, line, "bold"))
        for warning in section.warnings:
            console.print(_text(console, f"Warning: {warning}", "yellow"))
        console.print()
        for part in _parts(section, console.width):
            console.print(_table(section, part, console))
        said = [sentence.text for sentence in sentences if sentence.recipe == section.recipe]
        blocks = [("", said)] if len(said) <= _SENTENCES else list(_by_outcome(section))
        if matched := matched_sentences(section, compare_at_matched_loss(section), brief=True):
            blocks.append(("Methods at equal task loss (means over the range that both cover)", matched))
        for head, texts in blocks:
            if head:
                console.print()
                console.print(_text(console, head, "bold"))
            for text in texts:
                console.print(Padding(_text(console, f"- {text}", ""), (0, 0, 0, 1)))
        console.print()
        console.print(_text(console, _legend(section), "dim"))


def _by_outcome(section: Section) -> Iterator[tuple[str, list[str]]]:
    """Of many arms, what holds of which, method by method."""
    for finding in findings(section):
        yield finding.meaning, [f"{arms}{text}" for arms, text in finding.lines]


def _parts(section: Section, width: int) -> list[list[Metric]]:
    """Scores in as many tables as the width asks for, about equally many in each."""
    scores = list(section.headlines)
    accuracy = [metric for metric in section.of_kind("task") if metric.name == "accuracy" and _has(section, metric)]
    time = [metric for metric in section.of_kind("cost") if metric.name == "step_seconds" and _has(section, metric)]
    first = accuracy if any(metric.name == "exact_zero_share" for metric in scores) else []
    columns = [*first, *scores, *time]
    fit = max(1, (width - _ARM - 4) // _NUMBER - 1)
    tables = max(1, -(-len(columns) // fit))
    size = -(-len(columns) // tables)
    return [columns[start : start + size] for start in range(0, max(1, len(columns)), max(1, size))]


def _has(section: Section, metric: Metric) -> bool:
    return any(arm.cells[metric].value is not None for arm in section.arms)


def _table(section: Section, scores: list[Metric], console: Console) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("arm", min_width=8, max_width=max(_ARM, console.width // 3), overflow="fold")
    table.add_column("n", justify="right")
    for metric in (section.task_loss, *scores):
        table.add_column(_head(console, metric), justify="right", max_width=_NUMBER + 3, overflow="fold")
    columns = (section.task_loss, *scores)
    for arm in section.arms:
        cells = [_cell(section, arm, metric, console) for metric in columns]
        if arm.control_of is None:
            table.add_row(_text(console, arm.name, ""), str(len(arm.records)), *cells)
            continue
        table.add_row(_text(console, f"○ {arm.name}", "dim"), str(len(arm.records)), *cells)
        for matched in section.arms:
            if matched.name != arm.control_of.matches:
                continue
            gains = [(matched.cells[metric].gains or {}).get(arm.name) for metric in columns]
            shown = [change(gain, metric).replace(" %", " pp") for gain, metric in zip(gains, columns, strict=True)]
            table.add_row(_text(console, "  beyond control", ""), "", *(_text(console, text, "") for text in shown))
    return table


def _head(console: Console, metric: Metric) -> Text:
    unit = "%" if metric.unit == "share" else metric.unit
    arrow = {"lower": "↓", "higher": "↑", None: ""}[metric.direction]
    return _text(console, f"{title(metric)}\n{unit} {arrow}".replace("\n ", "\n"), "")


def _cell(section: Section, arm: Arm, metric: Metric, console: Console) -> Text:
    cell = arm.cells[metric]
    mark = "†" if cell.trained_on else ""
    if cell.value is None:
        return _text(console, "–" + mark, "dim")
    few = f" ({cell.value.seeds})" if cell.value.seeds < len(arm.records) else ""
    # The column's head says "seconds" already.
    shown = value(cell, metric).removesuffix(" s") + few
    below = _text(console, shown, "dim")
    if arm.name == section.baseline:
        return _text(console, shown + mark, "")
    outcome = judge(section, arm, metric)
    plain = arm.control_of is not None or metric.kind != "score"
    top = _text(console, change(cell.change, metric), "" if plain else _STYLES.get(outcome, ""))
    top.append_text(_text(console, mark + ("" if plain else _MARKS.get(outcome, "")), "bold"))
    return Text("\n").join([top, below])


def _legend(section: Section) -> str:
    first = (
        f"Upper line: change against {section.baseline}, paired by seed, with the half-width of its 95 % t interval"
        " (pp: percentage points; no interval with 1 seed). Lower line: mean over seeds. n: seeds."
    )
    lines = [first]
    cells = [(arm, metric) for arm in section.arms for metric in section.headlines]
    outcomes = {
        judge(section, arm, metric) for arm, metric in cells if arm.control_of is None and arm.name != section.baseline
    }
    told = sum(
        arm.control_of is None and arm.name != section.baseline and arm.cells[metric].change is not None
        for arm, metric in cells
    )
    if told > 10:
        lines.append(
            f"Each interval stands for itself: of {told} differences that are none in truth, {round(told / 20)} or so"
            " would show one. Only gains, and methods at equal task loss, are adjusted for their number (Holm)."
        )
    if any(arm.control_of is not None for arm in section.arms):
        lines.append(
            "○ "
            + "; ".join(f"{arm.name} ({role(arm)})" for arm in section.arms if arm.control_of is not None)
            + ". Beyond control: the arm's change minus its control's, the gain that counts."
        )
    if "unsure" in outcomes:
        lines.append("? better by its own interval, but not once all comparisons of the table are counted.")
    if "unmatched" in outcomes:
        lines.append("‡ better, but at a task loss that no control matches and that isn't lower beyond seed noise.")
    if "no gain over control" in outcomes:
        lines.append("= better than the baseline, but not than its control.")
    if any(arm.cells[metric].trained_on for arm, metric in cells):
        lines.append("† trained on this score.")
    if any(arm.cells[metric].missing for arm, metric in cells):
        lines.append("–, (n): missing in all, or all but n, seeds; the HTML report has the reasons.")
    return "\n".join(lines)


def _text(console: Console, text: str, style: str) -> Text:
    """Text without markup; names from outside can't move the cursor, and terminals without Unicode get ASCII."""
    shown = "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
    try:
        shown.encode(console.encoding)
    except UnicodeEncodeError:
        shown = shown.translate(_ASCII).encode("ascii", "replace").decode()
    return Text(shown, style=style)
