"""The report in a browser: what its script and its style do with the numbers. Needs a Chromium."""

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from nasplat.artifacts.report import FrontMember, Interval, ReportData, ReportTrial, TrainedAgain, render
from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.core.front import Goal

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DIGESTS = ["a" * 64, "b2" * 32, "c" * 64, "2" * 64]
CHAIN = Drawing(
    tuple(Node(str(place), f"a box with a long name {place}", "other") for place in range(12)),
    tuple(Edge(str(place), str(place + 1)) for place in range(11)),
)
DATA = ReportData(
    name="seen",
    goals=(Goal("accuracy", "maximize"), Goal("macs", "minimize")),
    trials=[
        ReportTrial(number, digest, "complete", {"accuracy": 1.0, "macs": 100_000.0 * (number + 1), "mine:width": 4.0})
        for number, digest in enumerate(DIGESTS)
    ],
    front=[FrontMember(1, DIGESTS[0], 0, {"accuracy": 1.0, "macs": 100_000.0}, {"cell": CHAIN})],
    confirmed=[
        TrainedAgain(
            0, DIGESTS[0], "f" * 64, 3, {"test_accuracy": Interval(0.98, 0.96, 1.0)}, {"macs": 7_000_000, "params": 9}
        )
    ],
)
LOOK = """
const $ = (id) => document.getElementById(id);
const ticks = (id, side) => [...$(id).querySelectorAll(`.${side}tick text`)].map((each) => each.textContent);
const found = (words) => {
  $("search").value = words;
  $("search").dispatchEvent(new Event("input"));
  return [...$("trials").tBodies[0].rows].filter((row) => !row.hidden).map((row) => Number(row.dataset.number));
};
const finds = Object.fromEntries(["2", "02", "b2b", "2b2", ""].map((words) => [words, found(words)]));
const again = $("again").data.at(-1);
document.documentElement.style.width = "390px";
const facts = {
  ticks: { pareto_x: ticks("pareto", "x"), pareto_y: ticks("pareto", "y"), best_x: ticks("best", "x") },
  highest: ["pareto", "best", "again"].map((id) => $(id).layout.yaxis.range[1]),
  again: { x: again.x, y: again.y, up: again.error_y.array, down: again.error_y.arrayminus },
  finds,
  overflow: $("architectures").scrollWidth - $("architectures").clientWidth,
};
document.body.dataset.facts = JSON.stringify(facts);
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser makes of the page, on a screen as narrow as a phone's in the end."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    page = folder / "report.html"
    look = f'<script>addEventListener("load", () => {{ {LOOK} }});</script></body>'
    page.write_text(render(DATA).replace("</body>", look), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    written = re.search(r'data-facts="(.*?)"', done.stdout)
    assert written, done.stderr[-2000:]
    return json.loads(html.unescape(written[1]))


def test_axes_end_where_the_metric_does(facts: dict[str, Any]) -> None:
    """All candidates are right about everything: no axis promises 200 %."""
    assert all(100 < highest < 101 for highest in facts["highest"])
    assert "100 %" in facts["ticks"]["pareto_y"]


def test_ticks_are_written_as_numbers_are_elsewhere(facts: dict[str, Any]) -> None:
    assert all(tick.endswith(" %") for tick in facts["ticks"]["pareto_y"])
    assert "200 k" in facts["ticks"]["pareto_x"]


def test_there_are_no_halves_of_trials(facts: dict[str, Any]) -> None:
    assert facts["ticks"]["best_x"] == ["0", "1", "2", "3"]


def test_a_number_finds_its_trial_and_letters_find_digests_that_start_so(facts: dict[str, Any]) -> None:
    assert facts["finds"] == {"2": [2, 3], "02": [2], "b2b": [1], "2b2": [], "": [0, 1, 2, 3]}


def test_what_was_trained_again_is_drawn_at_its_own_costs_with_its_interval(facts: dict[str, Any]) -> None:
    assert facts["again"]["x"] == [7]  # million
    assert facts["again"]["y"] == pytest.approx([98])
    assert facts["again"]["up"] == pytest.approx([2])
    assert facts["again"]["down"] == pytest.approx([2])


def test_a_wide_drawing_scrolls_in_its_box_and_not_the_page(facts: dict[str, Any]) -> None:
    assert facts["overflow"] <= 0
