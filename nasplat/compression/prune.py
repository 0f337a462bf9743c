"""The story of a pruning: score, select, cut, prove, and win back what was lost; once, or little by little.

from torchvision.models import resnet18
from nasplat.compression.prune import prune_network
from nasplat.core.pruning import Budget, Pruning

pruned = prune_network(resnet18(), (torch.randn(1, 3, 224, 224),), Pruning(budget=Budget(macs=0.5)))
pruned.module  # an ordinary ResNet of torchvision with other widths
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasplat.artifacts.metric_names import label, text
from nasplat.artifacts.weights import load_into, read_metadata, save_weights
from nasplat.compression.images import BATCH, batches, losses, recalibrated, test_metrics, why_not_judged
from nasplat.compression.selection import Selection, largest_fast_enough, select
from nasplat.compression.sparsity import sparse_objective
from nasplat.compression.task_importance import importance_to_all, sum_of
from nasplat.core.architecture import fingerprint
from nasplat.core.channel_cost import graph_cost
from nasplat.core.channel_graph import ChannelGraph, Frozen
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Train
from nasplat.core.pruning import FROM_DATA, FROM_LOSS, Pruning, Sparsity
from nasplat.core.pruning_groups import chosen_groups
from nasplat.networks.channel_tracer import trace_channels
from nasplat.networks.pruning_proof import prove
from nasplat.networks.surgery import Surgery, bare, kept_channels, operate, plan
from nasplat.training.devices import resolve_device
from nasplat.training.fit import fit, objective_of
from nasplat.training.latency import latencies
from nasplat.training.loop import Progress
from nasplat.training.objectives import Objective

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset

BLOCK_IMAGES = 1024
SMALL_BATCH = 16

Operation = tuple[str, ...] | Surgery  # whole blocks by their names, or channels


@dataclass(frozen=True, slots=True)
class Stage:
    """What a network was at one point of a pruning.

    Args:
        title: `original`, `without 2 blocks`, `step 1` …
        macs: at batch 1.
        metrics: on the test images: `accuracy`, or of several tasks the main metric of each; empty without labels.
        cut: the same before fine-tuning; empty where nothing was fine-tuned.
    """

    title: str
    macs: int
    params: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    cut: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A smaller network, and how it came about.

    Args:
        module: of the same class as the original, in eval mode, on the CPU and in the original's type of numbers.
        operations: what was done to the original's structure, in order.
        stages: the first is the original, the last the result.
        untouched: groups that were left whole against the settings' wish, and why.
        notes: what a person should know, such as a budget that could not be met exactly.
        proofs: the largest differences that `nasplat.networks.pruning_proof.prove` found.
    """

    module: nn.Module
    operations: tuple[Operation, ...]
    stages: tuple[Stage, ...]
    untouched: tuple[Frozen, ...]
    notes: tuple[str, ...]
    proofs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Watch:
    """What is told while it goes on: texts, and the progress of a training by its name."""

    say: Callable[[str], None] = lambda text: None
    on_progress: Callable[[str, Progress], None] = lambda name, progress: None


def prune_network(
    model: nn.Module,
    example_inputs: Sequence[Any],
    settings: Pruning,
    *,
    dataset: Dataset | None = None,
    watch: Watch | None = None,
    folder: Path | None = None,
) -> Pruned:
    """Makes a network smaller; the one that is given stays as it is.

    Args:
        model: any module, in any mode, on any device, in any type of numbers; wrappers are taken off.
        example_inputs: what its forward takes; the costs are those at this batch size.
        settings: see `nasplat.core.pruning`.
        dataset: images as the network wants them, to judge, to score by and to fine-tune on.
        watch: is told how far it is.
        folder: for checkpoints of trainings: the same call with the same folder goes on where it was interrupted.

    Raises:
        NasplatError: the model cannot be analysed, the budget cannot be met, the data do not fit, or a proof failed.
    """
    if dataset is None and settings.needs_images:
        raise NasplatError(f"{settings.needs_images} needs images, and there are none", "give data")
    return _Run(model, tuple(example_inputs), settings, dataset, watch or Watch(), folder).run()


class _Run:
    """The state of one pruning."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        settings: Pruning,
        dataset: Dataset | None,
        watch: Watch,
        folder: Path | None,
    ) -> None:
        self.settings, self.dataset, self.watch, self.folder = settings, dataset, watch, folder
        self.device = resolve_device(settings.device)
        self.dtype = next((tensor.dtype for tensor in model.parameters()), torch.float32)
        self.inputs = tuple(_plain(value) for value in inputs)
        self.network = copy.deepcopy(bare(model)).float().eval().to("cpu")
        self.original = self.network
        distills = settings.train is not None and settings.train.distill is not None
        self.teacher = copy.deepcopy(self.network) if distills else None
        self.identity = fingerprint({"settings": settings.model_dump(mode="json"), "data": _data_name(dataset)})
        self.operations: list[Operation] = []
        self.stages: list[Stage] = []
        self.untouched: dict[str, Frozen] = {}
        self.notes: list[str] = []
        self.proofs: dict[str, float] = {}

    def run(self) -> Pruned:
        self.watch.say("following the channels")
        graph = trace_channels(self.network, self.inputs)
        whole = graph_cost(graph, {})
        unjudged = why_not_judged(self.network, self.dataset)
        self.judged = unjudged is None
        if unjudged is not None:
            self.notes.append(f"the accuracy was not measured: {unjudged}")
        self._stage("original", whole, self._metrics())
        limits = _absolute(self.settings, whole)
        if self.settings.blocks:
            graph = self._remove_blocks(graph)
        if limits or self.settings.budget.latency is not None:
            self._prune(graph, limits)
        self.network.to("cpu", self.dtype).eval()
        return Pruned(
            self.network,
            tuple(self.operations),
            tuple(self.stages),
            tuple(self.untouched.values()),
            tuple(self.notes),
            self.proofs,
        )

    def _prune(self, graph: ChannelGraph, limits: Mapping[str, float]) -> None:
        settings = self.settings
        budget = settings.budget
        first = {group.name: group.size for group in graph.groups}
        start = dict(zip(("macs", "params"), graph_cost(graph, {}), strict=True))
        self.untouched.update({one.name: one for one in graph.frozen})

        def choose(step: int) -> Selection:
            share = step / settings.steps
            now = {name: start[name] ** (1 - share) * limit**share for name, limit in limits.items()}
            scores = self._scores(graph)
            if budget.latency is None:
                return self._select(graph, scores, now, first)
            return self._select_by_latency(graph, scores, now, first, budget.latency**share)

        for step in range(1, settings.steps + 1):
            if step > 1:
                graph = trace_channels(self.network, self.inputs)
            if step == 1 and settings.sparsity is not None:
                selection = self._train_sparse(settings.sparsity, graph, choose)
            else:
                selection = choose(step)
            self._cut(graph, selection)
            cut = self._metrics() if settings.train is not None else {}
            if settings.train is not None:
                self._fit(f"step-{step}", _share(settings.train, step, settings.steps))
            self._stage(f"step {step}", (selection.macs, selection.params), self._metrics(), cut)
        if not selection.met and budget.latency is None:
            names = " and ".join(f"{name} {limit:,.0f}" for name, limit in limits.items())
            self.notes.append(
                f"{names} is more than 1 % away: the widths that come nearest have {selection.macs:,} macs and "
                f"{selection.params:,} params"
            )

    def _select(
        self, graph: ChannelGraph, scores: Mapping[str, Any], limits: Mapping[str, float], first: Mapping[str, int]
    ) -> Selection:
        budget = self.settings.budget
        return select(
            graph,
            scores,
            limits,
            scope=self.settings.importance.scope,
            round_to=budget.round_to,
            # Of the original's widths, however many steps there are.
            least={name: budget.least * first.get(name, len(scores[name])) for name in scores},
        )

    def _select_by_latency(
        self,
        graph: ChannelGraph,
        scores: Mapping[str, Any],
        limits: dict[str, float],
        first: Mapping[str, int],
        aim: float,
    ) -> Selection:
        shape = tuple(self.inputs[0].shape[1:])

        def time_of(selection: Selection) -> float:
            smaller, _ = operate(self.network, plan(self.network, graph, selection.keep))
            pair = (self.original.to(self.device), smaller.to(self.device))
            before, after = latencies(pair, shape, self.device, self.settings.budget.latency_batch)  # type: ignore[arg-type]
            self.original.cpu()
            share = selection.macs / self.stages[0].macs
            self.watch.say(f"{share:.0%} of the MACs take {after.median / before.median:.0%} of the time")
            return after.median / before.median

        macs = graph_cost(graph, {})[0]
        most = min(1.0, limits.get("macs", macs) / macs)
        return largest_fast_enough(
            lambda share: self._select(graph, scores, {**limits, "macs": share * macs}, first), time_of, aim, most
        )

    def _scores(self, graph: ChannelGraph) -> dict[str, Any]:
        groups = chosen_groups(graph, self.settings.structures, self.settings.only, self.settings.leave)
        chosen = self.settings.importance
        # Criteria of the loss take squares of a batch's sum: of small batches more is left.
        size = SMALL_BATCH if chosen.criterion in FROM_LOSS else BATCH
        found_in = self._images(chosen.images, size) if chosen.criterion in FROM_DATA else []
        self.network.to(self.device)
        generator = torch.Generator().manual_seed(self.settings.seed)
        found = importance_to_all(self.network, graph, chosen, losses(self.dataset), found_in, generator)
        self.network.to("cpu")
        for group in groups:
            if group.name not in found:
                reason = f"{chosen.criterion} says nothing of these channels"
                self.untouched[group.name] = Frozen(group.name, group.size, reason, group.name)
        scores = {group.name: found[group.name].numpy() for group in groups if group.name in found}
        if not scores:
            raise NasplatError(
                f"{chosen.criterion} says nothing of any group of channels", "choose another importance.criterion"
            )
        return scores

    def _cut(self, graph: ChannelGraph, selection: Selection) -> None:
        surgery = plan(self.network, graph, selection.keep)
        smaller, _ = operate(self.network, surgery)
        self.watch.say("proving that the smaller network is the larger one without these channels")
        self.proofs = prove(self.network, smaller, graph, selection.keep, self.inputs)
        self.network = smaller.eval()
        self.operations.append(surgery)
        self._recalibrate()

    def _remove_blocks(self, graph: ChannelGraph) -> ChannelGraph:
        from nasplat.compression.block_importance import block_importance
        from nasplat.networks.residual_blocks import remove_blocks, residual_blocks

        blocks = residual_blocks(self.network, self.inputs)
        wanted = self.settings.blocks
        if wanted > len(blocks):
            raise NasplatError(
                f"{wanted} residual blocks are to be removed, and {len(blocks)} can be",
                f"these can: {', '.join(block.name for block in blocks) or 'none'}",
            )
        found: list[str] = []
        for _ in range(wanted):  # one after the other: what one block does depends on the others
            left = [block.name for block in blocks if block.name not in found]
            seen = self._images(BLOCK_IMAGES) if self.judged else None
            scores = block_importance(self.network.to(self.device), left, seen, sum_of(losses(self.dataset)))
            worst = min(scores, key=lambda name: scores[name])
            self.network = remove_blocks(self.network.cpu(), [worst], self.inputs)
            found.append(worst)
        self.operations.append(tuple(found))
        self._recalibrate()
        graph = trace_channels(self.network, self.inputs)
        title = f"without {', '.join(found)}"
        cut = self._metrics()
        if self.settings.train is not None and self.settings.budget.macs is None:
            self._fit("blocks", self.settings.train)
            self._stage(title, graph_cost(graph, {}), self._metrics(), cut)
        else:
            self._stage(title, graph_cost(graph, {}), cut)
        return graph

    def _train_sparse(self, sparsity: Sparsity, graph: ChannelGraph, choose: Callable[[int], Selection]) -> Selection:
        """What is to be cut first: chosen before the training where that grows a penalty on it, otherwise after."""
        assert self.dataset is not None
        base = self.settings.train or Train()
        settings = Train.model_validate({**_without_budget(base, sparsity.train), **sparsity.train})
        doomed = choose(1) if sparsity.kind == "growing" else None
        objective = sparse_objective(
            self._objective(settings),
            sparsity.kind,
            sparsity.strength,
            self.network,
            chosen_groups(graph, self.settings.structures, self.settings.only, self.settings.leave),
            {} if doomed is None else doomed.keep,
        )
        self._fit("sparsity", settings, objective)
        self._stage("sparse", graph_cost(graph, {}), self._metrics())
        return doomed or choose(1)

    def _fit(self, name: str, settings: Train, objective: Any = None) -> None:
        """Trains the network, or takes the weights that an earlier session left under this name."""
        assert self.dataset is not None
        done = None if self.folder is None else self.folder / f"{name}.safetensors"
        if done is not None and done.exists():
            self._load(done)
            return
        fit(
            self.network,
            self.dataset,
            settings,
            device=self.device,
            seed=self.settings.seed,
            checkpoint=None if self.folder is None else self.folder / name,
            on_progress=lambda progress: self.watch.on_progress(name, progress),
            objective=objective or self._objective(settings),
        )
        self.network.cpu().eval()
        if done is not None:
            save_weights(self.network, done, {"settings": self.identity})

    def _objective(self, settings: Train) -> Objective:
        assert self.dataset is not None
        kept = kept_channels(self.original, [one for one in self.operations if isinstance(one, Surgery)])
        return objective_of(settings, self.dataset, self.network, self.device, self.teacher, kept)

    def _load(self, path: Path) -> None:
        if read_metadata(path).get("settings") != self.identity:
            raise NasplatError(f"{path} is of a pruning with other settings", "remove its folder, or choose another")
        load_into(self.network, path)
        self.watch.say(f"{path.stem}: trained before")

    def _images(self, count: int, size: int = BATCH) -> list[tuple[Tensor, Any]]:
        assert self.dataset is not None
        return list(batches(self.dataset, count, self.device, self.settings.seed, size))

    def _recalibrate(self) -> None:
        if self.dataset is not None and self.settings.recalibrate:
            recalibrated(self.network, self.dataset, self.device, self.settings.seed)

    def _metrics(self) -> dict[str, float]:
        if self.dataset is None or not self.judged:
            return {}
        return test_metrics(self.network, self.dataset, self.device)

    def _stage(
        self, title: str, cost: tuple[int, int], metrics: Mapping[str, float], cut: Mapping[str, float] | None = None
    ) -> None:
        self.stages.append(Stage(title, cost[0], cost[1], metrics, cut or {}))
        known = [
            f"{cost[0] / self.stages[0].macs:.1%} of the MACs, {cost[1] / self.stages[0].params:.1%} of the params"
        ]
        known += [f"{label(name)} {text(name, value)} when cut" for name, value in (cut or {}).items()]
        known += [f"{label(name)} {text(name, value)}" for name, value in metrics.items()]
        self.watch.say(f"{title}: {', '.join(known)}")


def _absolute(settings: Pruning, whole: tuple[int, int]) -> dict[str, float]:
    limits = {}
    for name, cost in zip(("macs", "params"), whole, strict=True):
        limit = getattr(settings.budget, name)
        if limit is not None:
            limits[name] = limit * cost if limit <= 1 else float(limit)
    return limits


def _data_name(dataset: Dataset | None) -> str:
    return "" if dataset is None else dataset.fingerprint


def _share(settings: Train, step: int, steps: int) -> Train:
    """The budget of one step: half of all for the last, from which nothing is taken any more."""
    share = 1.0 if steps == 1 else 0.5 if step == steps else 0.5 / (steps - 1)
    if settings.steps is not None:
        return _with_budget(settings, steps=max(1, round(share * settings.steps)))
    if settings.epochs is not None:
        return _with_budget(settings, epochs=share * settings.epochs)
    assert settings.seconds is not None
    return _with_budget(settings, seconds=share * settings.seconds)


def _with_budget(settings: Train, **budget: float) -> Train:
    return settings.model_copy(update=budget)


def _without_budget(settings: Train, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as plain data, without their budget where the overrides have one."""
    budgets = {"epochs", "steps", "seconds"}
    dropped = budgets if budgets & overrides.keys() else set()
    return {name: value for name, value in settings.model_dump().items() if name not in dropped and value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu()
    return value
