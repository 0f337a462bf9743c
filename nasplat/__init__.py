"""nasplat: from images and a budget to a Pareto front of networks, and from a trained network to a smaller one.

The command line does everything; this is the same in Python:

    from pathlib import Path
    from nasplat.artifacts.weights import load_into
    from nasplat.jobs.runs import open_run
    from nasplat.jobs.search import prepare, run_and_report

    prepared = prepare(Path("experiments/quickstart.yaml"), Path("runs/mine"), overrides=["run.executor=inline"])
    run_and_report(prepared, export="none")
    run = open_run(prepared.directory)  # also of a search that was run on the command line
    for candidate in run.front:
        print(candidate.number, candidate.architecture.digest, dict(candidate.metrics))
    network = run.space.build(run.front[0].architecture)
    load_into(network, run.front[0].folder.weights)

`choice` is all that a network function of your own needs (see `nasplat.spaces.user`); importing it needs no torch.

A trained network of any kind is made smaller by `nasplat.compression.prune.prune_network`; that module shows how.
"""

from nasplat.spaces.choosing import choice

__all__ = ["__version__", "choice"]
__version__ = "0.1.0"
