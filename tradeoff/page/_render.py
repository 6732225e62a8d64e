"""The comparison as one HTML file that needs no network."""

import base64
import functools
import gzip
import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from legibility.tradeoff._arms import Arm, Comparison, Section
from legibility.tradeoff._plain_table import PlainTable
from legibility.tradeoff._record import RunRecord
from legibility.tradeoff._verdicts import Outcome, Verdict, verdicts
from legibility.tradeoff._wording import heading, role, title, typeset, unit_and_direction
from legibility.tradeoff.page._grouping import groups, looks
from legibility.tradeoff.page._in_short import (
    GUARD_ALARM,
    compared,
    costs_in_words,
    findings,
    guards_in_words,
)
from legibility.tradeoff.page._picture import alt, has_changes, panels, payload
from legibility.tradeoff.page._tables import (
    costs,
    every_run,
    every_score,
    families,
    footnotes,
    guards,
    headline,
    in_words,
)

Further = Mapping[str | None, Sequence[PlainTable]]

TAGS: dict[Outcome, str] = {"no gain over control": "as control", "one seed": "1 seed"}
# Sentences on more arms than this are folded up.
_OPEN_SENTENCES = 8


def write_html(comparison: Comparison, path: str | os.PathLike[str], *, further: Further | None = None) -> Path:
    """Writes `render_html(comparison)` to `path`, all or nothing, and returns the path.

    Args:
        comparison: from `compare`.
        path: the file to write; folders are made as needed.
        further: as for `render_html`.

    Raises:
        ImportError: jinja2 or plotly is missing.
    """
    return write_all_or_nothing(path, render_html(comparison, further=further))


def write_all_or_nothing(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Writes a file so that a reader never sees half of it; what UTF-8 can't hold becomes a question mark."""
    target = Path(path)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render_html(comparison: Comparison, *, further: Further | None = None) -> str:
    """The comparison as one self-contained page: what was compared and found, pictures, tables, how to repeat it.

    The page loads nothing from anywhere; its content security policy forbids that and lets only its own scripts run.
    Every name from a run record is escaped.

    Args:
        comparison: from `compare`.
        further: tables to show below the headline table, by recipe.

    Raises:
        ImportError: jinja2 or plotly is missing; the message says how to install them.
        ValueError: `further` names a recipe that isn't in the comparison.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> "<title>" in render_html(compare([run("plain", 2.0, 0.5), run("<b>", 2.02, 0.4)]))
        True
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            f'the HTML report needs jinja2 and plotly ({error.name} is missing): pip install "legibility[html]"'
        ) from error
    further = check_further(comparison, further)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["typeset"] = typeset
    parts = {name: files("legibility.tradeoff.page").joinpath(name).read_text("utf-8") for name in _PARTS}
    script, plotly = parts["report.js"], get_plotlyjs().replace("\r", "")
    sentences = verdicts(comparison)
    sections = [
        _section(section, sentences, further.get(section.recipe, ()), index)
        for index, section in enumerate(comparison.sections)
    ]
    drawn = {section["id"]: section["payload"] for section in sections if section["panels"]}
    return environment.from_string(parts["report.html.j2"]).render(
        title="Trade-off: " + ", ".join(section["title"] for section in sections),
        sections=sections,
        # Trusted as they stand: JSON without `<`, base64, and this package's own script and style.
        figures=Markup(_script_safe_json(drawn)),
        plotly=Markup(_packed(plotly)),
        script=Markup(script),
        style=Markup(parts["report.css"]),
        policy=f"script-src {_csp_hash(plotly)} {_csp_hash(script)}",
        alarm=f"{GUARD_ALARM:g}",
        tags=TAGS,
    )


_PARTS = ("report.html.j2", "report.css", "report.js")


def check_further(comparison: Comparison, further: Further | None) -> Further:
    """`further` itself, or none, if it names only recipes that the comparison has."""
    there = [section.recipe for section in comparison.sections]
    for recipe in further or {}:
        if recipe not in there:
            raise ValueError(f"`further` must name recipes of the comparison ({there}), got {recipe!r}")
    return further or {}


def _script_safe_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, so nothing in it can close the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


@functools.lru_cache(maxsize=1)
def _packed(script: str) -> str:
    """The script, gzipped, in base64: plotly's 4.8 MB become 2 MB. The same bytes every time."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _csp_hash(script: str) -> str:
    """The script's name in a content security policy: only scripts named there may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _section(section: Section, sentences: list[Verdict], further: Sequence[PlainTable], index: int) -> dict[str, Any]:
    drawn = looks(section)
    records = [record for arm in section.arms for record in arm.records]
    mine = [sentence for sentence in sentences if sentence.recipe == section.recipe]
    names = list(dict.fromkeys(sentence.arm for sentence in mine))
    identity = f"section-{index}"
    figures = payload(section, identity)
    return {
        "id": identity,
        "title": heading(section),
        "baseline": section.baseline,
        "compared": compared(section),
        "warnings": section.warnings,
        "findings": findings(section),
        "verdicts": [(name, drawn[name], [sentence for sentence in mine if sentence.arm == name]) for name in names],
        "open_sentences": len(names) <= _OPEN_SENTENCES,
        "headline": headline(section),
        "footnotes": footnotes(section),
        "further": further,
        "legend": [
            (place, group, len(group.arms), role(group.arms[0]) if group.control else None)
            for place, group in enumerate(groups(section))
        ],
        "far": any(group.far for group in groups(section)),
        "panels": [
            {
                "id": f"{identity}-{place}",
                "title": title(metric),
                "unit": unit_and_direction(metric),
                "alt": alt(section, metric),
            }
            for place, metric in enumerate(panels(section))
        ],
        "has_changes": has_changes(section),
        "payload": figures,
        "attained": any(one for panel in figures["panels"] for view in panel["attained"].values() for one in view),
        "families": families(section),
        "scores": every_score(section),
        "guards": guards(section),
        "guards_in_words": guards_in_words(section),
        "costs": costs(section),
        "costs_in_words": costs_in_words(section),
        "runs": every_run(section),
        "notes": _notes(section),
        "versions": _versions(records),
        "settings": [(arm.name, drawn[arm.name], _setting(arm)) for arm in section.arms],
        "command": _command(section),
    }


def _command(section: Section) -> list[str] | None:
    """What to type to make these runs again; None if they belong to no recipe."""
    if section.recipe is None:
        return None
    numbers = sorted({seed for arm in section.arms for seed in arm.seeds})
    counted = numbers == list(range(len(numbers)))
    # One number would be read as how many, so a single seed is said twice.
    chosen = str(len(numbers)) if counted else ",".join(map(str, numbers if len(numbers) > 1 else numbers * 2))
    preset = _preset(section)
    sweep = f"legibility sweep {shlex.quote(section.recipe)}" + (f" --preset {shlex.quote(preset)}" if preset else "")
    baseline = "" if section.baseline == "plain" else f" --baseline {shlex.quote(section.baseline)}"
    return [f"{sweep} --seeds {chosen}", f"legibility compare runs{baseline}"]


def _preset(section: Section) -> str | None:
    """The preset, if the records lie as a sweep leaves them: RECIPE/PRESET/ARM/seed-N/record.json."""
    found = set()
    for arm in section.arms:
        for source, record in zip(arm.sources, arm.records, strict=True):
            parts = Path(source).parts[-5:-1]
            if len(parts) < 4 or (parts[0], parts[2], parts[3]) != (section.recipe, arm.name, f"seed-{record.seed}"):
                return None
            found.add(parts[1])
    return found.pop() if len(found) == 1 else None


def _notes(section: Section) -> list[str]:
    notes: dict[tuple[str, str], list[int]] = {}
    for arm in section.arms:
        for record in arm.records:
            for note in record.notes:
                notes.setdefault((arm.name, note), []).append(record.seed)
    return [f"{name}, seed {', '.join(map(str, found))}: {note}" for (name, note), found in notes.items()]


def _versions(records: list[RunRecord]) -> list[tuple[str, str]]:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for library, version in record.versions.items():
            found.setdefault(library, {})[version] = None
    return [(library, ", ".join(versions)) for library, versions in sorted(found.items())]


def _setting(arm: Arm) -> dict[str, str]:
    first = arm.records[0]
    shown = {"seeds": ", ".join(map(str, arm.seeds))}
    if first.strengths:
        shown["strengths"] = in_words(first.strengths.items())
    if first.students:
        shown["students"] = ", ".join(first.students)
    if first.settings:
        shown["settings"] = json.dumps(first.settings, ensure_ascii=False, sort_keys=True)
    return shown
