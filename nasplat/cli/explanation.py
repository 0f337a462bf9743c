"""Why a candidate was chosen, dropped, trained on or left, a line for each event of a search (`--explain`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nasplat.artifacts.metric_names import text

if TYPE_CHECKING:
    from nasplat.search.events import Event
    from nasplat.search.history import Proposal


def explanation(event: Event) -> str | None:
    """A line for people; None where an event decides nothing."""
    from nasplat.search import events

    match event:
        case events.Asked(proposal=proposal):
            return f"trial {proposal.number} {proposal.digest[:8]}: {_chosen(proposal)}"
        case events.Started(proposal=proposal, share=share) if proposal.rung:
            why = "a known network" if proposal.landmark else "among the best of its rung"
            return f"trial {proposal.number}: {why}, trained on to {share:.0%}"
        case events.Judged(proposal=proposal, share=share):
            return f"trial {proposal.number}: paused after {share:.0%} of its training with {_measured(proposal)}"
        case events.Told(proposal=proposal) if proposal.state == "complete":
            return f"trial {proposal.number}: {_measured(proposal)}"
        case events.Told(proposal=proposal):
            return f"trial {proposal.number}: {proposal.reason or proposal.state}"
    return None


def _chosen(proposal: Proposal) -> str:
    why = proposal.why or "proposed"
    if proposal.state == "repeat":
        return f"{why}; not evaluated, for it is trial {proposal.repeat_of} again"
    if proposal.state in ("infeasible", "screened"):
        return f"{why}; not trained: {proposal.reason}"
    return why


def _measured(proposal: Proposal) -> str:
    metrics = {**proposal.metrics, **(proposal.rungs[-1] if proposal.rungs and proposal.state == "running" else {})}
    shown = [name for name in ("accuracy", "macs", "params", "latency") if name in metrics]
    return ", ".join(f"{name} {text(name, metrics[name])}" for name in shown or list(metrics)[:3])
