"""The page that a search is judged by: complete, self-contained, and safe whatever a run's texts hold."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nasplat.artifacts.environment import machine, versions
from nasplat.artifacts.report import (
    FrontMember,
    Interval,
    ReportData,
    ReportTrial,
    TrainedAgain,
    render,
    write_report,
)
from nasplat.artifacts.report_curves import best_so_far, hypervolume_curve
from nasplat.core.drawing import Drawing, Edge, Node
from nasplat.core.front import Goal

GOALS = (Goal("accuracy", "maximize"), Goal("macs", "minimize"))
CELL = Drawing(
    (Node("a", "c[k-1]", "input"), Node("b", "c[k]", "output")), (Edge("a", "b", "sep conv 3x3", "separable"),)
)
NASTY = "</script><script>alert(1)</script><img src=http://evil.example/x>&\"'"


def complete(number: int, accuracy: float, macs: float) -> ReportTrial:
    return ReportTrial(number, f"{number:064x}", "complete", {"accuracy": accuracy, "macs": macs}, seconds=2.5)


TRIALS = (
    complete(0, 0.80, 1_000_000),
    complete(1, 0.70, 2_000_000),
    ReportTrial(2, "f" * 64, "failed", reason=f"the loss became NaN {NASTY}"),
    ReportTrial(3, "e" * 64, "infeasible", {"params": 10_000}, "params 10000 is above 9000"),
    ReportTrial(4, "d" * 64, "infeasible", {"params": 12_000}, "params 12000 is above 9000"),
    complete(5, 0.90, 3_000_000),
    ReportTrial(6, f"{0:064x}", "repeat", {"accuracy": 0.80, "macs": 1_000_000}),
)
DATA = ReportData(
    name="quick",
    goals=GOALS,
    trials=TRIALS,
    front=(
        FrontMember(
            1, f"{5:064x}", 5, TRIALS[5].metrics, {"normal": CELL}, {"op": "conv"}, {"ONNX": "exports/model.onnx"}
        ),
        FrontMember(2, f"{0:064x}", 0, TRIALS[0].metrics, {"normal": CELL}),
    ),
    confirmed=(
        TrainedAgain(5, f"{5:064x}", "b" * 64, 3, {"test_accuracy": Interval(0.89, 0.87, 0.91)}, {"macs": 42_000_000}),
    ),
    experiment={"name": "quick", "train": {"epochs": 5, "augment": None, "steps": [1, 2]}},
    versions=versions(),
    machine=machine(),
    status="finished",
    seconds=135.0,
)


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, visible text, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(DATA))


def test_it_tells_everything_about_the_run(page: Page) -> None:
    told = ["quick", "finished", "7 trials: 3 complete, 1 failed, 2 infeasible, 1 repeat", "2 min 15 s of search"]
    told += ["90.00 %", "1.00 M", "params 10000 is above 9000 (trial 3; the others alike)", "3, 4"]
    told += ["epochs 5", "steps 1, 2", "torch", "python", "sep conv 3x3", "op conv", "89.00 % [87.00 %, 91.00 %]"]
    for words in told:
        assert words in page.text, words
    assert ("a", {"href": "exports/model.onnx"}) in page.tags


def test_it_asks_the_network_for_nothing(page: Page) -> None:
    """A report is opened in trains and behind firewalls, and must not tell anybody that it is read."""
    loading = {"link", "iframe", "img", "source", "video", "object", "embed", "base", "form"}
    assert not [tag for tag, _ in page.tags if tag in loading]
    assert not [attributes for tag, attributes in page.tags if tag == "script" and "src" in attributes]
    policy = next(each["content"] or "" for tag, each in page.tags if tag == "meta" and "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "http" not in policy
    styles = Path(__file__).parents[2] / "nasplat/artifacts/page/report.css"
    assert "url(" not in styles.read_text()
    assert "@import" not in styles.read_text()


def test_texts_of_a_run_cannot_become_code(page: Page) -> None:
    data = replace(DATA, name=NASTY, status=NASTY, notes=(NASTY,), experiment={NASTY: {NASTY: NASTY}}, made=NASTY)
    member = replace(DATA.front[0], values={NASTY: NASTY}, files={NASTY: NASTY}, drawings={NASTY: CELL})
    trials = (*TRIALS, ReportTrial(7, NASTY, "complete", {"accuracy": 0.1, "macs": 1.0, NASTY: 2.0}))
    nasty = Page(render(replace(data, front=(member,), trials=trials)))
    assert len(nasty.scripts) == len(page.scripts) == 3
    assert not [tag for tag, _ in nasty.tags if tag == "img"]
    assert json.loads(nasty.scripts[0])["name"] == NASTY


def test_the_plots_get_all_points(page: Page) -> None:
    data = json.loads(page.scripts[0])
    assert [trial["number"] for trial in data["trials"]] == list(range(7))
    assert [trial["number"] for trial in data["trials"] if trial["front"]] == [0, 5]
    assert "Plotly" in page.scripts[1]


def options(page: str, name: str) -> list[str]:
    (found,) = re.findall(rf'<select id="{name}">(.*?)</select>', page)
    return re.findall(r'value="(.*?)"', found)


def test_an_accuracy_stands_beside_the_costs_of_the_network_it_was_measured_on() -> None:
    """The final networks are larger: their accuracy at the costs of the searched ones is a promise nobody can keep."""
    page = render(DATA)
    told = json.loads(Page(page).scripts[0])
    for side in ("x", "y"):
        assert options(page, f"pareto-{side}") == ["accuracy", "macs"]
        assert options(page, f"again-{side}") == ["test_accuracy", "macs"]
    (again,) = told["confirmed"]
    assert again["metrics"] == {"test_accuracy": 0.89, "macs": 42_000_000}
    assert again["bounds"] == {"test_accuracy": [0.87, 0.91]}
    assert all("test_accuracy" not in trial["metrics"] for trial in told["trials"])
    (trials,) = re.findall(r'<table id="trials">.*?</table>', page, re.DOTALL)
    assert "Test accuracy" not in trials and "89.00 %" not in trials
    (table,) = re.findall(r'<table id="trained-again">.*?</table>', page, re.DOTALL)
    assert "Test accuracy" in table
    (row,) = re.findall(r"<tr>.*?</tr>", table[table.index("<tbody>") :])
    assert re.findall(r">([^<>]+)<", row) == ["5", "bbbbbbbb", "3", "89.00 % [87.00 %, 91.00 %]", "42.0 M"]


def test_what_was_trained_again_without_success_or_with_one_seed() -> None:
    one = replace(DATA.confirmed[0], seeds=1, metrics={"test_accuracy": Interval(0.89)})
    failed = replace(one, trial=0, digest=f"{0:064x}", seeds=0, metrics={})
    page = render(replace(DATA, confirmed=(one, failed)))
    assert "89.00 %<" in page
    assert "all failed" in page
    assert [row["bounds"] for row in json.loads(Page(page).scripts[0])["confirmed"]] == [{}, {}]
    assert 'id="again"' not in render(replace(DATA, confirmed=(failed,)))


def test_the_tiles_name_networks_of_the_front() -> None:
    """Trial 7 needs as little as trial 0, and is worse: nobody wants to be sent there."""
    beaten = complete(7, 0.60, 1_000_000)
    page = Page(render(replace(DATA, trials=(beaten, *TRIALS)))).text
    assert "best Accuracy, trial 5" in page
    assert "least MACs, trial 0" in page


def test_one_is_not_many() -> None:
    text = Page(render(replace(DATA, trials=TRIALS[:1], front=DATA.front[1:]))).text
    assert "1 trial:" in text
    assert "1 network on the front" in text and "1 network trained again" in text
    assert "1 network, the best" in text
    assert "1 networks" not in text


def test_settings_read_as_words() -> None:
    stages = [{"channels": 16, "stride": 1, "kernels": [3, 5]}, {"channels": 24, "stride": 2, "last": True}]
    text = Page(render(replace(DATA, experiment={"space": {"stages": stages, "sizes": [[1, 2], 3]}}))).text
    assert "stages 1 channels 16, stride 1, kernels [3, 5] stages 2 channels 24, stride 2, last yes" in text
    assert "sizes [1, 2], 3" in text
    assert "{" not in text


def test_the_table_has_a_row_for_every_trial_and_sortable_values(page: Page) -> None:
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-state" in attributes]
    assert [row["data-state"] for row in rows] == [trial.state for trial in TRIALS]
    numbers = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    assert "0.9" in numbers
    assert "3000000" in numbers


def test_without_scripts_the_front_is_still_there(page: Page) -> None:
    inside = re.search(r"<noscript>(.*?)</noscript>", render(replace(DATA, trials=TRIALS)), re.DOTALL)
    assert inside
    assert "<svg" in inside[1]


def test_best_so_far() -> None:
    assert best_so_far(DATA) == [(0, 0.80), (5, 0.90)]
    down = replace(DATA, goals=(Goal("macs", "minimize"),))
    assert best_so_far(down) == [(0, 1_000_000), (5, 1_000_000)]


def test_hypervolume_never_falls_and_counts_only_what_is_new() -> None:
    curve = hypervolume_curve(DATA)
    assert [number for number, _ in curve] == [0, 5]
    # Scaled over all trials, less is better: (0.5, 0), then also (0, 1); up to 1.1 on both axes.
    assert curve[0][1] == pytest.approx(0.6 * 1.1 / 1.21)
    assert curve[1][1] == pytest.approx((0.6 * 1.1 + 0.5 * 0.1) / 1.21)
    assert hypervolume_curve(replace(DATA, goals=GOALS[:1])) == []


def test_hypervolume_against_time_goes_by_when_trials_ended() -> None:
    """With parallel workers the first trial may be the last to end: the curve over time is another one."""
    late, early = replace(TRIALS[0], finished=60.0), replace(TRIALS[5], finished=20.0)
    curve = hypervolume_curve(replace(DATA, trials=(late, TRIALS[1], early)), by_time=True)
    assert [seconds for seconds, _ in curve] == [20.0, 60.0]
    assert curve[0][1] < curve[1][1]
    assert hypervolume_curve(DATA, by_time=True) == []  # nobody wrote down when they ended


def test_known_networks_are_named() -> None:
    """A landmark that is not told apart is a dot like any other."""
    page = render(replace(DATA, trials=(replace(TRIALS[0], landmark="darts_v2"), *TRIALS[1:])))
    inside = re.search(r"<noscript>(.*?)</noscript>", page, re.DOTALL)
    assert inside
    assert ">darts_v2</text>" in inside[1]
    assert '<span class="soft">darts_v2</span>' in page


@pytest.mark.parametrize("trials", [(), TRIALS[2:4], (ReportTrial(0, "a" * 64, "running"),)])
def test_a_run_without_results_has_a_page_too(tmp_path: Path, trials: tuple[ReportTrial, ...]) -> None:
    write_report(ReportData("early", GOALS, trials), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No trial is complete yet" in text
    assert len(text) < 100_000  # plotly is left out where there is nothing to plot


def test_one_trial_one_goal_and_odd_numbers() -> None:
    trials = (
        ReportTrial(0, "a" * 64, "complete", {"accuracy": 0.5, "odd": float("inf")}),
        ReportTrial(1, "b" * 64, "complete", {"accuracy": float("nan")}),
        ReportTrial(2, "c" * 64, "complete", {}),
    )
    nan = float("nan")
    odd = TrainedAgain(0, "a" * 64, "a" * 64, 2, {"accuracy": Interval(0.5, nan, nan), "odd": Interval(nan)}, {})
    data = ReportData("one", GOALS[:1], trials, confirmed=(odd,))
    assert data.complete == [trials[0]]
    (again,) = json.loads(Page(render(data)).scripts[0])["confirmed"]
    assert (again["metrics"], again["bounds"], again["text"]["accuracy"]) == ({"accuracy": 0.5}, {}, "50.00 %")


def test_versions_are_told_without_importing_anything() -> None:
    assert {"nasplat", "python", "torch"} <= versions().keys()
    assert {"system", "processor", "cores"} <= machine().keys()
