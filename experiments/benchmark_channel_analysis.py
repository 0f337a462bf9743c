"""What can be pruned from published networks, how long the analysis takes, and what torch-pruning makes of the same.

    python experiments/benchmark_channel_analysis.py

writes experiments/benchmark_channel_analysis.md; needs `pip install torch-pruning timm`. Every analysis is a process of
its own, for its peak memory. Resumable: what was measured lies in runs/benchmark_channel_analysis.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
KEPT = HERE.parent / "runs/benchmark_channel_analysis.json"


def network(name: str) -> tuple[Any, int]:
    """A published network with random weights, and the size of image that it is analysed at."""
    from nasplat.data.torchvision_import import torchvision
    from tests.networks import zoo

    if name == "resnet20 (CIFAR)":
        from resnet20_cifar import resnet20

        return resnet20().eval(), 32
    if name in zoo.PUBLISHED:
        return torchvision.models.get_model(name, weights=None).eval(), zoo.PUBLISHED[name]
    import timm

    return timm.create_model(name, pretrained=False).eval(), zoo.TIMM[name]


def by_nasplat(name: str) -> dict[str, Any]:
    """Traces, takes half of every group away, and proves it."""
    import torch

    from nasplat.networks.channel_tracer import trace_channels
    from nasplat.networks.pruning_proof import prove
    from nasplat.networks.surgery import prune

    model, size = network(name)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    graph = trace_channels(model, (images,))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    keep = {group.name: range((group.size + 1) // 2) for group in graph.groups}
    pruned, _ = prune(model, graph, keep)
    found = prove(model, pruned, graph, keep, (images,))
    return {
        "seconds": seconds,
        "peak": peak,
        "groups": len(graph.groups),
        "frozen": [f"{one.name} ({one.size}): {one.reason}" for one in graph.frozen],
        "difference": found["float64"],
        "left": share(model, pruned),
    }


def by_torch_pruning(name: str) -> dict[str, Any]:
    """Takes half of every group away, as its users would, and runs the result in both modes."""
    import torch
    import torch_pruning

    model, size = network(name)
    before = sum(one.numel() for one in model.parameters())
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(images)
    last = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == outputs.shape[1]]
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        pruning_ratio_dict={},
        ignored_layers=last[-1:],
        customized_pruners={},
        root_module_types=[torch.nn.Conv2d, torch.nn.Linear],
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pruner.step()
    found = {"seconds": seconds, "peak": peak}
    with torch.no_grad():
        if model(images).shape != outputs.shape:
            raise RuntimeError("the output has another shape")
    return {**found, "left": sum(one.numel() for one in model.parameters()) / before}


def padded_shortcuts() -> str:
    """Which channels of the second stage torch-pruning takes with the first two of the first."""
    import torch
    import torch_pruning
    from resnet20_cifar import resnet20

    model = resnet20().eval()
    before = model.layer2[0].conv2.weight.detach().clone()  # type: ignore[index, union-attr]
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, 3, 32, 32))
    graph.get_pruning_group(model.conv1, torch_pruning.prune_conv_out_channels, idxs=[0, 1]).prune()
    after = model.layer2[0].conv2.weight.detach()  # type: ignore[index, union-attr]
    gone = [row for row in range(len(before)) if not any(torch.equal(before[row], one) for one in after)]
    return (
        f"with channels 0 and 1 of the first stage torch-pruning removes {' and '.join(map(str, gone))} of the second, "
        "where the shortcut brings them to 8 and 9. Its result runs, and is another network."
    )


def share(model: Any, pruned: Any) -> float:
    return sum(one.numel() for one in pruned.parameters()) / sum(one.numel() for one in model.parameters())


def measured(tool: str, name: str) -> dict[str, Any]:
    """The finding of a process of its own, or how it failed."""
    words = [sys.executable, __file__, "--one", tool, name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failure": (lines or ["killed"])[-1][:160]}


def page(found: dict[str, dict[str, Any]], names: list[str]) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "torch-pruning"))
    heads = ("network", "groups", "left whole", "seconds", "peak GB", "proof", "params left")
    lines = [
        "# What can be pruned from published networks",
        "",
        "`python experiments/benchmark_channel_analysis.py`",
        "",
        f"{machine}, {versions}. Random weights; half of every group goes.",
        "",
        "Peak memory is that of the whole process when the analysis is done, with torch and the network. `proof` is "
        "the largest difference, relative to the largest output, between the pruned network and the original with "
        "these channels zeroed, in float64: 0 where an untrained network answers with zeros, which is why the same "
        "proof is made with random weights, too. torch-pruning counts as running where its result runs and keeps the "
        "shape of the output: nothing is proved there. Its seconds are those of building its graph, ours of "
        "everything up to the groups.",
        "",
        f"The zero-padded shortcuts of the CIFAR ResNet are such a case: {padded_shortcuts()}",
        "",
        f"| {' | '.join(heads)} | torch-pruning | its seconds | its peak GB | its params left |",
        "| --- " * (len(heads) + 4) + "|",
    ]
    for name in names:
        ours, theirs = found[f"nasplat {name}"], found[f"torch-pruning {name}"]
        if "failure" in ours:
            cells = [name, "", "", "", "", ours["failure"], ""]
        else:
            cells = [name, str(ours["groups"]), str(len(ours["frozen"])), f"{ours['seconds']:.1f}"]
            cells += [f"{ours['peak']:.2f}", f"{ours['difference']:.0e}", f"{ours['left']:.1%}"]
        if "failure" in theirs:
            cells += ["fails: " + theirs["failure"].replace("|", "/"), "", "", ""]
        else:
            cells += ["runs", f"{theirs['seconds']:.1f}", f"{theirs['peak']:.2f}", f"{theirs['left']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What is left whole, and why", ""]
    for name in names:
        for reason in found[f"nasplat {name}"].get("frozen", ()):
            lines.append(f"- {name}: {reason}")
    return "\n".join(lines) + "\n"


def main() -> None:
    from tests.networks import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        import torch

        torch.set_num_threads(1)
        tool = {"nasplat": by_nasplat, "torch-pruning": by_torch_pruning}[options.one[0]]
        print(json.dumps(tool(options.one[1])))
        return
    KEPT.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    names = ["resnet20 (CIFAR)", *zoo.PUBLISHED, *zoo.TIMM]
    for name in names:
        for tool in ("nasplat", "torch-pruning"):
            key = f"{tool} {name}"
            if key not in found:
                found[key] = measured(tool, name)
                KEPT.write_text(json.dumps(found))
                print(key, {k: v for k, v in found[key].items() if k != "frozen"}, flush=True)
    (HERE / "benchmark_channel_analysis.md").write_text(page(found, names))


if __name__ == "__main__":
    main()
