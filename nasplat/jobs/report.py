"""The results of a run for people: a table, pictures, and one page."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from nasplat.artifacts.drawing import draw_svg
from nasplat.artifacts.environment import machine, versions
from nasplat.artifacts.files import atomic_folder, write_json, write_text
from nasplat.artifacts.front_csv import FrontRow, write_front
from nasplat.artifacts.front_picture import PicturePoint, front_svg
from nasplat.artifacts.metric_names import counted
from nasplat.artifacts.ranking import write_rankings
from nasplat.artifacts.report import FrontMember, Interval, ReportData, ReportTrial, TrainedAgain, write_report
from nasplat.artifacts.report_confirmed import picture as confirmed_picture
from nasplat.core.front import Goal
from nasplat.jobs.confirmation import Confirmation, Confirmed, read_confirmation
from nasplat.jobs.experiment import to_plain
from nasplat.jobs.ranking import rankings
from nasplat.jobs.runs import Candidate, Run


def write_results(run: Run) -> dict[str, Path]:
    """Writes front.csv, front/, report.html and, where a score chose candidates, ranking.csv of a run, finished or not.

    Returns:
        The paths that a person looks at, by name.
    """
    files = run.files
    data = report_data(run, read_confirmation(files))
    write_front([_row(run, rank, one) for rank, one in enumerate(run.front, start=1)], files.front_csv)
    with atomic_folder(files.front) as folder:
        for rank, one in enumerate(run.front, start=1):
            name = f"{rank:02d}-{one.name}"
            write_json(folder / f"{name}.json", one.architecture.to_json())
            write_text(folder / f"{name}.svg", draw_svg(run.space.drawings(one.architecture)))
        axes = picture_axes(run)
        if axes is not None:
            write_text(folder / "front.svg", picture(run, *axes))
        confirmed = confirmed_picture(data, "trained again with new seeds: means and 95 % intervals")
        if confirmed:
            write_text(folder / "confirmed.svg", confirmed)
    write_report(data, files.report)
    paths = {"front": files.front_csv, "report": files.report}
    if any(one.rows for one in data.rankings):
        write_rankings(data.rankings, files.ranking_csv)
        paths["ranking"] = files.ranking_csv
    else:
        files.ranking_csv.unlink(missing_ok=True)  # of a check that was switched off since
    return paths


def picture_axes(run: Run) -> tuple[Goal, Goal] | None:
    """The first goal that is minimised across, the first that is maximised up; the first two where there are none."""
    if len(run.goals) < 2 or not run.candidates:
        return None
    up = next((goal for goal in run.goals if goal.direction == "maximize"), run.goals[0])
    across = next((goal for goal in run.goals if goal.direction == "minimize" and goal != up), run.goals[-1])
    return across, up


def picture(run: Run, across: Goal, up: Goal) -> str:
    """The candidates and the front of two goals as an SVG."""
    landmarks = {one.digest: one.landmark for one in run.history if one.landmark}
    points = [
        PicturePoint(
            one.metrics[across.metric], one.metrics[up.metric], landmark=landmarks.get(one.architecture.digest, "")
        )
        for one in run.candidates
    ]
    return front_svg(points, across, up, title=f"{run.experiment.name}: {len(run.candidates)} candidates")


def report_data(run: Run, confirmation: Confirmation | None) -> ReportData:
    """A run as the page wants it."""
    return ReportData(
        name=run.experiment.name,
        goals=run.goals,
        trials=[
            ReportTrial(
                number=one.number,
                digest=one.digest,
                state=one.state,
                metrics=dict(one.metrics),
                reason=one.reason,
                seconds=one.seconds,
                finished=run.finished.get(one.number),
                why=one.why,
                landmark=one.landmark,
            )
            for one in run.history
        ],
        front=[
            FrontMember(
                rank=rank,
                digest=one.architecture.digest,
                trial=one.number,
                metrics=dict(one.metrics),
                drawings=run.space.drawings(one.architecture),
                values=dict(one.architecture.values),
                files=_files(run, one),
            )
            for rank, one in enumerate(run.front, start=1)
        ],
        experiment=to_plain(run.experiment),
        versions=versions(),
        machine=machine(),
        status=_status(run),
        seconds=run.seconds,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        notes=_notes(confirmation),
        confirmed=[_trained_again(row) for row in (confirmation.rows if confirmation else ())],
        rankings=rankings(run),
    )


def _trained_again(row: Confirmed) -> TrainedAgain:
    return TrainedAgain(
        trial=row.trial,
        digest=row.digest,
        final_digest=row.final_digest,
        seeds=len(row.seeds),
        metrics={name: Interval(found.mean, found.low, found.high) for name, found in row.metrics.items()},
        costs=dict(row.costs),
    )


def _status(run: Run) -> str:
    left = sum(one.state == "running" for one in run.history)
    budget = run.experiment.search.trials
    done = run.history.evaluated - left
    if left:
        return f"{done} evaluated, {left} not finished"
    return f"{done} of {budget} evaluated" if budget else f"{done} evaluated"


def _notes(confirmation: Confirmation | None) -> tuple[str, ...]:
    chosen = (
        "Accuracies of the search are measured on the validation images by which networks were chosen, after a short "
    )
    notes = [chosen + "training; test images are seen by nasplat train alone."]
    if confirmation is not None:
        again = counted(len(confirmation.rows), "network")
        notes.append(
            f"{again} of the front, rebuilt at the final size, {'was' if len(confirmation.rows) == 1 else 'were'} "
            "trained again on the full schedule and scored on test images: those accuracies belong to the costs that "
            "stand beside them under Trained again, not to those of the search."
        )
    return tuple(notes)


def _files(run: Run, candidate: Candidate) -> dict[str, str]:
    """Name and path from the page of what belongs to a candidate."""
    files = run.files
    found = {"trial": files.relative(candidate.folder.path)}
    if candidate.folder.weights.exists():
        found["weights"] = files.relative(candidate.folder.weights)
    exported = files.exports / candidate.name
    if exported.is_dir():
        found |= {path.name: files.relative(path) for path in sorted(exported.iterdir())}
    return found


def _row(run: Run, rank: int, candidate: Candidate) -> FrontRow:
    files = run.files
    paths = {"trial": files.relative(candidate.folder.path)}
    if candidate.folder.weights.exists():
        paths["weights"] = files.relative(candidate.folder.weights)
    exported = files.exports / candidate.name
    if exported.is_dir():
        paths["export"] = files.relative(exported)
    return FrontRow(rank, candidate.architecture.digest, candidate.number, dict(candidate.metrics), paths)
