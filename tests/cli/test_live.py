"""What a person sees while a search or a training runs, on a terminal and in a log file."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from nasplat.cli import live, train
from nasplat.cli.live import SearchView
from nasplat.cli.train import TrainView
from nasplat.core.front import Goal
from nasplat.search.events import INTERRUPTED, Checking, Progress, Started, Told
from nasplat.search.history import Proposal
from nasplat.search.records import Record


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    monkeypatch.setattr(train, "time", clock)
    yield clock


def proposal(number: int) -> Proposal:
    return Proposal(number, {}, "0" * 64, "running")


class Screen:
    """A search on a terminal; `text` is what stands there now."""

    def __init__(self, budget: int | None, workers: int = 2) -> None:
        self.console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
        self.view = SearchView(self.console, [Goal("accuracy", "maximize")], budget, workers)

    @property
    def text(self) -> str:
        with self.console.capture() as captured:
            self.console.print(self.view._render())
        return captured.get()

    def start(self, *numbers: int) -> None:
        for number in numbers:
            self.view.on_event(Started(proposal(number)))

    def run(self, number: int) -> None:
        self.view.on_event(Progress(number, {"share": 0.5, "loss": 1.0}))

    def tell(self, number: int, evaluated: int, budget: int | None = 4) -> None:
        self.view.on_event(Told(proposal(number), evaluated, budget))


def test_the_start_is_not_silent(clock: Clock) -> None:
    """Reading images and starting workers takes longer than the first trial of the quickstart."""
    screen = Screen(4)
    assert "reading the images" in screen.text
    screen.start(0, 1)
    assert "starting 2 workers" in screen.text
    screen.run(0)
    assert "starting 2 workers" not in screen.text and "running: 0 50 % loss 1.00, 1 starts" in screen.text


def test_pace_and_time_left_are_those_of_this_session(clock: Clock) -> None:
    screen = Screen(24)
    screen.start(10, 11)
    clock.now += 8  # while the workers start, nothing is trained
    screen.run(10)
    clock.now += 6
    screen.tell(10, evaluated=11, budget=24)  # 10 were there before: this is the first of this session
    assert "11/24 trials 10 trials/min 1 min 18 s left" in screen.text
    clock.now += 8
    assert "10 trials/min 1 min 10 s left" in screen.text, "the time left runs down, the rate does not sink"


def test_the_bar_stands_still_when_the_budget_is_spent(clock: Clock) -> None:
    screen = Screen(2)
    screen.start(0, 1)
    screen.run(0)
    for number in (0, 1):
        clock.now += 3
        screen.tell(number, number + 1, budget=2)
    assert "searched" in screen.text and "2/2 trials 20 trials/min" in screen.text
    assert "ending 2 workers" in screen.text
    clock.now += 60
    assert "20 trials/min" in screen.text and "left" not in screen.text
    screen.view.after("writing the report")
    assert "writing the report" in screen.text and "ending" not in screen.text


def test_after_ctrl_c_it_tells_what_is_waited_for(clock: Clock) -> None:
    screen = Screen(24)
    screen.start(0, 1)
    screen.run(0)
    screen.view.on_event(INTERRUPTED)
    assert screen.view.interrupted
    assert "finishing 2 trials" in screen.text
    clock.now += 5
    screen.tell(0, 1, budget=24)
    assert "finishing 1 trial" in screen.text and "left" not in screen.text
    screen.tell(1, 2, budget=24)
    assert "searched" in screen.text and "finishing" not in screen.text


def test_a_check_of_the_ranking_tells_how_long_it_takes(clock: Clock) -> None:
    """It may train longer than the search did; in a log file a line now and then is enough."""
    screen, file = Screen(4), io.StringIO()
    log = SearchView(Console(file=file, width=100), [Goal("accuracy", "maximize")], 4)
    for tenth in range(20, 51):  # two were done in an earlier session
        for view in (screen.view, log):
            view.on_event(Checking(tenth / 10, 20, "trained alone"))
        clock.now += 3
    assert "5 of 20 networks trained alone, 7 min 30 s left" in screen.text and "searched" in screen.text
    lines = file.getvalue().splitlines()
    assert 3 <= len(lines) <= 6 and lines[0].endswith("left")
    screen.view.after("writing the report")
    assert "trained alone" not in screen.text


def test_a_log_file_gets_a_line_where_something_changed(clock: Clock) -> None:
    file = io.StringIO()
    with SearchView(Console(file=file, width=100), [Goal("accuracy", "maximize")], 24, 2) as view:
        for number in (0, 1):
            view.on_event(Started(proposal(number)))
        for _ in range(8):
            clock.now += 5
            view.on_event(Progress(0, {"share": 0.5}))
        view.on_event(Told(proposal(0), 1, 24))
        for _ in range(8):
            clock.now += 5
            view.on_event(Progress(1, {"share": 0.5}))
        view.after("writing the report")
    assert file.getvalue().splitlines() == [
        "starting 2 workers",
        "1 of 24 trials · 35 s/trial · 13 min 25 s left",
        "writing the report",
    ]


def trained(view: TrainView, clock: Clock) -> None:
    """Three trainings of 40 s each, one before this session."""
    view.on_start(3, 1)
    for number in (1, 2):
        for tenth in range(1, 11):
            clock.now += 4
            view.on_progress(number, {"share": tenth / 10, "loss": 0.5})
        view.on_finished(number, Record("complete"))


def test_a_log_file_of_train_repeats_nothing(clock: Clock) -> None:
    file = io.StringIO()
    trained(TrainView(Console(file=file, width=100)), clock)
    assert file.getvalue().splitlines() == [
        "1 of 3 trainings done before",
        "2 of 3 trainings · 40 s · 40 s left",
        "3 of 3 trainings · 1 min 20 s",
    ]


def test_train_counts_trainings_and_tells_the_time_left(clock: Clock) -> None:
    file = io.StringIO()
    view = TrainView(Console(file=file, width=100, force_terminal=True, color_system=None))
    view.on_start(2, 0)
    view.on_progress(0, {"share": 0.1, "loss": 2.0})
    clock.now += 9
    view.on_progress(0, {"share": 0.4, "loss": 1.0})
    with view._progress.console.capture() as captured:
        view._progress.console.print(view._progress.get_renderable())
    assert "0/2 trainings 48 s left loss 1.00" in captured.get()
    assert view.finished == "0 of 2 trainings"
