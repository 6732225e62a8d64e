"""The table that says, once, what was found and what will be done."""

from rich.console import Console
from rich.table import Table
from torch import nn

from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort


def print_summary(built: BuiltCohort, *, primary: nn.Module, model: str, term: str) -> None:
    """Prints the primary, what students read and imitate, and the students with their share of the cost.

    Args:
        built: The students and what they were built for.
        primary: The recorded module.
        model: Its name in the LightningModule ("" = the LightningModule itself).
        term: What the primary is asked for, in words.
    """
    cohort, signature, primary_flops = built.cohort, built.signature, built.primary_flops
    head = Table(show_header=False, box=None, padding=(0, 1))
    kind = "distribution (softmax of the output)" if built.kind == "distribution" else "values (standardised)"
    parameters = sum(p.numel() for p in primary.parameters())
    head.add_row("primary", f"{model or 'the LightningModule'} ({type(primary).__name__}, {parameters:,} parameters)")
    read = f"{signature.reads} {tuple(signature.input_shape)}"
    head.add_row("students read", read + (f", vocabulary {signature.vocabulary}" if signature.vocabulary else ""))
    each = "each position" if signature.per_position else "each example"
    head.add_row("and imitate", f"{kind}, {signature.outputs} outputs for {each}")
    for name, tap in signature.taps.items():
        head.add_row("and the tap", f"{name}, {tap.units} units (measured, not penalised)")
    head.add_row("term", term)
    students = Table(padding=(0, 1))
    for column in ("student", "width", "parameters", "FLOPs of the primary's"):
        students.add_column(column, justify="left" if column == "student" else "right")
    for name, network in cohort.networks.items():
        size = sum(p.numel() for p in network.parameters())
        share = f"{built.student_flops[name] / primary_flops:.1%}" if primary_flops else "?"
        students.add_row(name, str(network.width), f"{size:,}", share)
    console = Console(soft_wrap=True)
    console.print("[bold]legibility[/bold]")
    console.print(head)
    console.print(students)
