"""The trade-off: what interpretability costs in task loss, from run records to one honest picture.

Records (one JSON file per run) are written by `legibility.lightning_plugins` and read here; nothing here knows torch
or Lightning.

- the run record: `RunRecord` and its parts, `save_record`, `load_record`, `find_records`, `json_schema`;
  `read_records` reads folders, W&B's offline runs and W&B projects
- the comparison: `compare` makes a `Comparison`: arms against a baseline, paired by seed, beyond their controls;
  `front`, `is_matched`; `verdicts` puts it into sentences
- methods against methods (`legibility.tradeoff.statistics`): at equal task loss, what each can reach, rank correlations
- showing it: `print_comparison` (terminal); `page` holds the rest: `write_html` and `render_html` (one page; needs
  `legibility[html]`), `render_markdown`, `render_csv`, `render_runs_csv`, `draw_picture` (needs `legibility[pictures]`),
  and `export`, which writes any of them by the file's suffix; `PlainTable` is a table to add to page and Markdown
"""

from legibility.tradeoff._arms import Arm as Arm
from legibility.tradeoff._arms import Cell as Cell
from legibility.tradeoff._arms import Comparison as Comparison
from legibility.tradeoff._arms import Metric as Metric
from legibility.tradeoff._arms import Section as Section
from legibility.tradeoff._arms import front as front
from legibility.tradeoff._arms import is_matched as is_matched
from legibility.tradeoff._comparison import HEADLINES as HEADLINES
from legibility.tradeoff._comparison import compare as compare
from legibility.tradeoff._further_tables import further_tables as further_tables
from legibility.tradeoff._plain_table import PlainTable as PlainTable
from legibility.tradeoff._record import DOUBTED_BY as DOUBTED_BY
from legibility.tradeoff._record import SCHEMA as SCHEMA
from legibility.tradeoff._record import ControlOf as ControlOf
from legibility.tradeoff._record import CostEntry as CostEntry
from legibility.tradeoff._record import RunRecord as RunRecord
from legibility.tradeoff._record import ScoreEntry as ScoreEntry
from legibility.tradeoff._record import TaskEntry as TaskEntry
from legibility.tradeoff._statistics import CONFIDENCE as CONFIDENCE
from legibility.tradeoff._statistics import Estimate as Estimate
from legibility.tradeoff._statistics import estimate as estimate
from legibility.tradeoff._statistics import t_probability as t_probability
from legibility.tradeoff._statistics import t_quantile as t_quantile
from legibility.tradeoff._terminal import print_comparison as print_comparison
from legibility.tradeoff._verdicts import Verdict as Verdict
from legibility.tradeoff._verdicts import judge as judge
from legibility.tradeoff._verdicts import verdicts as verdicts
from legibility.tradeoff.page import check_export as check_export
from legibility.tradeoff.page import draw_picture as draw_picture
from legibility.tradeoff.page import export as export
from legibility.tradeoff.page import render_csv as render_csv
from legibility.tradeoff.page import render_html as render_html
from legibility.tradeoff.page import render_markdown as render_markdown
from legibility.tradeoff.page import render_runs_csv as render_runs_csv
from legibility.tradeoff.page import write_html as write_html
from legibility.tradeoff.records import LeftOut as LeftOut
from legibility.tradeoff.records import Records as Records
from legibility.tradeoff.records import find_records as find_records
from legibility.tradeoff.records import json_schema as json_schema
from legibility.tradeoff.records import load_record as load_record
from legibility.tradeoff.records import read_records as read_records
from legibility.tradeoff.records import save_record as save_record

__all__ = [
    "CONFIDENCE",
    "DOUBTED_BY",
    "HEADLINES",
    "SCHEMA",
    "Arm",
    "Cell",
    "Comparison",
    "ControlOf",
    "CostEntry",
    "Estimate",
    "LeftOut",
    "Metric",
    "PlainTable",
    "Records",
    "RunRecord",
    "ScoreEntry",
    "Section",
    "TaskEntry",
    "Verdict",
    "check_export",
    "compare",
    "draw_picture",
    "estimate",
    "export",
    "find_records",
    "front",
    "further_tables",
    "is_matched",
    "json_schema",
    "judge",
    "load_record",
    "print_comparison",
    "read_records",
    "render_csv",
    "render_html",
    "render_markdown",
    "render_runs_csv",
    "save_record",
    "t_probability",
    "t_quantile",
    "verdicts",
    "write_html",
]
