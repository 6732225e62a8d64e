"""A comparison in Weights & Biases: one run of its own with charts, tables and the page; and a W&B report."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from legibility.tradeoff import Arm, Comparison, Metric, Section, front, verdicts

_LOSS = "task loss"
_PANEL_WIDTH, _PANEL_HEIGHT = 12, 8  # of a report's 24 columns


def publish(compared: Comparison, page: Path, project: str, console: Console, *, report: bool = False) -> int:
    """Logs a comparison to a W&B project as a run of job type ``comparison``.

    For each recipe: the table of its runs, for each headline score a custom chart (task loss across, the score up) and
    the same by arm with its front; what can be said, in sentences; the whole page; page and records as an artifact.

    Args:
        compared: The comparison.
        page: Its HTML page.
        project: W&B's project; ``WANDB_ENTITY`` and ``WANDB_MODE`` hold as ever.
        console: Where to print.
        report: Write a W&B report about the project's runs too; needs ``legibility[wandb-report]`` and a login.

    Returns:
        0, or 1 if W&B failed: what was compared is on disk all the same.
    """
    import wandb

    try:
        run = wandb.init(project=project, job_type="comparison", name="trade-off", tags=["comparison"])
        try:
            run.log(_logged(compared, page))
            artifact = wandb.Artifact("trade-off", "comparison")
            artifact.add_file(str(page), name="tradeoff.html")
            for number, source in enumerate(_files(compared)):
                artifact.add_file(str(source), name=f"records/{number}.json")
            run.log_artifact(artifact)
        finally:
            run.finish()
        where = run.url or run.dir
        console.print(f"Weights & Biases: {where}", highlight=False, markup=False)
        if report:
            saved = wandb_report(compared, project, os.environ.get("WANDB_ENTITY") or run.entity)
            saved.save()
            console.print(f"W&B report: {saved.url}", highlight=False, markup=False)
    except Exception as error:  # noqa: BLE001 - whatever a foreign service raises
        console.print(f"Weights & Biases failed: {type(error).__name__}: {error}", highlight=False, markup=False)
        return 1
    return 0


def wandb_report(compared: Comparison, project: str, entity: str) -> Any:
    """A W&B report of the runs in a project, not saved yet: sentences, then for each recipe its scores over task loss.

    Panels read the runs' summaries, so the report stays true when runs are added; the sentences are those of now.

    Args:
        compared: Decides which recipes and scores are shown.
        project: Where runs of ``--wandb`` are.
        entity: Whose project it is.

    Raises:
        ImportError: ``wandb-workspaces`` is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise ImportError(f'a W&B report needs: pip install "legibility[wandb-report]" ({error})') from error

    blocks: list[Any] = [
        wr.P(
            "Scores of students that took no part in training, over task loss. A point is one run: an arm with a seed."
        )
    ]
    for section in compared.sections:
        blocks += [wr.H2(_name(section)), wr.MarkdownBlock("\n".join(f"- {text}" for text in _sentences(section)))]
        runs = wr.Runset(
            entity=entity,
            project=project,
            name=_name(section),
            filters=f"Tags in ['{section.recipe}']" if section.recipe else "",  # as `--wandb` tags them
            groupby=["config.legibility.arm"],
        )
        panels = [
            wr.ScatterPlot(
                title=metric.name,
                x=wr.SummaryMetric("legibility/task/loss"),
                y=wr.SummaryMetric(f"legibility/score/{metric.name}"),
                layout=_layout(wr, index),
            )
            for index, metric in enumerate(section.headlines)
        ]
        panels.append(wr.RunComparer(diff_only="split", layout=_layout(wr, len(panels))))
        blocks.append(wr.PanelGrid(runsets=[runs], panels=panels))
    title = "What interpretability costs"
    return wr.Report(project=project, entity=entity, title=title, blocks=blocks, width="fluid")


def _layout(wr: Any, index: int) -> Any:
    row, column = divmod(index, 2)
    return wr.Layout(x=column * _PANEL_WIDTH, y=row * _PANEL_HEIGHT, w=_PANEL_WIDTH, h=_PANEL_HEIGHT)


def _logged(compared: Comparison, page: Path) -> dict[str, Any]:
    import wandb

    logged: dict[str, Any] = {"tradeoff/page": wandb.Html(page.read_text(encoding="utf-8"), inject=False)}
    for section in compared.sections:
        prefix = f"tradeoff/{_name(section)}"
        said = [[text] for text in _sentences(section)]
        logged[f"{prefix}/verdicts"] = wandb.Table(columns=["verdict"], data=said)
        names = [metric.name for metric in section.headlines]
        rows = [row for arm in section.arms for row in _rows(arm, names)]
        logged[f"{prefix}/runs"] = wandb.Table(columns=["arm", "seed", "role", _LOSS, *names], data=rows)
        for place, metric in enumerate(section.headlines):
            points = [[*row[:4], row[4 + place]] for row in rows if row[3] is not None and row[4 + place] is not None]
            table = wandb.Table(columns=["arm", "seed", "role", _LOSS, metric.name], data=points)
            chart = wandb.plot.scatter(table, _LOSS, metric.name, title=f"{_name(section)}: {metric.name}")
            logged[f"{prefix}/{metric.name}"] = chart
            logged[f"{prefix}/{metric.name} by arm"] = _figure(section, metric)
    return logged


def _rows(arm: Arm, scores: list[str]) -> list[list[Any]]:
    role = "arm" if arm.control_of is None else f"{arm.control_of.kind} control"
    rows = []
    for record in arm.records:
        values = {entry.name: entry.value for entry in record.scores if entry.family is None}
        rows.append([arm.name, record.seed, role, record.task.loss, *(values.get(name) for name in scores)])
    return rows


def _figure(section: Section, metric: Metric) -> Any:
    """Every run, each arm's mean, and the front of the means."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in section.arms:
        points = [row for row in _rows(arm, [metric.name]) if row[3] is not None and row[4] is not None]
        symbol = "circle" if arm.control_of is None else "x"
        figure.add_scatter(
            x=[row[3] for row in points],
            y=[row[4] for row in points],
            text=[f"{row[0]}, seed {row[1]}" for row in points],
            name=arm.name,
            mode="markers",
            marker={"symbol": symbol, "size": 9},
        )
    best = [(arm.cells[section.task_loss].value, arm.cells[metric].value) for arm in front(section, metric)]
    known = [(loss.mean, value.mean) for loss, value in best if loss is not None and value is not None]
    figure.add_scatter(
        x=[loss for loss, _ in known],
        y=[value for _, value in known],
        name="front of the means",
        mode="lines",
        line={"dash": "dot"},
    )
    better = f" ({metric.direction} is better)" if metric.direction else ""
    figure.update_layout(xaxis_title=_LOSS, yaxis_title=f"{metric.name}, {metric.unit}{better}")
    return figure


def _name(section: Section) -> str:
    return section.recipe or "runs"


def _sentences(section: Section) -> list[str]:
    return [str(verdict) for verdict in verdicts(Comparison((section,)))]


def _files(compared: Comparison) -> list[Path]:
    """The records that are files here; those read from W&B are there already."""
    sources = [Path(source) for section in compared.sections for arm in section.arms for source in arm.sources]
    return [source for source in sources if source.is_file()]
