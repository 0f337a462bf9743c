"""The page of a pruning."""

from html.parser import HTMLParser
from pathlib import Path

from nasplat.artifacts.report_pruning import LatencyRow, LayerRow, PruningReport, write_pruning_report
from nasplat.artifacts.widths_picture import bars_svg
from nasplat.core.drawing import Bar, Bars


class _Balanced(HTMLParser):
    """Fails where a tag is closed that was not opened last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag


def report(**changes: object) -> PruningReport:
    stages = [
        {"title": "original", "macs": 1000, "params": 100, "metrics": {"test_accuracy": 0.9}, "cut": {}},
        {
            "title": "step 1",
            "macs": 500,
            "params": 60,
            "metrics": {"test_accuracy": 0.89},
            "cut": {"test_accuracy": 0.5},
        },
    ]
    layers = [LayerRow(f"layer{n}.<conv>", "Conv2d", (64, 30 + n), (500, 250), (50, 25)) for n in range(20)]
    latencies = [LatencyRow(1, (2.0, 0.1), (1.5, 0.1))]
    return PruningReport("a & b", "m:f", stages, layers, latencies, **changes)  # type: ignore[arg-type]


def test_every_layer_and_number_is_on_the_page(tmp_path: Path) -> None:
    write_pruning_report(report(untouched=[("trunk", 64, "a <reason>")]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    parser = _Balanced()
    parser.feed(page)
    assert not parser.open
    assert "a &amp; b" in page and "<conv>" not in page and "a &lt;reason&gt;" in page
    assert all(f"layer{n}.&lt;conv&gt;" in page and f"64 → {30 + n}" in page for n in range(20))
    assert (
        "50.0%" in page
        and "50.00 % → 89.00 %" in page
        and "75%" in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    assert 'class="note"' not in page


def test_warnings_come_first(tmp_path: Path) -> None:
    write_pruning_report(report(warnings=["smaller but not faster"]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.index("smaller but not faster") < page.index("Widths")


def test_bars_are_as_long_as_layers_are_wide() -> None:
    drawn = bars_svg(Bars((Bar("a", 100, 50), Bar("b", 50, 50)), "channels"))
    widths = [float(part.split('"')[0]) for part in drawn.split('" width="')[2:]]
    assert widths[0] == 2 * widths[1] == 2 * widths[2] == 2 * widths[3] > 0
