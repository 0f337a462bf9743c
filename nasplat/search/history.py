"""Everything that a search has proposed so far, in order: all that a strategy may look at."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, overload

from nasplat.core import experiment
from nasplat.core.choice import Values
from nasplat.core.cost import COSTS
from nasplat.core.front import Goal

State = Literal["running", "complete", "infeasible", "failed", "repeat", "stopped", "screened"]


@dataclass(frozen=True)
class Proposal:
    """One trial of the study.

    Args:
        number: the trial's number.
        values: the canonical values.
        digest: of the architecture.
        state: `repeat` where an earlier proposal is the same architecture; it is answered from the record. `stopped`
            where its training ended early, `screened` where a cheap score dropped it before training.
        metrics: of a complete proposal everything that was measured; of others what is known without training.
        violations: relative excess over every hard constraint; above 0 is a violation.
        notes: what the strategy wants to find again (Optuna system attributes, JSON-plain).
        proposed: the strategy's raw values, where they differ from the canonical ones.
        repeat_of: number of the proposal that is answered from.
        reason: why it is infeasible or failed.
        why: it was proposed, in the words of the strategy.
        seconds: how long the evaluation took; 0 where nothing was evaluated.
        replicate: of an architecture that is evaluated again with a new seed, how often it was before.
        runs: the evaluations that `metrics` is the mean of.
        rung: of early stopping, that it is or was trained to; 0 is the lowest.
        rungs: what was measured at each rung below the last.
        landmark: name of a known network that was enqueued by its name.
    """

    number: int
    values: Values
    digest: str
    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    proposed: Values | None = None
    repeat_of: int | None = None
    reason: str = ""
    why: str = ""
    seconds: float = 0.0
    replicate: int = 0
    runs: int = 1
    rung: int = 0
    rungs: tuple[Mapping[str, float], ...] = ()
    landmark: str = ""

    @cached_property
    def begun(self) -> bool:
        """Whether it was or is evaluated, and not answered from the record, dropped, or refused by its cost."""
        if self.state in ("repeat", "screened"):
            return False
        return self.state != "infeasible" or self.seconds > 0

    @cached_property
    def as_proposed(self) -> Proposal:
        """The proposal with nothing but what was known when it was made."""
        return replace(
            self,
            state="running" if self.repeat_of is None else "repeat",
            metrics={name: value for name, value in self.metrics.items() if name in COSTS},
            violations={key: value for key, value in self.violations.items() if key.rpartition(".")[0] in COSTS},
            reason="",
            seconds=0.0,
            rungs=(),
        )


class History(Sequence[Proposal]):
    """Proposals in the order in which they were asked for. Immutable."""

    def __init__(self, proposals: Iterable[Proposal] = (), next_number: int | None = None) -> None:
        self._proposals = tuple(proposals)
        last = self._proposals[-1].number if self._proposals else -1
        self.next_number = last + 1 if next_number is None else next_number

    @overload
    def __getitem__(self, index: int) -> Proposal: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Proposal]: ...
    def __getitem__(self, index: int | slice) -> Proposal | Sequence[Proposal]:
        return self._proposals[index]

    def __len__(self) -> int:
        return len(self._proposals)

    def __iter__(self) -> Iterator[Proposal]:
        return iter(self._proposals)

    @cached_property
    def by_digest(self) -> Mapping[str, Proposal]:
        """The first proposal of every architecture."""
        first: dict[str, Proposal] = {}
        for proposal in self._proposals:
            first.setdefault(proposal.digest, proposal)
        return first

    @cached_property
    def complete(self) -> tuple[Proposal, ...]:
        """Evaluated candidates, each once; of one that was evaluated several times the first, with mean metrics."""
        runs: dict[str, list[Proposal]] = {}
        for proposal in self._proposals:
            if proposal.state == "complete":
                runs.setdefault(proposal.digest, []).append(proposal)
        return tuple(found[0] if len(found) == 1 else _mean(found) for found in runs.values())

    def measured(self, metrics: Collection[str]) -> tuple[Proposal, ...]:
        """Candidates of which all these metrics are known: the complete ones, and those that a constraint refused only
        after they were measured."""
        refused = [
            one
            for one in self._proposals
            if one.state == "infeasible" and one.seconds > 0 and all(name in one.metrics for name in metrics)
        ]
        if not refused:
            return self.complete
        return tuple(sorted((*self.complete, *refused), key=lambda one: one.number))

    @cached_property
    def runs(self) -> Mapping[str, tuple[Proposal, ...]]:
        """By digest the evaluations of every architecture that was evaluated more than once."""
        again = {proposal.digest for proposal in self._proposals if proposal.replicate and proposal.state == "complete"}
        return {
            digest: tuple(one for one in self._proposals if one.digest == digest and one.state == "complete")
            for digest in sorted(again)
        }

    @cached_property
    def evaluated(self) -> int:
        """Distinct architectures whose evaluation was begun: what a budget in trials counts."""
        return len(self.begun)

    @cached_property
    def begun(self) -> tuple[int, ...]:
        """Numbers of the proposals that were evaluated or are running."""
        return tuple(proposal.number for proposal in self._proposals if proposal.begun)

    @cached_property
    def barren(self) -> int:
        """How many of the last proposals in a row needed no evaluation: repeats, and violated constraints."""
        length = 0
        for proposal in reversed(self._proposals):
            if proposal.begun or proposal.state == "screened":
                break
            length += 1
        return length

    def before_last(self, hidden: int) -> History:
        """The history as it was known while the last `hidden` evaluations were still running.

        It depends on the order of the proposals alone, not on which result came in first: so a strategy proposes the
        same whatever runs the trials, and however long each takes.
        """
        if not hidden:
            return self
        late = set(self.begun[-hidden:])
        return History(
            (one.as_proposed if one.number in late or one.repeat_of in late else one for one in self._proposals),
            self.next_number,
        )


def _mean(runs: Sequence[Proposal]) -> Proposal:
    common = [name for name in runs[0].metrics if all(name in one.metrics for one in runs)]
    metrics = {name: sum(one.metrics[name] for one in runs) / len(runs) for name in common}
    return replace(runs[0], metrics=metrics, runs=len(runs))


def goals_of(score: experiment.Score) -> tuple[Goal, ...]:
    """The axes of a search, in the order in which the experiment lists them."""
    up = tuple(Goal(metric, "maximize") for metric in score.maximise)
    return up + tuple(Goal(metric, "minimize") for metric in score.minimise)
