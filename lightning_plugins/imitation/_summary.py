"""The table that says, once, what was found and what will be done."""

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._sizes import whole_sizes
from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort


@rank_zero_only
def print_summary(built: BuiltCohort, recorder: Recorder, *, term: str) -> None:
    """Prints the primary, what students read and imitate, and the students with their share of the cost.

    Args:
        built: The students and what they were built for.
        recorder: What knows the primary; nothing yet where only another rank has seen it.
        term: What the primary is asked for, in words.
    """
    plan, signature = built.plan, built.plan.signature
    head = Table(show_header=False, box=None, padding=(0, 1))
    kind = "distribution (softmax of the output)" if built.kind == "distribution" else "values (standardised)"
    if recorder.model is not None:
        parameters = sum(whole_sizes(recorder.primary).values())
        name = recorder.model or "the LightningModule"
        head.add_row("primary", f"{name} ({type(recorder.primary).__name__}, {parameters:,} parameters)")
    read = f"{signature.reads} {tuple(signature.input_shape)}"
    head.add_row("students read", read + (f", vocabulary {signature.vocabulary}" if signature.vocabulary else ""))
    each = "each position" if signature.per_position else "each example"
    what = f"{recorder.output!r}, a " if recorder.output is not None else ""
    head.add_row("and imitate", f"{what}{kind}, {signature.outputs} outputs for {each}")
    for name, tap in signature.taps.items():
        head.add_row("and the tap", f"{name}, {tap.units} units (measured, not penalised)")
    head.add_row("term", term)
    students = Table(padding=(0, 1))
    for column in ("student", "width", "parameters", "FLOPs of the primary's", *(["rank"] if built.ranks > 1 else [])):
        students.add_column(column, justify="left" if column == "student" else "right")
    for number, (name, width) in enumerate(zip(built.cohort.names, plan.widths, strict=True)):
        if name in built.cohort.failed:
            continue
        share = f"{plan.student_flops[name] / plan.primary_flops:.1%}" if name in plan.student_flops else "?"
        rank = [str(number % built.ranks)] if built.ranks > 1 else []
        students.add_row(name, str(width), f"{built.sizes[name]:,}", share, *rank)
    console = Console(soft_wrap=True)
    console.print("[bold]legibility[/bold]")
    console.print(head)
    console.print(students)
