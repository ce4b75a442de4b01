"""Makes an HTML report of the runs in ledgers, or the README's table of results.

    python -m experiments.report --ledger=FILE_OR_FOLDER[,...] --output=report.html
    python -m experiments.report --ledger=FILE_OR_FOLDER[,...] --readme=README.md
    python -m experiments.report --ledger=FILE_OR_FOLDER[,...] --presets=presets.md

The report is one file, without scripts and without a need for the network.  The table
goes between the lines `<!-- results -->` and `<!-- end -->`.
"""

from collections.abc import Sequence

from absl import flags

from experiments.reports import page as report_page
from experiments.reports import preset_page, results
from experiments.reports.results import Row
from experiments.reports.statistics import Estimate
from experiments.reports.text import NOTHING, count, interval, number, span
from experiments.runs import command_flags, files, paths, presets

BEGIN, END = "<!-- results -->\n", "<!-- end -->"
COLUMNS = (
    "algorithm",
    "environment",
    "env steps",
    "seeds",
    "return: IQM [95 % interval]",
    "random",
    "best",
    "return - best",
    "passed",
)


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()

    def string(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    meaning = "files, or folders with a ledger.jsonl"
    flags.DEFINE_string("ledger", None, meaning, flag_values=values)
    string("output", "report.html", "the report")
    string("references", "", "file of random and best returns; default: the project's")
    string("readme", "", "file whose table of results to rewrite; then no report")
    string("presets", "", "file for the page of presets; then no report")
    meaning = "normalised return of the time to threshold"
    flags.DEFINE_float("threshold", report_page.THRESHOLD, meaning, flag_values=values)
    if command_flags.parse_or_help(values, argv, __doc__, required="ledger"):
        return
    lines = results.read_ledgers(paths.several(values.ledger))
    references = results.read_references(
        paths.expanded(values.references) if values.references else None
    )
    if values.readme:
        path = paths.expanded(values.readme)
        text = with_table(files.read_text(path), table(results.rows(lines, references)))
    elif values.presets:
        path = paths.expanded(values.presets)
        text = preset_page.markdown(lines)
    else:
        path = paths.expanded(values.output)
        text = report_page.html(lines, references, values.threshold)
    files.write_text(path, text, through_links=True)
    print(f"{path}: {count(len(lines), 'run')}")


def table(rows: Sequence[Row]) -> str:
    """Markdown, a row each.  Raises ValueError if there is none."""
    if not rows:
        raise ValueError("no run has finished: there is nothing to tabulate")
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(map(_plain, x))} |\n" for x in lines)


def cells(row: Row) -> list[str]:
    """Those of COLUMNS."""
    reference = row.reference
    best = reference.best if reference else None
    beside = reference.beside if reference else None
    lost = f" + {row.num_lost} failed" if row.num_lost else ""
    return [
        row.method,
        row.env,
        span([line.get("env_steps") for line in row.lines]),
        f"{len(row.lines)}{lost}",
        interval(row.iqm),
        number(reference.random) if reference else NOTHING,
        NOTHING if best is None else number(best),
        NOTHING if beside is None else interval(_less(row.iqm, beside)),
        _passed(row),
    ]


def _less(estimate: Estimate, amount: float) -> Estimate:
    return Estimate(*(x - amount for x in estimate))


def _passed(row: Row) -> str:
    """How many runs reached the criterion, if they are of a preset."""
    pair = (row.lines[0]["algorithm"], row.env)
    found = presets.found(*pair, row.lines) if pair in presets.names() else []
    if not found:
        return NOTHING
    num = sum(presets.passes(row.env, line) for line in found)
    return f"{num} of {len(found)}"


def _plain(text: str) -> str:
    """What would end a cell of a Markdown table, or be HTML in it, made harmless."""
    for sign, code in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(sign, code)
    return " ".join(text.split())


def with_table(text: str, table: str) -> str:
    """`text` with the table between its marks.  Raises ValueError without marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there is no {BEGIN.strip()} with an {END} behind it")
    return before + begin + table + end + after


if __name__ == "__main__":
    command_flags.command(main)
