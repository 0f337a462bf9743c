"""The Gaussian process and the improvement that it proposes by, against independent computations."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from nasplat.core.choice import Choice
from nasplat.core.front import Goal, hypervolume
from nasplat.search.expected import expected
from nasplat.search.gaussian_process import Code, GaussianProcess, Parameters, _cost_and_gradient, fit_parameters
from nasplat.search.gp import gp
from nasplat.search.history import History, Proposal
from nasplat.search.improvement import free_volume
from nasplat.search.seeds import ask_rng
from nasplat.search.surrogate import MOST_NOISE, Surrogates, warp_of
from tests.search.toys import ToySpace, accuracy

ACCURACY = Goal("accuracy", "maximize")
GOALS = (ACCURACY, Goal("params", "minimize"))
SPACE = ToySpace()


def evaluated(count: int, seed: int = 0, noise: float = 0.0) -> list[Proposal]:
    rng = np.random.default_rng(seed)
    found: dict[str, Proposal] = {}
    while len(found) < count:
        one = SPACE.sample(rng)
        metrics = {**SPACE.known(one), "accuracy": accuracy(one, 0) + noise * rng.normal()}
        found.setdefault(one.digest, Proposal(len(found), one.values, one.digest, "complete", metrics))
    return list(found.values())


def test_distances_are_steps_of_ordered_choices_and_differences_of_others() -> None:
    """An order that the model does not see is knowledge thrown away."""
    choices = {
        "width": Choice("width", (8, 16, 32, 64), ordered=True),
        "op": Choice("op", ("a", "b", "c")),
        "one": Choice("one", (1,)),
    }
    code = Code(choices)
    assert code.choices == 3

    class Point:
        def __init__(self, **values: object) -> None:
            self.values, self.digest = {**values, "one": 1}, str(values)

    points = [Point(width=8, op="a"), Point(width=64, op="a"), Point(width=16, op="c")]
    bits = code(points)  # type: ignore[arg-type]
    process = GaussianProcess(code, Parameters(np.array([2.0, 3.0, 1.0]), 1e-9, 0.0))
    expected_distances = np.array([[0, 2, 2 / 3 + 3], [2, 0, 4 / 3 + 3], [2 / 3 + 3, 4 / 3 + 3, 0]])
    assert process.kernel(bits, bits) == pytest.approx(np.exp(-expected_distances), abs=1e-6)


def test_gradient_of_the_marginal_likelihood() -> None:
    """A wrong gradient stops the fit early, and every proposal after it is worse than it could be."""
    from nasplat.search.gaussian_process import _distances_by_choice

    proposals = evaluated(18)
    code = Code(SPACE.choices)
    distances = _distances_by_choice(code(proposals), code)
    rng = np.random.default_rng(1)
    targets, count = rng.normal(size=18), code.choices + 2
    prior, spread = rng.normal(size=count), np.full(count, 1.7)
    for _ in range(3):
        at = rng.normal(size=count) - 1
        error = check_grad(
            lambda x: _cost_and_gradient(x, distances, targets, prior, spread)[0],
            lambda x: _cost_and_gradient(x, distances, targets, prior, spread)[1],
            at,
        )
        assert error < 1e-4


def test_blocks_of_the_factor_equal_one_factorisation_whatever_came_before() -> None:
    """A resumed search starts without blocks: it must propose what the uninterrupted one would have."""
    proposals = evaluated(200)
    code = Code(SPACE.choices)
    bits, digests = code(proposals), [one.digest for one in proposals]
    nuggets = np.full(200, 0.01)
    parameters = fit_parameters(bits, code, np.array([-one.metrics["accuracy"] for one in proposals]))
    warm, cold = GaussianProcess(code, parameters), GaussianProcess(code, parameters)
    for count in range(1, 201, 7):
        found = warm.factor(bits[:count], nuggets[:count], digests[:count], count - count % 3)
    assert np.array_equal(warm.factor(bits, nuggets, digests, 200), cold.factor(bits, nuggets, digests, 200))
    whole = cold.kernel(bits, bits) + np.diag(nuggets + 1e-6)
    assert cold.factor(bits, nuggets, digests, 200) == pytest.approx(np.linalg.cholesky(whole), abs=1e-8)
    nuggets[70] = 0.5  # one was run again: its block and those behind it are made anew
    assert warm.factor(bits, nuggets, digests, 200) @ warm.factor(bits, nuggets, digests, 200).T == pytest.approx(
        whole + np.diag(nuggets - 0.01), abs=1e-8
    )
    assert found.shape == (197, 197)


def test_posterior_against_the_textbook() -> None:
    """Means and deviations decide everything; here they are computed by a plain matrix inverse."""
    proposals = evaluated(40, noise=0.02)
    history, new = History(proposals[:30]), proposals[30:]
    belief = Surrogates().condition(SPACE, ACCURACY, history)
    process, code = belief._process, belief._process.code
    bits, wanted = code(proposals[:30]), code(new)
    loss = np.array([-one.metrics["accuracy"] for one in proposals[:30]])
    targets, nugget = warp_of(loss)(loss), process.parameters.nugget
    inverse = np.linalg.inv(process.kernel(bits, bits) + (nugget + 1e-6) * np.eye(30))
    scale = float(targets @ inverse @ targets) / 30
    cross = process.kernel(wanted, bits)
    mean, deviation = belief.predict(belief.code(new))
    assert mean == pytest.approx(cross @ inverse @ targets, abs=1e-6)
    variance = scale * (1 + (1 - MOST_NOISE) * nugget - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    assert deviation == pytest.approx(np.sqrt(variance), rel=1e-4)
    # Of what was observed: the value without the part of the nugget that is taken for luck.
    values = targets - MOST_NOISE * nugget * inverse @ targets
    assert belief.mean == pytest.approx(values, abs=1e-6)
    own = np.sqrt(scale * (MOST_NOISE * nugget - (MOST_NOISE * nugget) ** 2 * np.diag(inverse)))
    assert belief.deviation() == pytest.approx(own, rel=1e-3)
    assert (belief.rough(belief.code(new))[1] >= deviation - 1e-4).all() or nugget > 0
    assert belief.rough(belief.code(new))[0] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_free_volume_is_what_the_front_does_not_dominate(axes: int) -> None:
    """The known metrics are used exactly: were a volume wrong, cheap networks would be over- or undervalued."""
    rng = np.random.default_rng(axes)
    for members in (0, 1, 9):
        front, loss = rng.random((members, axes)), rng.random(members)
        known, at = rng.random((6, axes)) * 1.2, np.sort(rng.random(5))
        reference = np.full(axes, 1.0)
        found = free_volume(known, front, loss, at, reference)
        for row in range(6):
            box = np.prod(np.maximum(reference - known[row], 0))
            for column, threshold in enumerate(at):
                clipped = np.maximum(front[loss <= threshold], known[row])
                taken = hypervolume(clipped, reference) if box and len(clipped) else 0.0
                assert found[row, column] == pytest.approx(box - taken, abs=1e-12)


def test_gain_is_the_mean_gain_of_hypervolume() -> None:
    """Against simulation: draw accuracies from the prediction, and see by how much the hypervolume grows."""
    from nasplat.search.gp import _Gain

    rng = np.random.default_rng(0)
    believed = np.column_stack([-rng.random(12), rng.random(12)])
    warp = warp_of(believed[:, 0])
    corner = np.array([0.1, 1.1])
    gain = _Gain(believed, [warp], corner, rng)
    mean, deviation, known = np.array([-0.3, 0.4, 1.0]), np.array([0.5, 0.7, 0.2]), np.array([[0.2], [0.05], [0.9]])
    found = gain([(mean, deviation)], known)
    now = hypervolume(believed, corner)
    for row in range(3):
        drawn = warp.back(mean[row] + deviation[row] * rng.standard_normal(4000))
        grown = [hypervolume(np.vstack([believed, [one, known[row, 0]]]), corner) - now for one in drawn]
        assert found[row] == pytest.approx(np.mean(grown), abs=4 * np.std(grown) / np.sqrt(4000) + 2e-3)
    # Two modelled metrics: the second one is sampled.
    both = _Gain(
        np.column_stack([believed, rng.random(12)]), [warp, warp_of(believed[:, 1])], np.append(corner, 1.2), rng
    )
    assert both([(mean, deviation), (mean, deviation)], known).shape == (3,)
    assert (both([(mean, deviation), (mean, deviation)], known) >= 0).all()


def simulate(
    strategy: object, goals: tuple[Goal, ...], budget: int, seed: int, space: ToySpace = SPACE
) -> list[Proposal]:
    found: list[Proposal] = []
    while len(found) < budget:
        suggestion = strategy(History(found), space, goals, ask_rng(seed, len(found)))  # type: ignore[operator]
        one = space.canonical(suggestion.values)
        metrics = {**space.known(one), "accuracy": accuracy(one, 0)}
        found.append(Proposal(len(found), one.values, one.digest, "complete", metrics))
    return found


@pytest.mark.parametrize("goals", [(ACCURACY,), GOALS, (GOALS[1],), (*GOALS, Goal("macs", "minimize"))])
def test_no_repeat_ever(goals: tuple[Goal, ...]) -> None:
    """A repeat is a training that tells nothing; an exhausted space is the one excuse."""
    small = ToySpace(layers=2, widths=(8, 16))
    size = len({one.digest for one in small.enumerate()})
    for seed in range(3):
        found = simulate(gp(startup=4), goals, size, seed, small)
        assert len({one.digest for one in found}) == size


def test_ahead_of_random_and_close_to_the_best() -> None:
    """The reason to use it: after 40 of 10,000 candidates it has the best, or nearly."""
    best = max(accuracy(one, 0) for one in ToySpace(layers=3).enumerate())
    three = ToySpace(layers=3)
    for seed in range(4):
        found = simulate(gp(), (ACCURACY,), 40, seed, three)
        assert best - max(one.metrics["accuracy"] for one in found) < 2e-3


def test_running_trials_are_not_proposed_again_and_spread_the_batch() -> None:
    """Sixteen workers that all train neighbours of one candidate do the work of one."""
    proposals = evaluated(20)
    strategy, history = gp(), list(proposals)
    for number in range(20, 30):
        suggestion = strategy(History(history), SPACE, GOALS, ask_rng(0, number))
        one = SPACE.canonical(suggestion.values)
        assert one.digest not in {other.digest for other in history}
        history.append(Proposal(number, one.values, one.digest, "running", SPACE.known(one)))


def test_runs_with_new_seeds_are_averaged_and_their_noise_is_learned() -> None:
    """The luckiest run would be taken for the best network."""
    proposals = evaluated(20)
    first = proposals[0]
    luck = [2.0, -1.5, 1.8, -1.0]
    again = [
        Proposal(20 + n, first.values, first.digest, "complete", {**first.metrics, "accuracy": value}, replicate=n + 1)
        for n, value in enumerate(luck)
    ]
    history = History([*proposals, *again])
    merged = next(one for one in history.complete if one.digest == first.digest)
    assert merged.runs == 5 and merged.number == 0
    assert merged.metrics["accuracy"] == pytest.approx((first.metrics["accuracy"] + sum(luck)) / 5)
    assert len(history.complete) == 20
    quiet = Surrogates().condition(SPACE, ACCURACY, History(proposals))
    noisy = Surrogates().condition(SPACE, ACCURACY, history)
    assert noisy.noise[0] == pytest.approx(noisy.run_noise / 5)
    assert noisy.run_noise > quiet.run_noise
    assert set(expected(history, SPACE, GOALS)) == {one.number for one in history.complete}


def test_asks_for_another_run_only_where_it_may() -> None:
    """`again` is a share: without it nothing is ever trained twice."""
    small = ToySpace(layers=2, widths=(8, 16))  # where soon nothing new is promising
    asked = {}
    for again in (0.0, 0.5):
        found: list[Proposal] = []
        strategy, luck = gp(startup=4, again=again), np.random.default_rng(0)
        while len(found) < 24:
            suggestion = strategy(History(found), small, (ACCURACY,), ask_rng(0, len(found)))
            one = small.canonical(suggestion.values)
            earlier = sum(other.digest == one.digest for other in found)
            assert suggestion.again == (earlier > 0)
            metrics = {**small.known(one), "accuracy": accuracy(one, 0) + 0.2 * luck.normal()}
            found.append(Proposal(len(found), one.values, one.digest, "complete", metrics, replicate=earlier))
        asked[again] = sum(one.replicate > 0 for one in found)
    assert asked[0.0] == 0 and 0 < asked[0.5] <= 13


def test_what_is_expected_is_nearer_to_the_truth_than_what_was_observed() -> None:
    """What `nasplat` recommends from noisy trials must disappoint less than their observations do."""
    gain = []
    for seed in range(8):
        history = History(evaluated(60, seed, noise=0.15))
        believed = expected(history, SPACE, GOALS)
        true = [accuracy(SPACE.canonical(one.values), 0) for one in history]
        seen = np.corrcoef(true, [one.metrics["accuracy"] for one in history])[0, 1]
        gain.append(np.corrcoef(true, [believed[one.number]["accuracy"] for one in history])[0, 1] - seen)
        assert all(believed[one.number]["params"] == one.metrics["params"] for one in history)
    assert np.mean(gain) > 0.05
