"""One HTML page that needs nothing else: no network, no scripts, pictures inline; for phones and for dark rooms too."""

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #d0d0d0; --soft: #f3f3f3; --warn: #9a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #15171a; --line: #3a3f45; --soft: #1f2327; --warn: #ffb27a; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
th { white-space: normal; }
td.text { white-space: normal; min-width: 4rem; } td.long { min-width: 16rem; }
.caption { margin-bottom: 0.3rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figure { margin: 1rem 0; } figcaption { font-size: 0.9rem; }
pre { background: var(--soft); padding: 0.7rem; overflow-x: auto; border-radius: 4px; font-size: 0.85rem; }
.warning { color: var(--warn); }
@media print {
  body { max-width: none; padding: 0; } .scroll { overflow-x: visible; } table { font-size: 0.65rem; }
  th, td, td.text, td.long { white-space: normal; min-width: 0; } pre { white-space: pre-wrap; }
}
"""


_LONG = 30  # letters of a cell that would be a tall, narrow column on a phone


class Table(NamedTuple):
    """caption; header of each column; rows of cells as text. Cells of `text_columns` are aligned to the left."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()


class Picture(NamedTuple):
    """A PNG or GIF with what it shows, in words."""

    content: bytes
    caption: str


class Code(NamedTuple):
    """Text in the letters of a terminal."""

    text: str


class Warning(NamedTuple):
    """A sentence that must not be overlooked."""

    text: str


class Section(NamedTuple):
    """heading; parts: tables, pictures, code, warnings, and paragraphs as plain text."""

    heading: str
    parts: Sequence[Table | Picture | Code | Warning | str]


def with_error(value: float, standard_error: float | None) -> str:
    """A number to the second digit of its standard error, as far as both are known."""
    if standard_error is None or not math.isfinite(standard_error) or not math.isfinite(value):
        return f"{value:.5g}"
    if standard_error <= 1e-9 * abs(value):  # of rounding
        return f"{value:.5g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(standard_error)))
    return f"{value:.{decimals}f} ± {standard_error:.{decimals}f}"


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML of a page; all text is escaped."""
    body = "\n".join(
        f"<section>\n<h2>{escape(section.heading)}</h2>\n" + "\n".join(map(_part, section.parts)) + "\n</section>"
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _part(part: Table | Picture | Code | Warning | str) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        kind = "gif" if part.content.startswith(b"GIF8") else "png"
        source = base64.b64encode(part.content).decode()
        alt = escape(part.caption, quote=True)
        return (
            f'<figure><img alt="{alt}" src="data:image/{kind};base64,{source}">'
            f"<figcaption>{escape(part.caption)}</figcaption></figure>"
        )
    if isinstance(part, Code):
        return f"<pre>{escape(part.text)}</pre>"
    if isinstance(part, Warning):
        return f'<p class="warning">⚠ {escape(part.text)}</p>'
    return f"<p>{escape(part)}</p>"


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_class(table, column)}>{escape(cell)}</th>' for column, cell in enumerate(table.header)
    )
    rows = "\n".join("<tr>" + "".join(_cell(table, *cell) for cell in enumerate(row)) + "</tr>" for row in table.rows)
    return (
        f'<p class="caption">{escape(table.caption)}</p>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(table: Table, column: int, text: str) -> str:
    return f"<td{_class(table, column, len(text) > _LONG)}>{escape(text)}</td>"


def _class(table: Table, column: int, is_long: bool = False) -> str:
    names = "text long" if is_long else "text"
    return f' class="{names}"' if column in table.text_columns else ""
