"""How fast is it?  Next to the machine's own matrix product, and next to a peer.

    python -m benchmarks.speed                     # everything: minutes
    python -m benchmarks.speed --only=planning,fitting
    python -m benchmarks.speed --readme            # put what is measured there

Each topic runs in a process of its own, so that memory and caches are its own.  What
is measured replaces what the results file has about those topics.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from benchmarks.topics import TOPICS
from experiments.runs import files, run_folder

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
RESULTS = FOLDER / "results"
PEER = RESULTS / "peer_mbrl_lib_cpu.json"
TABLES = {"speed": "speed_cpu.json", "speed on a GPU": "speed_nvidia-h200.json"}
Result = dict[str, Any]


def measure(topic: str) -> Result:
    """What `topics.py` prints about the topic."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.topics", topic],
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def table(results: dict[str, Result], peer: list[Result]) -> str:
    """Markdown, a row per figure; `peer` has the rows of a peer on the same machine."""
    theirs = {(row["topic"], row["case"], row["unit"]): row["figure"] for row in peer}
    lines = [
        "| topic | case | figure | unit | mbrl-lib | s on the wall | GFLOP/s | of the "
        "product |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for result in results.values():
        for row in result["rows"]:
            key = row["topic"], row["case"], row["unit"]
            cells = [
                row["topic"],
                row["case"],
                number(row["figure"]),
                row["unit"],
                number(theirs.get(key)),
                number(row["wall"]),
                number(row["gflops"]),
                number(row["ratio"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peer_rows(results: dict[str, Result]) -> list[Result]:
    """The peer's rows, if ours are of a CPU too and it has been measured."""
    on_cpu = any(result["machine"]["platform"] == "cpu" for result in results.values())
    if not (on_cpu and PEER.exists()):
        return []
    return json.loads(PEER.read_text())["rows"]


def with_table(text: str, results: dict[str, Result], mark: str = "speed") -> str:
    """`text` with the table between its two marks."""
    mark = f"<!-- {mark} -->\n"
    before, _, rest = text.partition(mark)
    _, _, after = rest.partition("<!-- end -->")
    content = table(results, peer_rows(results))
    return f"{before}{mark}{content}\n<!-- end -->{after}"


def results_path(machine: Result) -> Path:
    kind = machine["device"].lower().replace(" ", "-")
    return RESULTS / f"speed_{kind}.json"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.readme:
        text = README.read_text()
        for mark, name in TABLES.items():
            text = with_table(text, json.loads((RESULTS / name).read_text()), mark)
        files.write_text(README, text, through_links=True)
        return
    unknown = set(flags.FLAGS.only) - set(TOPICS)
    if unknown:
        raise app.UsageError(f"unknown topics {unknown}; known are {list(TOPICS)}")
    results: dict[str, Result] = {}
    for topic in flags.FLAGS.only:
        print(f"{topic} ...", file=sys.stderr, flush=True)
        result = measure(topic)
        path = Path(flags.FLAGS.output or results_path(result["machine"]))
        if not results and path.exists():
            results = json.loads(path.read_text())
        results[topic] = result
        run_folder.write_json(
            path, {name: results[name] for name in TOPICS if name in results}
        )
    ordered = {name: results[name] for name in TOPICS if name in results}
    print(table(ordered, peer_rows(ordered)))


if __name__ == "__main__":
    flags.DEFINE_list("only", list(TOPICS), "topics to measure")
    flags.DEFINE_string("output", "", "results file; default: one for each device")
    flags.DEFINE_boolean("readme", False, "only write the tables into README.md")
    app.run(main)
