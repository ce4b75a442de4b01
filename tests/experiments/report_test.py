"""The report: its page, parsed and in a browser, and the README's table."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.reports import figures, plots
from experiments.reports import html as page_of
from experiments.reports import page as report_page
from experiments.reports import text as report_text
from experiments.reports.results import Reference, rows
from experiments.reports.statistics import Curve, Estimate
from experiments.runs import command_flags

Line = dict[str, Any]
EVIL = '<script>alert("x")</script> & <b>'
REFERENCES = {"pendulum": Reference(0.0, 10.0, EVIL), "maze": Reference(0.0, 1.0, "1")}
VOID = ("meta", "br", "link")
SECTIONS = (
    "Results",
    "All environments together",
    "Learning curves",
    "Sample efficiency",
    "Performance profiles",
    "Time to threshold",
    "Probability of improvement",
    "What failed, and why",
    "Every run",
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


def make_line(env: str, seed: int, level: float, horizon: int, **more: Any) -> Line:
    """A run that learns to return `level`, and a bit more for each seed."""
    steps = [100 * i for i in range(1, 7)]
    returns = [level * i / 6 + 0.01 * seed for i in range(1, 7)]
    line = {
        "run": f"{env} {seed} {horizon}",
        "status": "finished",
        "algorithm": "pets",
        "env": env,
        "seed": seed,
        "num_steps": 6,
        "hyperparameters": {"plan.horizon": horizon},
        "config_digest": "0123",
        "return": returns[-1],
        "env_steps": 600,
        "curves": {
            "episode/return": {"env_steps": steps, "return": returns},
            "eval/return_mean": {"env_steps": steps[1::2], "return": returns[1::2]},
        },
        "curve_digest": "ab" * 32,
        "wall_seconds": 60.0,
        "num_runs": 4,
        "commit": "c0ffee",
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
    }
    return line | more


def make_lines() -> list[Line]:
    """Two methods in two environments with references and one without."""
    lines = [
        make_line(env, seed, level * quality, horizon)
        for env, level in (("pendulum", 9.5), ("maze", 0.95), (EVIL, 100.0))
        for horizon, quality, num in ((5, 0.5, 5), (10, 1.0, 3))
        for seed in range(num)
    ]
    failed = {"status": "failed", "reason": EVIL, "return": None, "folder": EVIL}
    lines.append(make_line("maze", 9, 0.5, 5, **failed))
    lines.append(make_line("maze", 10, 0.5, 5, status="pruned"))
    return lines


class Page(HTMLParser):
    """Tables as lists of rows of text, section titles, tags; checks the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.titles: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.name = dict(attrs)["aria-label"] or ""
            self.tables[self.name] = []
        elif tag == "tr":
            self.tables[self.name].append([])
        self.text = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.tables[self.name][-1].append(self.text)
        elif tag == "h2":
            self.titles.append(self.text)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def html() -> str:
    return report_page.html(make_lines(), REFERENCES, threshold=0.9)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_has_all_sections_tables_and_figures(page: Page) -> None:
    assert tuple(page.titles) == SECTIONS
    assert page.count("figure") == page.count("svg") == 3 + 3
    names = ("Results", SECTIONS[1], *SECTIONS[5:])
    assert tuple(page.tables) == names
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_the_page_asks_for_nothing_and_runs_nothing(html: str, page: Page) -> None:
    assert not re.search(r"https?://|\bsrc\s*=|@import|\burl\((?!#)", html)
    assert {name for name, _ in page.tags}.isdisjoint({"script", "img", "link", "b"})
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    policy = dict(page.tags[3][1])
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "<script" not in html
    assert page.tables[SECTIONS[7]][1][4] == EVIL  # said, not run


def test_the_results_table(page: Page) -> None:
    header, *lines = page.tables["Results"]
    assert header[:5] == ["method", "environment", "env steps", "seeds", header[4]]
    assert len(lines) == 6
    by_name = {tuple(line[:2]): line[2:] for line in lines}
    # 0.475 + 0.01 seed: the IQM of five is the mean of the middle three.
    cells = by_name["pets plan.horizon=5", "maze"]
    assert cells[:2] == ["600", "5 + 1 failed"]
    assert cells[2].startswith("0.4950 [0.4")
    assert cells[3:] == ["0.4950", "0.4750 to 0.5150", "0", "1", "0.495", "15"]
    cells = by_name["pets plan.horizon=10", EVIL]
    assert cells[:2] == ["600", "n = 3"]
    assert cells[5:8] == ["–", "–", "–"]


def test_the_other_tables(page: Page) -> None:
    best, worst = page.tables[SECTIONS[1]][1:]
    assert best[0] == "pets plan.horizon=10"
    assert best[2:] == ["2", "6"]  # environments with a reference, runs
    assert worst[2:] == ["2", "10"]
    times = {tuple(row[:2]): row[2:] for row in page.tables[SECTIONS[5]][1:]}
    assert times["pets plan.horizon=10", "maze"] == [
        "0.9000",
        "3 of 3",
        "600 [600, 600]",
    ]
    assert times["pets plan.horizon=5", "maze"] == ["0.9000", "0 of 5", "never"]
    header, first, second = page.tables[SECTIONS[6]]
    assert header[1:] == [first[0], second[0]]
    assert first[1:] == ["–", "1.00 [1.00, 1.00]"]
    assert second[1:] == ["0.00 [0.00, 0.00]", "–"]
    failures = page.tables[SECTIONS[7]][1:]
    assert [row[3] for row in failures] == ["failed", "pruned"]
    assert len(page.tables[SECTIONS[8]]) == 1 + len(make_lines())


def test_the_summary() -> None:
    assert report_page.summary(make_lines()) == (
        "26 runs, 2 methods, 3 environments: 24 finished, 1 failed, 1 pruned, "
        "0 unfinished."
    )


def test_one_seed_has_no_interval() -> None:
    line = make_line("pendulum", 0, 5.0, 5)
    page = Page(report_page.html([line], REFERENCES, 0.9))
    (cells,) = page.tables["Results"][1:]
    assert cells[3:6] == ["n = 1", "5", "5"]
    assert page.count("figure") == 4


@pytest.mark.parametrize(
    "curves", [{}, {"eval/return_mean": {"env_steps": [], "return": []}}]
)
def test_runs_without_curves_or_references(curves: dict[str, Any]) -> None:
    lines = [make_line("pendulum", i, 5.0, 5, curves=curves) for i in range(5)]
    page = Page(report_page.html(lines, {}, 0.9))
    assert tuple(page.titles) == SECTIONS
    assert page.count("figure") == 0


def test_failures_alone_are_a_report() -> None:
    page = Page(report_page.html([make_line("x", 0, 1.0, 5, status="failed")], {}, 0.9))
    assert set(page.tables) == {SECTIONS[7], SECTIONS[8]}


def test_only_the_best_of_many_methods_are_drawn() -> None:
    lines = [make_line("maze", 0, 0.01 * h, h) for h in range(1, 21)]
    html = report_page.html(lines, REFERENCES, 0.9)
    page = Page(html)
    assert "the 12 of 20 that rank best" in html
    assert len(page.tables["Results"]) == 1 + 20
    best = [f"pets plan.horizon={h}" for h in range(20, 8, -1)]
    assert page.tables[SECTIONS[6]][0][1:] == best


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_every_colour_of_the_figures_is_one_of_the_page() -> None:
    """On light ground and on dark."""
    looks = figures.looks([f"method{i}" for i in range(24)])
    assert len(set(looks.values())) == 24
    assert (
        len(plots.COLOURS)
        == len(plots.ON_DARK)
        == 1 + max(look.colour for look in looks.values())
    )
    for i, (light, dark) in enumerate(zip(plots.COLOURS, plots.ON_DARK, strict=True)):
        found = re.findall(rf"--c{i}: (#[0-9a-f]{{6}});", page_of.CSS)
        assert found == [light, dark]


@pytest.mark.parametrize("factor", [1, 9, 11])
def test_steps_are_on_a_logarithmic_axis_where_budgets_differ(factor: int) -> None:
    curves = [Curve(np.array([1.0, 10.0]) * x, np.zeros(2)) for x in (1, factor)]
    _, axis = plt.subplots()
    figures._steps_axis(axis, curves)
    assert axis.get_xscale() == ("log" if factor == 11 else "linear")
    plt.close()


@pytest.mark.slow
def test_a_browser_without_network_shows_it(tmp_path: Path, html: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(html)
    dom = browse(path, tmp_path, "--dump-dom")
    shown = Page(dom)
    assert len(shown.tables["Results"]) == 1 + 6
    assert shown.count("svg") == 6
    browse(path, tmp_path, "--screenshot=page.png", "--window-size=1200,5000")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in plots.COLOURS[:2]:  # those of the two methods' lines and dots
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - rgb).max(axis=1) < 8).sum() > 2000

    # The page runs no script; a copy without its policy measures what is drawn.
    measure = (
        "<script>document.title = JSON.stringify({sizes: [...document.querySelectorAll("
        "'svg')].map(x => x.getBoundingClientRect()).map(x => [x.width, x.height]), "
        "wide: document.documentElement.scrollWidth})</script></body>"
    )
    copy = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", measure)
    path.write_text(copy)
    for width in (1200, 600):
        dom = browse(path, tmp_path, "--dump-dom", f"--window-size={width},900")
        found = re.search(r"<title>(.*?)</title>", dom)
        assert found
        said = json.loads(found[1])
        assert len(said["sizes"]) == 6
        assert all(w > 300 and h > 150 for w, h in said["sizes"])
        assert said["wide"] <= width  # wide tables scroll in their own box


def browse(path: Path, folder: Path, *flags: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-quic", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={folder / 'browser'}", *flags, path.as_uri()]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    return run.stdout


def test_the_readmes_table() -> None:
    found = report.table(rows(make_lines(), REFERENCES)).splitlines()
    assert found[0].startswith("| algorithm | environment | env steps | seeds |")
    assert len(found) == 2 + 6
    assert "<" not in "".join(found)
    (row,) = [x for x in found if x.startswith("| pets plan.horizon=5 | maze |")]
    pattern = r"600 \| 5 \+ 1 failed \| 0\.4950 \[0\.\d+, 0\.\d+\] \| 0 \| 1 \| -0\.505"
    assert re.search(pattern, row)
    on_those_starts = {"maze": Reference(0.0, 1.0, "1", best_at_starts=0.25)}
    found = report.table(rows(make_lines(), on_those_starts)).splitlines()
    (row,) = [x for x in found if x.startswith("| pets plan.horizon=5 | maze |")]
    assert re.search(r"\| 0 \| 1 \| 0\.2450 \[", row)
    evil = make_line("a|b\nc", 0, 1.0, 5)
    *_, row = report.table(rows([evil], {})).splitlines()
    assert "a\\|b c" in row


def test_only_the_table_of_the_readme_changes(tmp_path: Path) -> None:
    ledger, readme = tmp_path / "ledger.jsonl", tmp_path / "README.md"
    ledger.write_text("".join(json.dumps(x) + "\n" for x in make_lines()))
    before, after = "<!-- returns -->\nx\n<!-- end -->\n", "y\n<!-- end -->\n"
    readme.write_text(f"{before}<!-- results -->\nold\n<!-- end -->{after}")
    for _ in range(2):  # again changes nothing
        report.main(["report", f"--ledger={tmp_path}", f"--readme={readme}"])
        text = readme.read_text()
        start, end = (
            f"{before}<!-- results -->\n| algorithm |",
            f"|\n<!-- end -->{after}",
        )
        assert text.startswith(start)
        assert text.endswith(end)
        assert "old" not in text
        assert text.count("\n") == before.count("\n") + 1 + 8 + after.count("\n")
    assert not (tmp_path / "report.html").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, output = tmp_path / "a.jsonl", tmp_path / "a.html"
    ledger.write_text(json.dumps(make_line("maze", 0, 1.0, 5)) + "\n")
    references = tmp_path / "references.json"
    references.write_text('{"maze": {"random": 0, "best": 1, "best_is": "a proof"}}')
    flags = [f"--ledger={ledger}", f"--output={output}", f"--references={references}"]
    report.main(["report", *flags, "--threshold=0.25"])
    assert capsys.readouterr().out == f"{output}: 1 run\n"
    text = output.read_text()
    assert "maze: a proof" in text
    *_, (_, _, level, reached, steps) = Page(text).tables["Time to threshold"]
    assert (level, reached, steps) == ("0.2500", "1 of 1", "200")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--ledger is needed"),
        (["--ledger=/nowhere"], 1, "cannot read the ledger /nowhere"),
        (["--ledger={0}"], 1, "ledger.jsonl"),
        (["--ledger={0}/empty"], 1, "there is no run in {0}/empty"),
        (["--ledger={0}/bad"], 1, "{0}/bad, line 1 is no run"),
        (
            ["--ledger={0}/good", "--references=/no"],
            1,
            "cannot read the references /no",
        ),
        (["--ledger={0}/good", "--references={0}/bad"], 1, "{0}/bad is not JSON"),
        (["--ledger={0}/good", "--output={0}/no/a"], 1, "cannot write {0}/no/a"),
        (["--ledger={0}/good", "--readme={0}/no"], 1, "cannot read {0}/no"),
        (["--ledger={0}/good", "--readme={0}/empty"], 1, "no <!-- results -->"),
        (["--ledger={0}/failed", "--readme={0}/empty"], 1, "no run has finished"),
        (["--ledger={0}/good", "--treshold=1"], 2, "did you mean --threshold"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: int,
    words: str,
) -> None:
    line = make_line("maze", 0, 1.0, 5)
    (tmp_path / "empty").write_text("")
    (tmp_path / "bad").write_text("no JSON\n")
    (tmp_path / "good").write_text(json.dumps(line) + "\n")
    (tmp_path / "failed").write_text(json.dumps(line | {"status": "failed"}) + "\n")
    monkeypatch.setattr(sys, "argv", ["x", *(x.format(tmp_path) for x in arguments)])
    with pytest.raises(SystemExit) as stopped:
        command_flags.command(report.main)
    assert stopped.value.code == code
    (said,) = capsys.readouterr().err.splitlines()
    assert words.format(tmp_path) in said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (200.0, "200"),
        (1234567.8, "1,234,568"),
        (-186.123, "-186.1"),
        (12.3456, "12.35"),
        (0.123456, "0.1235"),
        (0.000123456, "0.000123"),
        (np.inf, "never"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert report_text.number(value) == text


def test_intervals_and_spans() -> None:
    def interval(*x: float) -> str:
        return report_text.interval(Estimate(*map(np.array, x)))

    assert interval(1.5, 1.25, 2) == "1.500 [1.250, 2]"
    assert interval(1, np.nan, np.nan) == "1"
    assert interval(np.inf, 400, np.inf) == "never [400, never]"
    assert interval(np.inf, np.inf, np.inf) == "never"
    assert report_text.span([3, None, 1]) == "1 to 3"
    assert report_text.span([3, 3]) == "3"
    assert report_text.span([None]) == report_text.NOTHING


@pytest.mark.parametrize("flag", ["readme", "output", "presets"])
def test_a_full_disk_cuts_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    book, path = tmp_path / "ledger.jsonl", tmp_path / "page"
    book.write_text(json.dumps(make_line("pendulum", 0, 1.0, 5)) + "\n")
    text = f"{report.BEGIN}{report.END}"
    path.write_text(text)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*page: No space left"):
        report.main(["report", f"--ledger={book}", f"--{flag}={path}"])
    assert path.read_text() == text


def test_a_name_that_is_not_utf_8_is_shown_by_its_code(tmp_path: Path) -> None:
    book, path = tmp_path / "ledger.jsonl", tmp_path / "report.html"
    line = make_line("pendulum", 0, 1.0, 5, folder="runs/\udcff")
    book.write_text(json.dumps(line) + "\n")
    report.main(["report", f"--ledger={book}", f"--output={path}"])
    assert r"runs/\udcff" in path.read_text()


def test_a_link_to_the_readme_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(f"{report.BEGIN}{report.END}")
    (tmp_path / "link").symlink_to("real")
    book = tmp_path / "ledger.jsonl"
    book.write_text(json.dumps(make_line("pendulum", 0, 1.0, 5)) + "\n")
    report.main(["report", f"--ledger={book}", f"--readme={tmp_path / 'link'}"])
    assert (tmp_path / "link").is_symlink()
    assert "| pets |" in (tmp_path / "real").read_text()


def test_a_readme_that_is_no_text_is_named(tmp_path: Path) -> None:
    book, path = tmp_path / "ledger.jsonl", tmp_path / "README.md"
    book.write_text(json.dumps(make_line("pendulum", 0, 1.0, 5)) + "\n")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"README.md is not UTF-8 text"):
        report.main(["report", f"--ledger={book}", f"--readme={path}"])
