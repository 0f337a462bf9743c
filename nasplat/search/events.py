"""What a running search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nasplat.core.architecture import Architecture
from nasplat.core.front import Score
from nasplat.search.history import Proposal


@dataclass(frozen=True)
class Asked:
    """A trial was written to the study. `proposal.state` tells whether it runs, is a repeat or is infeasible."""

    proposal: Proposal
    architecture: Architecture


@dataclass(frozen=True)
class Started:
    """A trial was handed to the executor.

    Args:
        again: an earlier session left it unfinished.
        share: of its budget that it is trained to.
    """

    proposal: Proposal
    again: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Progress:
    """A running trial reports; the fields are the training's own (epoch, loss …)."""

    number: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """A trial was judged at its rung, and waits for a promotion; `share` of its budget is spent."""

    proposal: Proposal
    share: float


@dataclass(frozen=True)
class Told:
    """The outcome of a trial was written to the study."""

    proposal: Proposal
    evaluated: int
    budget: int | None


@dataclass(frozen=True)
class FrontChanged:
    """A candidate entered the front, which is given best on the first goal first; `notes["number"]` is the trial's."""

    front: tuple[Score, ...]


@dataclass(frozen=True)
class Message:
    """Something that a person should know."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Checking:
    """The search is over, and networks are trained or scored to check its ranking.

    Args:
        done: of them, with the shares of those that are under way.
        total: how many there are.
        what: becomes of them, such as "trained alone".
    """

    done: float
    total: int
    what: str


# Ctrl-C, once.
INTERRUPTED = Message("finishing the trials that run; Ctrl-C again to stop now", warning=True)

Event = Asked | Started | Progress | Judged | Told | FrontChanged | Message | Checking
OnEvent = Callable[[Event], None]
