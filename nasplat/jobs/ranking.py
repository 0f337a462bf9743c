"""How well candidates were ranked by what is cheaper than training them, held against networks that were trained.

A ranking by the weights of a source is believed only after a check: candidates drawn over the whole of it are trained
alone, from fresh weights (Yu et al., Evaluating the Search Phase of Neural Architecture Search, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasplat.artifacts.files import write_json
from nasplat.artifacts.metric_names import counted, label
from nasplat.artifacts.ranking import Ranking, ranking
from nasplat.artifacts.weights import read_metadata
from nasplat.core.architecture import fingerprint
from nasplat.core.cost import COSTS
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.front import Goal
from nasplat.core.rank_correlation import FEWEST_ROWS
from nasplat.jobs.experiment import check_train
from nasplat.jobs.runs import Candidate, Run
from nasplat.jobs.train import comparable_settings

if TYPE_CHECKING:
    from nasplat.search.events import OnEvent
    from nasplat.search.records import Record, TrialSpec

ALONE = "nasplat.search.baselines:alone"
UNTRAINED = "nasplat.search.baselines:untrained"
WEIGHTS = "weights"  # the screen, and its score among the metrics
COSTLESS = ("params", "macs")
STREAM = 2  # of the randomness of a search: see `nasplat.search.seeds`

Say = Callable[[str], None]


def check_ranking(run: Run, on_event: OnEvent = lambda event: None, say: Say = lambda text: None) -> None:
    """Trains candidates alone that a source of weights ranked; or scores by the baselines those that its screen passed.

    Each is kept in the run directory as it is finished, and nothing is done twice. A search whose ranking is not by
    weights, and one of fewer than three candidates, has nothing to check.

    Raises:
        NasplatError: a search or a check is at work in this directory; or something that concerns all networks.
    """
    from nasplat.search.driver import make_executor
    from nasplat.search.events import Checking
    from nasplat.search.executors import run_all
    from nasplat.search.session import alone

    experiment = _checked(run.experiment)
    if experiment is None or len(run.candidates) < FEWEST_ROWS:
        return
    folder = _folder(run, experiment)
    done = {one.number for one in run.candidates if _record(folder, one) is not None}
    trained = run.experiment.scored_by_source
    left = [one for one in (_drawn(run, done) if trained else run.candidates) if one.number not in done]
    if not left:
        return
    what = "trained alone, to check the ranking" if trained else "scored by the baselines"
    before, total = len(done), len(done) + len(left)
    say(f"{len(left)} of {counted(len(run.candidates), 'candidate')} are {what}")
    shares: dict[int, float] = {}
    finished = before

    def tell() -> None:
        on_event(Checking(finished + sum(shares.values()), total, what))

    def on_progress(number: int, fields: Mapping[str, Any]) -> None:
        shares[number] = float(fields.get("share") or 0.0)
        tell()

    def on_finished(number: int, record: Record) -> None:
        nonlocal finished
        shares.pop(number, None)
        finished += 1
        tell()

    with alone(run.directory):
        write_json(folder / "settings.json", comparable_settings(experiment))
        where = experiment.run.model_copy(
            update={"workers": min(experiment.run.workers, len(left)), "trial_seconds": None}
        )
        executor = make_executor(
            experiment.model_copy(update={"run": where}), run.directory, ALONE if trained else UNTRAINED
        )
        run_all(executor, [_spec(experiment, one, folder) for one in left], on_progress, on_finished)


def rankings(run: Run) -> list[Ranking]:
    """How well the scores ranked by which candidates were chosen: the source of weights, and what screened them."""
    found = []
    experiment = run.experiment
    if experiment.weights is not None and not _screened_by_weights(experiment):
        found.append(_by_source(run))
    screen = experiment.search.screen
    if screen is not None:
        found += _by_screen(run, screen.by)
    return found


def _screened_by_weights(experiment: Experiment) -> bool:
    return experiment.search.screen is not None and experiment.search.screen.by == WEIGHTS


def _checked(experiment: Experiment) -> Experiment | None:
    """How networks are trained for a check; None where there is none."""
    weights, search = experiment.weights, experiment.search
    if weights is None or weights.check == 0 or not (experiment.scored_by_source or _screened_by_weights(experiment)):
        return None
    return experiment.model_copy(
        update={
            "weights": None,
            "train": check_train(experiment) if experiment.scored_by_source else experiment.train,
            "search": search.model_copy(update={"constraints": {}, "screen": None, "early_stopping": None}),
        }
    )


def _folder(run: Run, experiment: Experiment) -> Path:
    return run.files.check / fingerprint(comparable_settings(experiment))[:8]


def _record(folder: Path, candidate: Candidate) -> Record | None:
    from nasplat.search.records import read_record

    return read_record(folder / candidate.name)


def _spec(experiment: Experiment, candidate: Candidate, folder: Path) -> TrialSpec:
    from nasplat.search.records import TrialSpec
    from nasplat.search.seeds import candidate_seed

    return TrialSpec(
        number=candidate.number,
        experiment=experiment.model_dump(mode="json"),
        architecture=candidate.architecture.to_json(),
        seed=candidate_seed(experiment.search.seed, candidate.architecture.digest),
        directory=str(folder / candidate.name),
        device=experiment.run.device,
        threads=experiment.run.threads,
    )


def _drawn(run: Run, done: Collection[int]) -> list[Candidate]:
    from nasplat.search.seeds import ask_rng

    goal, weights = judged(run), run.experiment.weights
    assert weights is not None
    sign = -1 if goal.direction == "maximize" else 1
    best_first = sorted(run.candidates, key=lambda one: sign * one.metrics[goal.metric])
    places = strata(
        [one.number in done for one in best_first], weights.check, ask_rng(run.experiment.search.seed, 0, STREAM)
    )
    return [best_first[place] for place in places]


def strata(done: Sequence[bool], count: int, rng: np.random.Generator) -> list[int]:
    """Places of a ranking, one of each of so many equal parts of it: the best place, then others at random.

    Args:
        done: by place, whether it was chosen before; a part that has such a place needs no other.
        count: of the parts; of a shorter ranking every place is one.
        rng: draws within the parts, equally often whatever was done.
    """
    chosen = []
    for part in np.array_split(np.arange(len(done)), min(count, len(done))):
        drawn = int(rng.choice(part))
        before = [int(place) for place in part if done[place]]
        chosen.append(before[0] if before else 0 if part[0] == 0 else drawn)
    return chosen


def judged(run: Run) -> Goal:
    """The first goal that only training tells."""
    return next((goal for goal in run.goals if goal.metric not in COSTS), run.goals[0])


def _by_source(run: Run) -> Ranking:
    weights, goal = run.experiment.weights, judged(run)
    assert weights is not None
    source, by = _source(run)
    more = "trained alone (a larger weights.check)"
    experiment = _checked(run.experiment)
    if experiment is None or len(run.candidates) < FEWEST_ROWS:
        why = f"they are fewer than {FEWEST_ROWS}"
        if experiment is None:
            why = "weights.check is 0" if run.experiment.scored_by_source else "they were trained on from there"
        return Ranking(source, by, f"Candidates got {by}, and no network was trained alone to check them: {why}.", more)
    folder = _folder(run, experiment)
    pairs = [(one, record) for one in run.candidates if (record := _record(folder, one)) is not None]
    good = [(one, record) for one, record in pairs if record.state == "complete" and goal.metric in record.metrics]
    asked = max(min(weights.check, len(run.candidates)), len(pairs))
    how = f"{len(good)} of {counted(len(run.candidates), 'candidate')}, drawn over the whole ranking, "
    how += f"{'was' if len(good) == 1 else 'were'} trained alone from fresh weights ({_budget(experiment)})"
    how += f"; {asked - len(pairs)} more are to be" if len(pairs) < asked else ""
    how += f"; {counted(len(pairs) - len(good), 'training')} failed" if len(good) < len(pairs) else ""
    scores = {source: [one.metrics[goal.metric] for one, _ in good]} | {
        name: [{**record.metrics, **one.metrics}.get(name, nan) for one, record in good] for name in _baselines()
    }
    return ranking(
        scores,
        [record.metrics[goal.metric] for _, record in good],
        goal,
        np.random.default_rng(run.experiment.search.seed),
        score_metric=goal.metric,
        score_sign=1 if goal.direction == "maximize" else -1,
        by=by,
        how=f"{how}.",
        more=more,
    )


def _by_screen(run: Run, name: str) -> list[Ranking]:
    """Of the candidates that a screen let pass; nothing where fewer than three have its score."""
    goal = judged(run)
    rows = [one for one in run.candidates if name in one.metrics and goal.metric in one.metrics]
    if len(rows) < FEWEST_ROWS:
        return []
    score, by = _source(run) if name == WEIGHTS else (name, "the predictor" if name == "predictor" else label(name))
    scores: dict[str, list[float]] = {score: [one.metrics[name] for one in rows]}
    names: tuple[str, ...] = COSTLESS
    known = [dict(one.metrics) for one in rows]
    experiment = _checked(run.experiment)
    if experiment is not None and name == WEIGHTS:
        names, folder = _baselines(), _folder(run, experiment)
        records = [_record(folder, one) for one in rows]
        known = [{**record.metrics, **one} if record else one for one, record in zip(known, records, strict=True)]
    scores |= {each: [one.get(each, nan) for one in known] for each in names if each != score}
    verb = "scored" if run.experiment.scored_by_source else "trained"
    found = ranking(
        scores,
        [one.metrics[goal.metric] for one in rows],
        goal,
        np.random.default_rng(run.experiment.search.seed),
        score_metric=name,
        by=by,
        how=f"{len(rows)} candidates passed the screen and were {verb}. What it dropped was not, so this is how it "
        "ranks among those that it let pass.",
        more=verb,
    )
    return [found]


def _baselines() -> tuple[str, ...]:
    from nasplat.search.baselines import BASELINES

    return (*COSTLESS, *BASELINES)


def _source(run: Run) -> tuple[str, str]:
    """The name of the source of weights, and what ranking is by."""
    weights = run.experiment.weights
    assert weights is not None
    name: str = weights.source
    if weights.file is not None:  # it may be of another source than the section would train
        with suppress(NasplatError):  # the file has gone since
            name = read_metadata(Path(weights.file)).get("source", name)
    return name, f"the weights of the {name.replace('_', ' ')}"


def _budget(experiment: Experiment) -> str:
    train = experiment.train
    if train.steps is not None:
        return counted(train.steps, "step")
    if train.seconds is not None:
        return f"{train.seconds:g} s"
    return "1 epoch" if train.epochs == 1 else f"{train.epochs:g} epochs"
