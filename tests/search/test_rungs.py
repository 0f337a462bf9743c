"""Early stopping, screening and known networks in a running search."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.front import Goal
from nasplat.search.driver import Result, run_search
from nasplat.search.events import Asked, Event, Judged, Started
from nasplat.search.history import History, Proposal
from nasplat.search.records import OnProgress, Record, TrialSpec
from nasplat.search.rungs import FEWEST, Rungs
from nasplat.search.screening import threshold
from nasplat.search.suggestion import Suggestion
from tests.search.toys import ToySpace, experiment, metrics, proposals, table

GOALS = (Goal("accuracy", "maximize"), Goal("params", "minimize"))
STOPPING = {"early_stopping": {"rule": "asha", "reduction": 3, "rungs": 3}}


def smooth(spec: TrialSpec, on_progress: OnProgress) -> Record:
    found = metrics(spec)
    return Record("complete", {**found, "accuracy": found["accuracy"] * (0.4 + 0.6 * spec.until)})


def learning(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """An accuracy that grows with training; a third of the candidates fail at the second rung."""
    if spec.until > 0.2 and int(spec.architecture["digest"][:4], 16) % 5 == 0:
        return Record("failed", reason="the loss became NaN")
    return smooth(spec, on_progress)


def run(
    directory: Path, events: list[Event] | None = None, trials: int = 18, evaluate: Any = learning, **sections: Any
) -> Result:
    directory.mkdir(exist_ok=True)
    watch = (lambda event: None) if events is None else events.append
    chosen = experiment(trials=trials, **{"search": STOPPING, **sections})
    return run_search(chosen, RunDirectory(directory), ToySpace(), resume=True, evaluate=evaluate, on_event=watch)


def test_only_the_best_are_trained_to_their_end(tmp_path: Path) -> None:
    """The point of it: most candidates cost a ninth of a training, and the front holds none that was not finished."""
    events: list[Event] = []
    result = run(tmp_path, events)
    states = [one.state for one in result.history]
    assert result.history.evaluated == 18 and set(states) == {"complete", "stopped", "failed"}
    assert states.count("stopped") > 8 and 1 <= states.count("complete") <= 6
    for one in result.history:
        if one.state == "stopped":
            assert "stopped early" in one.reason and one.metrics["accuracy"] == one.rungs[-1]["accuracy"]
            assert len(one.rungs) == one.rung + 1
        if one.state == "complete":
            assert one.rung == 2 and len(one.rungs) == 2
    complete = {one.number for one in result.history.complete}
    assert {score.notes["number"] for score in result.front} <= complete
    shares = [event.share for event in events if isinstance(event, Started)]
    assert shares.count(pytest.approx(1 / 9)) == 18
    assert sum(isinstance(event, Judged) for event in events) >= 18
    # Trained shares, each rung from where the last one stopped: far below 18 full trainings.
    assert sum(share - share / 3 if share > 0.2 else share for share in shares) < 9


def test_the_best_at_a_rung_go_on_and_not_the_first(tmp_path: Path) -> None:
    """A bracket is halved when all of it are judged: nobody is trained on for having come early."""
    halving = {"rule": "halving", "reduction": 3, "rungs": 2, "bracket": 9}
    history = run(tmp_path, evaluate=smooth, search={"early_stopping": halving}).history
    for start in (0, 9):
        bracket = [one for one in history if start <= one.number < start + 9]
        gone = [one for one in bracket if one.rung == 1]
        assert len(gone) == 3
        front = [one for one in bracket if not any(_beats(other, one) for other in bracket)]
        assert all(one in front for one in gone) or len(front) < 3


def _beats(one: Proposal, other: Proposal) -> bool:
    a, b = ((p.rungs[0]["accuracy"], -p.metrics["macs"], -p.metrics["params"]) for p in (one, other))
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def test_an_interrupted_search_with_paused_trials_goes_on(tmp_path: Path) -> None:
    """Trials that wait for a promotion are no trials in flight: they must neither be lost nor trained again."""
    whole = run(tmp_path / "whole")
    started: list[tuple[int, float]] = []

    class Enough(Exception):
        pass

    def stopping(spec: TrialSpec, on_progress: OnProgress) -> Record:
        started.append((spec.number, spec.until))
        if len(started) % 7 == 5:
            raise KeyboardInterrupt
        return learning(spec, on_progress)

    for _ in range(20):
        try:
            resumed = run(tmp_path / "cut", evaluate=stopping)
            break
        except KeyboardInterrupt:
            continue
    assert proposals(resumed.history) == proposals(whole.history)
    assert table(resumed.history) == table(whole.history)
    again = [one for one in set(started) if started.count(one) > 1]
    assert len(again) <= len(started) // 7 + 1  # those that were cut off, and no other


def test_strategies_see_all_trials_at_one_rung() -> None:
    """Accuracies after a ninth and after all of the training in one model would tell of the budget, not the network."""
    from nasplat.core.experiment import EarlyStopping

    rungs = Rungs(EarlyStopping(rungs=2), GOALS)
    early = [
        Proposal(n, {}, str(n), "running", {"params": 1.0}, rung=0, rungs=({"accuracy": n / 100},))
        for n in range(FEWEST + 3)
    ]
    late = [replace(one, state="complete", metrics={"params": 1.0, "accuracy": 0.9}, rung=1) for one in early[:3]]
    history = rungs.seen(History([*late, *early[3:]]))
    assert [one.metrics["accuracy"] for one in history.complete] == [n / 100 for n in range(FEWEST + 3)]
    late = [replace(one, state="complete", metrics={"params": 1.0, "accuracy": 0.9}, rung=1) for one in early[:FEWEST]]
    history = rungs.seen(History([*late, *early[FEWEST:]]))
    assert [one.metrics["accuracy"] for one in history.complete] == [0.9] * FEWEST
    assert [one.state for one in history][-3:] == ["running"] * 3


def test_what_a_cheap_score_drops_costs_no_trial(tmp_path: Path) -> None:
    """A screened candidate is told with its reason, is not proposed again, and leaves the budget alone."""

    def screened(spec: TrialSpec, on_progress: OnProgress) -> Record:
        found = {**metrics(spec), "naswot": int(spec.architecture["digest"][:4], 16)}
        if spec.threshold is not None and found["naswot"] < spec.threshold:
            return Record("screened", found, f"screened: {found['naswot']} is below {spec.threshold}")
        return Record("complete", found)

    search = {"strategy": "random", "screen": {"by": "naswot", "keep": 0.4, "after": 6}}
    result = run(tmp_path, evaluate=screened, trials=30, search=search)
    states = [one.state for one in result.history]
    assert states[:6] == ["complete"] * 6 and states.count("complete") == 30 == result.history.evaluated
    dropped = [one for one in result.history if one.state == "screened"]
    assert len(dropped) > 5 and all(one.reason.startswith("screened") for one in dropped)
    assert len({one.digest for one in result.history}) == len(states) - states.count("repeat")
    for one in dropped:  # something no larger was better by the score
        no_larger = [other for other in result.history if other.metrics["params"] <= one.metrics["params"]]
        assert max(other.metrics["naswot"] for other in no_larger) > one.metrics["naswot"]


def test_the_threshold_is_the_quantile_that_keeps_the_share() -> None:
    from nasplat.core.experiment import Screen

    screen = Screen(by="naswot", keep=0.25, after=5)
    scored = [Proposal(n, {}, str(n), "complete", {"naswot": float(n)}) for n in range(9)]
    assert threshold(History(scored[:4]), screen, GOALS[:1], {}) is None
    assert threshold(History(scored), screen, GOALS[:1], {}) == pytest.approx(6.0)
    dropped = [Proposal(20 + n, {}, f"d{n}", "screened", {"naswot": 0.0}) for n in range(20)]
    starved = threshold(History([*scored, *dropped]), screen, GOALS[:1], {})
    assert starved is None  # or a strategy could starve


def test_a_small_network_is_screened_against_networks_that_are_no_larger() -> None:
    """Nearly every score grows with the size: the cheap end of the front would be dropped whole."""
    from nasplat.core.experiment import Screen

    screen = Screen(by="naswot", keep=0.5, after=5)
    scored = [Proposal(n, {}, str(n), "complete", {"naswot": float(n), "params": 10.0 * n}) for n in range(11)]
    assert threshold(History(scored), screen, GOALS, {"params": 100.0}) == pytest.approx(5.0)
    assert threshold(History(scored), screen, GOALS, {"params": 60.0}) == pytest.approx(3.0)
    assert threshold(History(scored), screen, GOALS, {"params": 30.0}) is None  # too few are as small


def test_known_networks_come_first_and_are_marked(tmp_path: Path) -> None:
    """Without them a front says nothing about the networks that everybody knows."""
    import json

    space = ToySpace()
    known = space.canonical({name: choice.options[-1] for name, choice in space.choices.items()})
    (tmp_path / "mine.json").write_text(json.dumps(known.to_json()))
    events: list[Event] = []
    result = run(tmp_path / "run", events, search={"references": [str(tmp_path / "mine.json")]}, trials=6)
    first = result.history[0]
    assert (first.digest, first.landmark, first.state) == (known.digest, "mine", "complete")
    assert [one.landmark for one in result.history[1:]] == [""] * 5
    asked = next(event for event in events if isinstance(event, Asked))
    assert "known network" in asked.proposal.why
    worst = space.canonical({name: choice.options[0] for name, choice in space.choices.items()})
    (tmp_path / "mine.json").write_text(json.dumps(worst.to_json()))
    search = {**STOPPING, "references": [str(tmp_path / "mine.json")]}
    result = run(tmp_path / "stopping", search=search, evaluate=smooth)
    assert (result.history[0].landmark, result.history[0].state) == ("mine", "complete")  # or no picture would show it
    assert [one.state for one in result.history].count("stopped") > 8
    other = Architecture("0" * 64, dict(known.values))
    (tmp_path / "mine.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(NasplatError, match="another space"):
        run(tmp_path / "other", search={"references": [str(tmp_path / "mine.json")]})


def test_a_candidate_that_is_run_again_has_a_new_seed_and_counts_with_its_mean(tmp_path: Path) -> None:
    """On the front it stands with its mean: a lucky first run must not stay there."""
    seeds: dict[str, list[int]] = {}

    def noisy(spec: TrialSpec, on_progress: OnProgress) -> Record:
        own = seeds.setdefault(spec.architecture["digest"], [])
        own.append(spec.seed)
        return Record("complete", {**metrics(spec), "accuracy": 0.9 if len(own) == 1 else 0.1})

    space = ToySpace()
    first = space.canonical({})

    def strategy(history: History, space: Any, goals: Any, rng: Any, /) -> Suggestion:
        if len(history) in (2, 3):
            return Suggestion(first.values, again=True)
        return Suggestion(first.values if not len(history) else space.sample(rng).values)

    directory = tmp_path / "run"
    directory.mkdir()
    chosen = experiment(trials=6)
    result = run_search(chosen, RunDirectory(directory), space, evaluate=noisy, strategy=strategy)
    assert len(set(seeds[first.digest])) == 3
    merged = next(one for one in result.history.complete if one.digest == first.digest)
    assert merged.runs == 3 and merged.metrics["accuracy"] == pytest.approx((0.9 + 0.1 + 0.1) / 3)
    shown = [score for score in result.front if score.architecture == first]
    assert all(score.metrics["accuracy"] == pytest.approx(1.1 / 3) for score in shown)
    assert result.history.evaluated == 6
