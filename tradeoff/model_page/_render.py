"""One model as one HTML file that needs no network and no script."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from legibility.tradeoff._record import RunRecord, ScoreEntry
from legibility.tradeoff.model_page._charts import number
from legibility.tradeoff.model_page._figures import parts_of
from legibility.tradeoff.model_page._picture import ModelPicture
from legibility.tradeoff.model_page._words import controls_of, cost_in_words, doubts_of, meaning_of, title_of
from legibility.tradeoff.page._render import write_all_or_nothing


def write_model_html(record: RunRecord, picture: ModelPicture, path: str | os.PathLike[str]) -> Path:
    """Writes `render_model_html(record, picture)` to `path`, all or nothing, and returns the path."""
    return write_all_or_nothing(path, render_model_html(record, picture))


def render_model_html(record: RunRecord, picture: ModelPicture) -> str:
    """The page of one model: its scores beside controls, then many small pictures, each with how to read it.

    It loads nothing and runs no script; its content security policy forbids both. Every name is escaped.

    Args:
        record: the run.
        picture: what is drawn.

    Raises:
        ImportError: jinja2 is missing.

    Example:
        >>> from legibility.tradeoff import CostEntry, TaskEntry
        >>> from legibility.tradeoff.model_page import ModelPicture, render_model_html
        >>> record = RunRecord("<b>", 0, None, {}, [], TaskEntry("cross-entropy", 1.5, None, None, 64, "validation"), [],
        ...                    CostEntry(None, None, None, None, None, {}, 10), {})
        >>> page = render_model_html(record, ModelPicture("Sequential", "none"))
        >>> "&lt;b&gt;" in page, "<b>" in page
        (True, False)
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(
            f'the page of a model needs jinja2 ({error.name} is missing): pip install "legibility[html]"'
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["trusted"] = Markup  # the figures escape every name themselves
    style = "".join(
        files(f"legibility.tradeoff.{room}").joinpath(name).read_text("utf-8")
        for room, name in (("page", "report.css"), ("model_page", "model.css"))
    )
    template = files("legibility.tradeoff.model_page").joinpath("model.html.j2").read_text("utf-8")
    shown = [entry for entry in record.scores if entry.family is None]
    heading = f"{record.recipe}: {record.arm}" if record.recipe else record.arm
    return environment.from_string(template).render(
        title=f"{heading}, seed {record.seed}",
        heading=f"{heading}, seed {record.seed}",
        lead=_lead(record, picture),
        cost=cost_in_words(record.cost),
        measured=[_row(entry) for entry in shown if entry.value is not None],
        missing=[(title_of(entry.name), entry.reason or "no value") for entry in shown if entry.value is None],
        notes=record.notes,
        parts=parts_of(picture, record),
        made=_made(record),
        style=Markup(style),
    )


def _lead(record: RunRecord, picture: ModelPicture) -> str:
    task = record.task
    said = [f"{picture.model}, {record.cost.parameters:,} parameters"]
    if task.loss is not None:
        said.append(f"{task.name} {task.loss:.4g} on {task.examples or '?'} of the {task.source} data")
    if task.accuracy is not None:
        said.append(f"accuracy {100 * task.accuracy:.1f} %")
    if record.strengths:
        said.append("strengths: " + ", ".join(f"{name} {value:g}" for name, value in record.strengths.items()))
    if record.control_of is not None:
        said.append(f"a {record.control_of.kind} control of {record.control_of.arm}")
    return "; ".join(said) + "."


def _row(entry: ScoreEntry) -> dict[str, Any]:
    assert entry.value is not None
    beaten = entry.beaten_by
    return {
        "name": title_of(entry.name),
        "meaning": meaning_of(entry.name),
        "value": number(entry.value),
        "interval": "" if entry.interval is None else f"{number(entry.interval[0])} to {number(entry.interval[1])}",
        "unit": entry.unit,
        "direction": entry.direction or "–",
        "trained_on": "yes" if entry.trained_on else "no",
        "controls": [(name, number(value), name in beaten) for name, value in controls_of(entry).items()],
        "doubts": [(name, number(value)) for name, value in doubts_of(entry.details)],
        "without": "; ".join(f"{name}: {reason}" for name, reason in entry.control_reasons.items()),
    }


def _made(record: RunRecord) -> list[tuple[str, str]]:
    found = [("created", record.created), ("seed", str(record.seed))]
    if record.students:
        found.append(("students in training", ", ".join(record.students)))
    found.append(("settings", json.dumps(record.settings, ensure_ascii=False, sort_keys=True)))
    found.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    return found
