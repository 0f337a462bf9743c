"""A table as a search space: what it answers must be what stands in its file."""

import json
from pathlib import Path

import numpy as np
import pytest

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.problem import classification
from nasplat.spaces.families import load_space, make_space
from nasplat.spaces.tabular import TabularSpace

PROBLEM = classification((3, 32, 32), 10)
ROOT = Path(__file__).resolve().parents[2]
MACRO = ROOT / "../shared/data/nas_bench_macro/nas-bench-macro_cifar10.json"
CSV = """width;depth;op;acc;seed2;flops
8;1;conv;0.5;0.7;100
16;1;conv;0.6;0.6;200
8;2;pool;0.4;0.8;150
16;3;pool;0.9;0.9;400
"""


def csv_space(tmp_path: Path, **changes: object) -> TabularSpace:
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    spec = {"family": "tabular", "table": str(path), "metrics": {"accuracy": ["acc", "seed2"], "macs": "flops"}}
    space = make_space({**spec, **changes}, PROBLEM)
    assert isinstance(space, TabularSpace)
    return space


def test_a_csv_is_a_space_of_its_columns(tmp_path: Path) -> None:
    """Whoever brings a table of his own would lose columns, or the order of numbers, without a word."""
    space = csv_space(tmp_path)
    assert {name: (one.options, one.ordered) for name, one in space.choices.items()} == {
        "width": ((8, 16), True),
        "depth": ((1, 2, 3), True),
        "op": (("conv", "pool"), False),
    }
    assert space.count() == 4
    rows = list(space.enumerate())
    assert [space.mean(one) for one in rows] == [
        pytest.approx({"accuracy": accuracy, "macs": macs})
        for accuracy, macs in [(0.6, 100), (0.6, 200), (0.6, 150), (0.9, 400)]
    ]
    assert space.known(rows[2]) == {"macs": 150.0}


def test_what_is_in_no_row_is_repaired_to_the_nearest_row(tmp_path: Path) -> None:
    """Strategies change one choice at a time: in a table with holes they would fall into one."""
    space = csv_space(tmp_path)
    repaired = space.canonical({"width": 16, "depth": 3, "op": "conv"})
    assert dict(repaired.values) == {"width": 16, "depth": 1, "op": "conv"} or dict(repaired.values) == {
        "width": 16,
        "depth": 3,
        "op": "pool",
    }
    rng = np.random.default_rng(0)
    digests = {one.digest for one in space.enumerate()}
    for _ in range(30):
        drawn = space.sample(rng)
        assert drawn.digest in digests
        assert {near.digest for near in space.neighbours(drawn)} <= digests
        assert Architecture.from_json(drawn.to_json()) == drawn == space.canonical(drawn.values)


def test_noise_is_a_run_of_the_row_and_a_seed_picks_it(tmp_path: Path) -> None:
    """With `answer: run` a search must see what one training would have given, and the same one when it is resumed."""
    space = csv_space(tmp_path, answer="run")
    row = space.canonical({"width": 8, "depth": 1, "op": "conv"})
    answers = [space.measure(row, seed)["accuracy"] for seed in range(40)]
    assert set(answers) == {0.5, 0.7}
    assert answers == [space.measure(row, seed)["accuracy"] for seed in range(40)]
    assert space.mean(row)["accuracy"] == pytest.approx(0.6)
    assert csv_space(tmp_path).measure(row, 3)["accuracy"] == pytest.approx(0.6)


def key_table(tmp_path: Path) -> Path:
    """Two layers after a strided one, as in NAS-Bench-Macro: `identity` commutes with the layer behind it."""
    space = load_space(ROOT / "search_spaces/nas_bench_macro.yaml", PROBLEM)
    rng = np.random.default_rng(0)
    options = next(iter(space.choices.values())).options
    rows = {}
    for _ in range(60):
        digits = rng.integers(3, size=8)
        rows["".join(map(str, digits))] = None
    for key in list(rows):
        values = dict(zip(space.choices, (options[int(d)] for d in key), strict=True))
        cost = space.cost(space.canonical(values))
        rows[key] = {"acc": [80 + int(key, 3) / 1e3, 81.0], "flops": cost.macs, "params": cost.params}
    rows["22212202"], rows["22212220"] = ({"acc": [90.0, a], "flops": 1, "params": 1} for a in (91.0, 95.0))
    path = tmp_path / "macro.json"
    path.write_text(json.dumps(rows))
    return path


def test_equal_networks_of_a_table_are_one_and_their_runs_are_pooled(tmp_path: Path) -> None:
    """Otherwise a search trains the same network twice under two names, and believes the luckier."""
    network = {"network": (ROOT / "search_spaces/nas_bench_macro.yaml").read_text()}
    import yaml

    metrics = {"accuracy": {"columns": "acc", "scale": 0.01}, "macs": "flops", "params": "params"}
    spec = {"family": "tabular", "table": str(key_table(tmp_path)), "metrics": metrics}
    plain = make_space(spec, PROBLEM)
    pooled = make_space({**spec, "network": yaml.safe_load(network["network"])}, PROBLEM)
    assert isinstance(plain, TabularSpace) and isinstance(pooled, TabularSpace)
    assert pooled.count() < plain.count()
    assert list(pooled.choices) != list(plain.choices) and len(plain.choices) == len(pooled.choices) == 8
    by_key = dict(zip(plain.choices, "22212202", strict=True))
    options = {"0": "identity", "1": "mb_k3_e3", "2": "mb_k5_e6"}
    first = pooled.canonical(dict(zip(pooled.choices, (options[d] for d in "22212202"), strict=True)))
    second = pooled.canonical(dict(zip(pooled.choices, (options[d] for d in "22212220"), strict=True)))
    assert first == second
    assert pooled.mean(first)["accuracy"] == pytest.approx((0.90 + 0.91 + 0.90 + 0.95) / 4)
    assert plain.mean(plain.canonical(by_key))["accuracy"] == pytest.approx(0.905)
    assert pooled.graph(first).operations and pooled.drawings(first)
    assert set(pooled.known(first)) == {"macs", "params", "peak_bytes"}
    assert pooled.fingerprint != plain.fingerprint


@pytest.mark.skipif(not MACRO.exists(), reason="the table of NAS-Bench-Macro is not there")
def test_nas_bench_macro_is_3969_networks_with_their_published_costs() -> None:
    """The table that strategies are judged on: were rows lost or costs wrong, every comparison would be."""
    import yaml

    metrics = {"accuracy": {"columns": "test_acc", "scale": 0.01}, "macs": "flops", "params": "params"}
    network = yaml.safe_load((ROOT / "search_spaces/nas_bench_macro.yaml").read_text())
    space = TabularSpace(PROBLEM, table=str(MACRO), metrics=metrics, network=network)
    built = make_space(network, PROBLEM)
    assert space.count() == 3969
    assert max(space.mean(one)["accuracy"] for one in space.enumerate()) == pytest.approx(0.931267, abs=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = space.sample(rng)
        cost = built.cost(built.canonical(one.values))
        assert (space.known(one)["macs"], space.known(one)["params"]) == (cost.macs, cost.params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {"accuracy": "acuracy"}}, "no column 'acuracy'"),
        ({"metrics": {}}, "metrics are not given"),
        ({"metrics": {"accuracy": {"columns": "acc", "scale": 0}}}, "scale is 0"),
        ({"metrics": {"accuracy": "op"}, "choices": ["width"]}, "no finite number"),
        ({"choices": ["width", "dept"]}, "no column 'dept'"),
        ({"answer": "median"}, "answer cannot be 'median'"),
        ({"table": "nowhere.csv"}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(NasplatError, match=said):
        csv_space(tmp_path, **changes)


def test_a_broken_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("width,acc\n8,0.5\n16\n")
    with pytest.raises(NasplatError, match="line 3"):
        TabularSpace(PROBLEM, table=str(path), metrics={"accuracy": "acc"})
    path.write_text("[1, 2")
    with pytest.raises(NasplatError, match="no table"):
        TabularSpace(PROBLEM, table=str(path.rename(tmp_path / "broken.json")), metrics={"accuracy": "acc"})


def test_a_table_of_numbers_builds_nothing(tmp_path: Path) -> None:
    space = csv_space(tmp_path)
    with pytest.raises(NasplatError, match="no networks"):
        space.build(space.sample(np.random.default_rng(0)))
    with pytest.raises(NasplatError, match="does not say params"):
        space.cost(space.sample(np.random.default_rng(0)))


def test_golden_digest(tmp_path: Path) -> None:
    """Files and studies of users hold digests: of the same table they must be the same tomorrow."""
    one = csv_space(tmp_path).canonical({"width": 8, "depth": 2, "op": "pool"})
    assert one.digest == "b97befbceaed01f9b2f89fdcb359e905ec6e485e2d8616bec668bf037d062667"
