"""What a search with early stopping trains next, and what its strategy sees of trials that were trained so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from nasplat.core.experiment import EarlyStopping
from nasplat.core.front import Goal
from nasplat.search.early_stopping import RULES, Kept, rung_shares
from nasplat.search.history import History, Proposal

FEWEST = 8
T = TypeVar("T")


class Rungs:
    """Reads everything from the history, and keeps nothing but what it has worked out of it.

    Args:
        settings: None trains every trial to its end.
        goals: of the search.
    """

    def __init__(self, settings: EarlyStopping | None, goals: Sequence[Goal]) -> None:
        self._goals = goals
        self._known: dict[tuple[str, int, int], tuple[Proposal, Any]] = {}
        self._followed: tuple[Proposal, ...] = ()
        self.shares: tuple[float, ...] = (1.0,)
        if settings is not None:
            self.shares = rung_shares(settings.reduction, settings.rungs)
            self._reduction = settings.reduction
            self._rule = RULES["halving"](settings.bracket) if settings.rule == "halving" else RULES["asha"]()

    def next(self, history: History, *, last: bool) -> tuple[int, int] | None:
        """The number of the trial to train on, and its next rung; None: a new trial is due.

        Args:
            last: no new trial will be started any more.
        """
        if len(self.shares) == 1:
            return None
        self._follow(history)
        for number in sorted(self._paused):
            if self._paused[number].landmark:  # it stands beside the front, and so is always trained to its end
                return number, self._paused[number].rung + 1
        return self._rule(self._results, self._begun, self._goals, self._reduction, last=last)

    def paused(self, history: History) -> list[Proposal]:
        """Trials that were judged at their rung and wait for a promotion."""
        return [one for one in history if one.state == "running" and len(one.rungs) > one.rung]

    def _follow(self, history: History) -> None:
        """Takes in what has changed since it last looked: at thousands of trials that is next to nothing."""
        now = tuple(history)
        if len(now) < len(self._followed) or not self._followed:
            self._followed = ()
            self._results = [Kept() for _ in self.shares]
            self._begun: list[set[int]] = [set() for _ in self.shares]
            self._paused: dict[int, Proposal] = {}
        for place, one in enumerate(now):
            if place < len(self._followed) and self._followed[place] is one:
                continue
            for rung, (results, begun) in enumerate(zip(self._results, self._begun, strict=True)):
                if one.begun and self._is_judged(one, rung):
                    results[one.number] = self._judged(one, rung)
                elif one.number in results:
                    del results[one.number]
                # What was told as stopped is not taken up again, as if it had been begun everywhere.
                if one.begun and (one.rung >= rung or one.state == "stopped"):
                    begun.add(one.number)
                else:
                    begun.discard(one.number)
            self._paused.pop(one.number, None)
            if one.state == "running" and len(one.rungs) > one.rung:
                self._paused[one.number] = one
        self._followed = now

    def seen(self, history: History) -> History:
        """The history for a strategy: every trial by its metrics at one rung, so that all are measured alike.

        The highest rung that enough trials have reached (as BOHB does; Falkner et al., 2018). Trials that have not
        come so far stay running: they are not proposed again, and nothing is claimed of them.
        """
        if len(self.shares) == 1:
            return history
        rung = self._seen(history)
        return History((self._at(one, rung) for one in history), history.next_number)

    def seen_share(self, history: History) -> float:
        """The share of the training after which `seen` shows the trials."""
        return self.shares[self._seen(history)]

    def _seen(self, history: History) -> int:
        for rung in range(len(self.shares) - 1, 0, -1):
            if sum(self._is_judged(one, rung) and bool(self._judged(one, rung)) for one in history) >= FEWEST:
                return rung
        return 0

    def _once(self, work: Callable[[Proposal, int], T], proposal: Proposal, rung: int) -> T:
        """What is the same for a proposal as long as it does not change; a search asks it again at every trial."""
        key = (work.__name__, proposal.number, rung)
        known = self._known.get(key)
        if known is None or known[0] is not proposal:
            known = self._known[key] = (proposal, work(proposal, rung))
        return cast(T, known[1])

    def _at(self, proposal: Proposal, rung: int) -> Proposal:
        return self._once(self._shown_at, proposal, rung)

    def _shown_at(self, proposal: Proposal, rung: int) -> Proposal:
        if proposal.state not in ("running", "complete", "stopped"):
            return proposal
        if not self._is_judged(proposal, rung):
            return replace(proposal, state="running")
        return replace(proposal, state="complete", metrics={**proposal.metrics, **self._judged(proposal, rung)})

    def _is_judged(self, proposal: Proposal, rung: int) -> bool:
        if len(proposal.rungs) > rung or proposal.state == "complete":
            return True
        return proposal.state in ("failed", "infeasible") and proposal.rung <= rung

    def _judged(self, proposal: Proposal, rung: int) -> dict[str, float]:
        return self._once(self._measured_at, proposal, rung)

    def _measured_at(self, proposal: Proposal, rung: int) -> dict[str, float]:
        """The metrics at a rung; none of a trial that failed there or before."""
        if len(proposal.rungs) > rung:
            return {**proposal.metrics, **proposal.rungs[rung]}
        return dict(proposal.metrics) if proposal.state == "complete" else {}
