"""What a user is told of a ranking: in words that follow from the numbers, on the page and in a table."""

from __future__ import annotations

import csv
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from nasplat.artifacts.ranking import Ranking, bounded, ranking, verdict, write_rankings
from nasplat.artifacts.report import ReportData, ReportTrial, render
from nasplat.core.front import Goal
from nasplat.core.rank_correlation import Bounded

ACCURACY = Goal("accuracy", "maximize")
TRUTH = np.linspace(0.5, 0.9, 20)
SHUFFLED = np.random.default_rng(2).permutation(20).astype(float)


def swapped(swaps: int) -> np.ndarray:
    """The right order but for so many neighbours, which have changed places."""
    order = np.arange(20.0)
    for place in range(0, 2 * swaps, 2):
        order[[place, place + 1]] = order[[place + 1, place]]
    return order


def judged(goal: Goal = ACCURACY, truth: Any = TRUTH, **scores: Any) -> Ranking:
    rng = np.random.default_rng(0)
    words = {"by": "the weights of the supernet", "how": "Twenty were trained.", "more": "trained alone"}
    return ranking(scores, truth, goal, rng, score_metric=goal.metric, **words)


def test_a_score_that_is_ahead_is_said_to_be() -> None:
    """Or a user would not dare to use a ranking that is good."""
    found = judged(supernet=swapped(2), params=SHUFFLED, naswot=-TRUTH)
    assert verdict(found) == ["Ranking by the weights of the supernet is ahead of parameter count and NASWOT."]
    assert found.intervals[1].kendall_lead.low > 0


def test_a_score_that_is_behind_is_said_not_to_be_worth_it() -> None:
    """A supernet costs a training, and counting parameters none."""
    found = judged(supernet=SHUFFLED, params=TRUTH)
    assert verdict(found)[0] == (
        "Ranking by the weights of the supernet does not beat parameter count, which ranks better: "
        "rank by parameter count, it costs no training."
    )
    both = judged(supernet=SHUFFLED, macs=swapped(6), params=TRUTH, naswot=-SHUFFLED)
    told = verdict(both)
    assert "does not beat parameter count and MACs, of which parameter count ranks best: rank by par" in told[0]
    assert told[1].startswith("It cannot be told apart from NASWOT: more networks must be trained alone")
    assert told[2].startswith("It may rank no better than chance")


def test_what_cannot_be_told_apart_is_not_called_a_lead() -> None:
    """The difference of two correlations of twenty networks is mostly luck."""
    found = judged(supernet=swapped(3), params=swapped(4), macs=SHUFFLED)
    first, second = verdict(found)
    assert first == "Ranking by the weights of the supernet is ahead of MACs."
    assert second == (
        "It cannot be told apart from parameter count: more networks must be trained alone, or the ranking not be "
        "trusted."
    )
    [alone] = verdict(judged(supernet=swapped(3), params=swapped(4)))
    assert alone.startswith("Ranking by the weights of the supernet cannot be told apart from parameter count")


def test_a_score_that_ranks_upside_down_is_named() -> None:
    """It may well be ahead of one that is worse still."""
    assert verdict(judged(supernet=-swapped(5), params=-TRUTH))[-1] == "It ranks upside down: its τ is below 0."


def test_few_equal_and_no_networks_tell_nothing() -> None:
    """Seven networks in the right order look like a proof."""
    few = judged(truth=TRUTH[:7], supernet=TRUTH[:7], params=SHUFFLED[:7])
    [told] = verdict(few)
    assert told.startswith("7 networks are too few to tell") and "20 are usual" in told
    assert "ahead" not in told
    assert "all 20 networks have one score" in verdict(judged(supernet=np.ones(20), params=TRUTH))[0]
    two = judged(truth=[0.1, 0.2, nan], supernet=[1, 2, 3])
    assert not two.rows and "fewer than 3" in two.how and "do not trust it" in verdict(two)[0]
    constant = judged(supernet=swapped(1), params=np.ones(20), macs=SHUFFLED)  # says nothing, and beats nothing
    assert verdict(constant) == ["Ranking by the weights of the supernet is ahead of MACs."]


def test_of_errors_less_is_better() -> None:
    """A supernet's error that ranks by the error of training is right, and more parameters shall mean less of it."""
    error = Goal("error", "minimize")
    found = ranking(
        {"supernet": -TRUTH, "params": TRUTH},
        -TRUTH,
        error,
        np.random.default_rng(0),
        score_metric="error",
        score_sign=-1,
        by="s",
        how="",
        more="",
    )
    assert [row.kendall for row in found.rows] == pytest.approx([1, 1])
    assert found.points[0] == (-TRUTH[0], -TRUTH[0])


def test_numbers_have_signs_and_brackets() -> None:
    assert bounded(Bounded(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert bounded(Bounded(0.5, -0.25, 0.75), signed=True) == "+0.50 [-0.25, +0.75]"
    assert bounded(Bounded(0.5, nan, nan)) == "0.50" and bounded(Bounded(nan, nan, nan)) == "–"


def test_the_table_has_every_number(tmp_path: Path) -> None:
    """It is what a user plots and cites."""
    found = judged(supernet=swapped(2), params=SHUFFLED, flat=np.ones(20))
    write_rankings([found, judged(supernet=TRUTH, macs=SHUFFLED)], tmp_path / "ranking.csv")
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert [row["score"] for row in rows] == ["supernet", "params", "flat", "supernet", "macs"]
    assert float(rows[1]["kendall_lead_low"]) == found.intervals[1].kendall_lead.low
    assert float(rows[0]["spearman"]) == found.intervals[0].spearman.value
    assert rows[2]["kendall"] == "" and rows[1]["networks"] == "20"


def page(*found: Ranking) -> str:
    trial = ReportTrial(0, "a" * 64, "complete", {"accuracy": 0.5})
    text = render(ReportData("ranked", (ACCURACY,), (trial,), rankings=found))
    start = text.find('<section id="ranking">')
    return text[start : text.find("</section>", start)] if start >= 0 else ""


def test_the_page_tells_the_verdict_the_numbers_and_the_networks() -> None:
    """The verdict alone would have to be believed, and the numbers alone be understood."""
    found = judged(supernet=swapped(2), params=SHUFFLED)
    text = page(found)
    assert "is ahead of parameter count." in text and "Twenty were trained." in text
    assert bounded(found.intervals[0].kendall) in text
    assert bounded(found.intervals[1].spearman_lead, signed=True) in text
    drawn = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert sum(each.tag.endswith("circle") for each in drawn.iter()) == 20
    assert "Accuracy by the weights of the supernet" in text
    assert "best tenth" not in text  # two networks
    many = judged(truth=np.linspace(0, 1, 60), supernet=np.linspace(0, 1, 60))
    assert "τ in the best tenth" in page(many)
    assert page() == ""


def test_a_ranking_that_was_not_checked_is_told_on_the_page() -> None:
    """Silence would look like success."""
    text = page(Ranking("supernet", "the weights of the <supernet>", "It was switched off."))
    assert "It was switched off." in text and "do not trust it" in text
    assert "<supernet>" not in text and "<table>" not in text


def test_odd_points_are_not_drawn() -> None:
    """NASWOT of a network that cannot tell images apart is minus infinity."""
    found = judged(naswot=np.where(TRUTH < 0.6, -np.inf, SHUFFLED))
    text = page(replace(found, score_metric="naswot"))
    assert 0 < text.count("<circle") < 20
