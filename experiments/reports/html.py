"""HTML for reports: a page, its sections, tables and figures.  All text is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from experiments.reports import plots
from experiments.reports.figures import Look

# Whatever a ledger says, the page runs no script and loads nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def declared(colours: Sequence[str]) -> str:
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


CSS = """
:root { color-scheme: light dark; --page: #fdfcfa; --ink: #2b3442; --pale: #67707e;
  --grid: #e4e2dc; --stripe: #f4f2ed; --link: #2c71b0; --mark: #9a4a07;
  --markback: #fbead9; LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { --page: #15191f;
  --ink: #dfe3e8; --pale: #98a2b0; --grid: #343b46; --stripe: #1c2129; --link: #74b0e8;
  --mark: #f4b47f; --markback: #43301e; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 88rem;
  background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 1rem; max-width: 46rem; }
.lead { font-size: 1.1rem; } .note, figcaption, .few, small { color: var(--pale); }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .6rem 0;
  border-block: 1px solid var(--grid); font-size: .9rem; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%;
  border-block: 1px solid var(--grid); }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .65rem; text-align: left; vertical-align: baseline;
  white-space: nowrap; }
thead th { border-bottom: 1px solid var(--pale); color: var(--pale);
  font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; } .strong { font-weight: 600; }
.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
.marked { color: var(--mark); background: var(--markback); border-radius: 3px;
  padding: .05rem .35rem; }
.figures { display: grid; gap: 1.5rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 1rem 0 0; max-width: 46rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { fill: currentColor; font-family: system-ui, sans-serif !important; }
figcaption { font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0;
  margin: .6rem 0; list-style: none; font-size: .9rem; overflow-wrap: anywhere; }
.legend span { display: inline-block; width: 1.7rem; margin-right: .5rem;
  vertical-align: middle; }
@media print { body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; border: 0; } table { font-size: 7pt; }
  th, td { white-space: normal; padding: .15rem .3rem; } .long { min-width: 0; }
  h2 { break-after: avoid; } tr, figure { break-inside: avoid; } }
""".replace("LIGHT", declared(plots.COLOURS)).replace("DARK", declared(plots.ON_DARK))


class Cell(NamedTuple):
    """Of a table."""

    text: str
    kind: str = ""  # classes in CSS
    tint: float = 0.0  # of the background, from -1 (the second colour) to 1 (the third)


class Section(NamedTuple):
    title: str
    html: str


def page(title: str, lead: str, note: str, sections: Sequence[Section]) -> str:
    """A whole document."""
    links = [
        f'<a href="#s{i}">{escape(section.title)}</a>'
        for i, section in enumerate(sections)
    ]
    parts = [
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{escape(section.title)}</h2>\n'
        f"{section.html}\n</section>"
        for i, section in enumerate(sections)
    ]
    newline = "\n"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{paragraph(note, "note")}
<nav aria-label="sections">{" ".join(links)}</nav></header>
<main>
{newline.join(parts)}
</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>" if text else ""


def table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str | Cell]]
) -> str:
    """The first cell of each row is its heading.  It scrolls, also by keyboard."""
    numeric = ["number" in _cell(x).kind for x in rows[0]]
    head = "".join(
        f'<th scope="col"{_class("number" * right)}>{escape(text)}</th>'
        for text, right in zip(headings, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(_td(x, first=i == 0) for i, x in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}">'
        f'<table aria-label="{escape(title)}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def right(text: str) -> Cell:
    """A number, as cells have them."""
    return Cell(text, "number")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(x: str | Cell) -> Cell:
    return x if isinstance(x, Cell) else Cell(x)


def _td(x: str | Cell, first: bool) -> str:
    text, kind, tint = _cell(x)
    tag = 'th scope="row"' if first else "td"
    colour = "var(--c2)" if tint > 0 else "var(--c1)"
    mix = f"color-mix(in srgb, {colour} {abs(tint) * 45:.0f}%, transparent)"
    style = f' style="background: {mix}"' if tint else ""
    inside = escape(text)
    if "marked" in kind:
        kind = kind.replace("marked", "").strip()
        inside = f'<span class="marked">{inside}</span>'
    return f"<{tag}{_class(kind)}{style}>{inside}</{tag[:2]}>"


def legend(looks: Mapping[str, Look]) -> str:
    items = [
        f'<li><span style="border-top: 3px {look.dash} var(--c{look.colour})"></span>'
        f"{escape(method)}</li>"
        for method, look in looks.items()
    ]
    return f'<ul class="legend" aria-label="methods">{"".join(items)}</ul>'


def figure(svg: str, caption: str, title: str = "") -> str:
    """`svg` is of `report_figures`."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{heading}{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(parts: Sequence[str]) -> str:
    """Side by side, where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>'
