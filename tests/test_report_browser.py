"""Opens reports in a real browser: charts are drawn, folds open, hovering and legends answer, and nothing is amiss."""

import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import unescape

import pytest
from test_experiments_report import EVIL, SEEN, simulated, value

from feedgym.experiments.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

USE = """
const told = {}, until = async (done) => { while (!done()) await new Promise((go) => setTimeout(go, 20)); };
const violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
await until(() => document.documentElement.dataset.drawn !== undefined);
const charts = [...document.querySelectorAll(".chart")];
told.charts = charts.length;
told.drawn = charts.filter((chart) => chart.querySelector("svg path")).length;
told.wide = charts.filter((chart) => chart.querySelector("svg").getBoundingClientRect().width > 150).length;
told.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
told.scrolls = [...document.querySelectorAll(".scroll")].some((table) => table.scrollWidth > table.clientWidth);

const fold = document.querySelector("details"), height = () => fold.getBoundingClientRect().height, closed = height();
fold.querySelector("summary").click();
await until(() => fold.open);
told.opened = height() - closed;

const name = document.querySelector(".legend button"), panel = name.closest(".panels").querySelector(".chart");
const faded = () => [...panel.querySelectorAll("svg [opacity='0.12']")].length;
told.faded = [faded()];
for (const press of [1, 2]) {
  name.click();
  await until(() => (panel.view.signal("only") !== null) === (press === 1));
  await panel.view.runAsync();
  told.faded.push(faded());
}

const evil = charts.find((chart) => chart.textContent.includes("onerror"));
const bar = [...evil.querySelectorAll("g.mark-rect path")].pop(), box = bar.getBoundingClientRect();
const at = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"]) {
  bar.dispatchEvent(new (kind.startsWith("p") ? PointerEvent : MouseEvent)(kind, at));
}
await new Promise((go) => setTimeout(go, 100));
told.hover = document.querySelector("#vg-tooltip-element")?.textContent ?? "";

told.loaded = performance.getEntriesByType("resource").length;
told.ran = window.ran === true;
told.images = document.images.length;
told.violations = violations;
const style = getComputedStyle(document.body);
told.colours = [style.color, style.backgroundColor];
const written = document.createElement("pre");
written.id = "told";
written.textContent = JSON.stringify(told);
document.body.append(written);
"""
"""Uses the page as a reader would, and writes what happened into it."""


def page_to_use(folder):
    """A report with evil texts, and a script that uses it; the page's policy allows that script by its hash."""
    summary, evil = simulated(), "<img src=x onerror='window.ran=true'>" + EVIL.replace("alert(1)", "window.ran=true")
    summary |= {"title": evil, "note": evil, "judged_by": evil}
    summary["agents"][evil] = summary["agents"].pop("mine")
    summary["samples"]["rows"].append([evil, evil, 1, 1, evil, 3, 2.0, 1.0, evil, evil])
    assert len(summary["samples"]["columns"]) == len(SEEN) + 1
    visits = {"mean": [3.0, 2.0], "low": [2.5, 1.5], "high": [3.5, 2.5]}
    agents = {name: {"true_reward": visits, "alive": {"mean": [1, 0.5]}} for name in ("base", "aligned", evil)}
    summary["by_visit"] = {"agents": agents, "difference": {"aligned over base": visits}}
    for agent in summary["agents"].values():
        agent |= {"cost_ms": value(2.0, 0.5), "cost_mflop": {"mean": 12.0, "low": None, "high": None}}
    path = write_report(summary, folder)
    allowed = f"script-src 'sha256-{b64encode(sha256(USE.encode()).digest()).decode()}'"
    text, end, rest = (
        path.read_text().replace("script-src", allowed, 1).rpartition("</body>")
    )  # the library has one too
    path.write_text(f'{text}<script type="module">{USE}</script>{end}{rest}')
    return path


def opened(path, folder, *options):
    """The page after its use in a browser, and the browser's messages about it."""
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--no-first-run"),
        *("--window-size=1280,900", "--virtual-time-budget=60000", "--enable-logging=stderr", "--dump-dom"),
    ]
    done = subprocess.run([*command, *options, path.as_uri()], capture_output=True, text=True, timeout=300)
    assert 'id="told"' in done.stdout, done.stderr[-3000:]
    told = json.loads(unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)[1]))
    return told, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    return opened(page_to_use(tmp_path_factory.mktemp("report")), tmp_path_factory.mktemp("browser"))


def test_every_chart_is_drawn_and_the_console_is_silent(used):
    told, console = used
    assert console == [] and told["violations"] == []
    assert told["drawn"] == told["wide"] == told["charts"] > 15


def test_wide_tables_scroll_within_the_page(used):
    assert used[0]["scrolls"] and used[0]["overflow"] <= 0


def test_folds_open(used):
    assert used[0]["opened"] > 20


def test_a_click_in_the_legend_fades_all_others_and_another_brings_them_back(used):
    before, during, after = used[0]["faded"]
    assert during > before == after == 0


def test_hovering_shows_the_figure_with_its_interval_and_the_name_as_it_was_written(used):
    assert "24.75 [24.50, 25.00]" in used[0]["hover"] and "<img src=x" in used[0]["hover"]


def test_nothing_is_loaded_and_no_text_from_data_runs(used):
    told, _ = used
    assert (told["loaded"], told["ran"], told["images"]) == (0, False, 0)
