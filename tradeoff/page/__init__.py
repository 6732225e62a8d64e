"""The comparison for people to read and to pass on.

- `write_html`, `render_html`: one page in one file (needs `legibility[html]`)
- `draw_picture`: the trade-off as a matplotlib figure (needs `legibility[pictures]`)
- `render_markdown`, `render_csv`, `render_runs_csv`: the tables as text
- `export`: any of these, by the suffix of a file; `check_export` says beforehand whether it knows it
"""

from legibility.tradeoff.page._drawing import draw_picture as draw_picture
from legibility.tradeoff.page._export import check_export as check_export
from legibility.tradeoff.page._export import export as export
from legibility.tradeoff.page._render import render_html as render_html
from legibility.tradeoff.page._render import write_html as write_html
from legibility.tradeoff.page._text import render_csv as render_csv
from legibility.tradeoff.page._text import render_markdown as render_markdown
from legibility.tradeoff.page._text import render_runs_csv as render_runs_csv

__all__ = [
    "check_export",
    "draw_picture",
    "export",
    "render_csv",
    "render_html",
    "render_markdown",
    "render_runs_csv",
    "write_html",
]
