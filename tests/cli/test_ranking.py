"""What a search prints of how well candidates were ranked."""

import io

import numpy as np
from rich.console import Console

from nasplat.artifacts.ranking import Ranking, ranking
from nasplat.cli.search import _print_outcome
from nasplat.core.front import Goal
from nasplat.jobs.search import Outcome


def printed(*found: Ranking, width: int = 60) -> str:
    file = io.StringIO()
    outcome = Outcome((), (Goal("accuracy", "maximize"),), 20, "done", 1.0, {}, "", list(found))
    _print_outcome(Console(file=file, width=width), outcome)
    return file.getvalue()


def test_a_ranking_is_printed_with_its_verdict() -> None:
    """Who never opens the page must see that a supernet is no better than counting parameters; nothing is cut off."""
    truth = np.linspace(0, 1, 20)
    scores = {"supernet": np.random.default_rng(2).permutation(20), "params": truth}
    words = {"by": "the weights of the supernet", "how": "Twenty [of 90] were trained.", "more": "trained alone"}
    found = ranking(
        scores,  # type: ignore[arg-type]
        truth,  # type: ignore[arg-type]
        Goal("accuracy", "maximize"),
        np.random.default_rng(0),
        score_metric="accuracy",
        **words,
    )
    text = printed(found)
    assert "Twenty [of 90] were trained." in text
    assert "does not beat parameter count, which ranks better: rank by parameter count" in text
    [row] = [line for line in text.splitlines() if line.startswith("Parameters")]
    assert row.split()[:4] == ["Parameters", "1.00", "[1.00,", "1.00]"] and row.endswith("]")
    assert "best tenth" not in text


def test_a_ranking_without_a_check_is_printed_too() -> None:
    text = printed(Ranking("supernet", "the weights of the supernet", "It was switched off."))
    assert "It was switched off." in text and "do not trust it" in text and "Kendall" not in text
    assert "ranking by" not in printed()
