"""One experiment, one file: the whole of a search as plain, validated data. What is not written takes its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from nasplat.core.distillation import Distillation
from nasplat.core.section import Section


class Data(Section):
    """Which images, and how they are split. The search sees train and validation only."""

    source: str | None = Field(
        None,
        description="digits, the name of a torchvision classification data set, idx, or module:function of your own; "
        "default: what `path` holds, or digits where there is none",
    )
    path: str | None = Field(
        None, description="a folder of class folders, an .npz, or a folder with the data set's files"
    )
    tasks: Literal["all"] | tuple[str, ...] | dict[str, str | tuple[str, ...] | None] | None = Field(
        None,
        description="several tasks for one network: columns of a CSV file of labels (or kinds by column), attributes "
        "of celeba, tasks of fashion_mnist, or `labels`; and pretexts: rotation, jigsaw, colours, contrastive",
    )
    labels: bool = Field(True, description="false: do not read or use labels, even where there are some")
    train_size: int | None = Field(None, ge=1, description="use only so many training images, drawn with split_seed")
    validation: float = Field(0.2, gt=0, lt=1, description="share of the training images that is held out")
    split_seed: int = 0
    image_size: int | None = Field(None, ge=1, description="resize images to this height and width once, when loading")
    mean: tuple[float, ...] | None = Field(
        None,
        description="what a trained network wants subtracted from pixels of 0..1; default: the mean of these images",
    )
    std: tuple[float, ...] | None = Field(None, description="what it then wants them divided by")
    resident: Literal["auto", "device", "stream"] = Field(
        "auto", description="hold images on the device, or stream them"
    )

    @model_validator(mode="after")
    def _mean_and_deviation(self) -> Data:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _digits_without_a_path(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("source") is None and values.get("path") is None:
            return {**values, "source": "digits"}
        return values

    @property
    def name(self) -> str:
        """What people call these images."""
        return self.source or Path(self.path or "").name


class Train(Section):
    """How one network is trained. A budget is given in epochs, in steps or in seconds."""

    objective: str = Field("supervised", description="supervised, simclr, memory_bank, or module:function of your own")
    distill: Distillation | None = Field(
        None, description="learn from trained networks in place of, or beside, the labels; with objective: supervised"
    )
    epochs: float | None = Field(
        None, ge=0, description="0: no training, batch norm is measured anew; for networks that inherit their weights"
    )
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2)
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(3e-4, ge=0)
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the budget over which the learning rate rises")
    clip_norm: float | None = Field(5.0, gt=0, description="largest norm of the gradient")
    weighting: str = Field("hand", description="of the losses of several tasks: hand, uncertainty, or gradnorm")
    weighting_options: dict[str, Any] = Field(
        default_factory=dict, description="hand: weights by task; gradnorm: alpha, shared"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta distribution; 0 is off")
    temperature: float | None = Field(None, gt=0, description="default: 0.2 for simclr, 0.07 for memory_bank")
    projection: int = Field(64, ge=1, description="dimensions of the projection of the contrastive objectives")
    augment: tuple[str, ...] | None = Field(
        None, description="names of augmentations; default: what suits the objective"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="scheduled drop path: the probability at the end of training")
    auxiliary: float = Field(0.0, ge=0, description="weight of the auxiliary classifier's loss; 0 is off")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    checkpoint_seconds: float = Field(30.0, gt=0, description="least time between two checkpoints within a trial")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = [key for key in ("epochs", "steps", "seconds") if data.get(key) is not None]
            if len(given) > 1:
                raise ValueError(f"a budget is given once, not as {' and '.join(given)}")
            if not given:
                data = {**data, "epochs": 5}
        return data

    @model_validator(mode="after")
    def _a_teacher_is_the_objective(self) -> Train:
        if self.distill is not None:
            if self.objective != "supervised":
                raise ValueError(f"distill and objective {self.objective} cannot be joined: use objective supervised")
            for name in ("mixup", "auxiliary"):
                if getattr(self, name):
                    raise ValueError(f"distill and {name} cannot be joined: use {name}: 0")
            if self.distill.cache and (self.augment is None or self.augment):
                raise ValueError("distill.cache needs images that are not augmented: use augment: [], or cache: false")
        return self


class Score(Section):
    """How a trained network is judged, and what else counts."""

    probe: str | None = Field(
        None, description="none: the network's own classifier; linear, knn, or module:function of your own"
    )
    maximise: tuple[str, ...] = ("accuracy",)
    minimise: tuple[str, ...] = ("macs", "params")
    knn: int = Field(20, ge=1, description="neighbours of the k-NN probe")
    single_task: dict[str, float] = Field(
        default_factory=dict,
        description="metrics by task.metric of networks of one task, which delta_m is relative to; default: such "
        "networks are trained before the search",
    )

    @model_validator(mode="after")
    def _no_metric_twice(self) -> Score:
        metrics = (*self.maximise, *self.minimise)
        if len(set(metrics)) != len(metrics):
            raise ValueError(f"a metric is listed twice: {', '.join(metrics)}")
        if not metrics:
            raise ValueError("at least one metric is needed in maximise or minimise")
        return self


class Bounds(Section):
    """A hard constraint on a metric."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("a constraint needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class EarlyStopping(Section):
    """Trials are trained to a rung, judged there, and only the best of it are trained on."""

    rule: Literal["asha", "halving"] = "asha"
    reduction: int = Field(3, ge=2, description="one of so many goes on to the next rung")
    rungs: int = Field(2, ge=2, description="the last is the full budget, each before it a `reduction`-th of the next")
    bracket: int = Field(27, ge=2, description="of halving: so many trials are compared with each other")


class Screen(Section):
    """A cheap score drops candidates before they are trained."""

    by: Literal["predictor", "weights", "naswot", "synflow", "jacob_cov", "snip", "grad_norm", "params", "macs"] = (
        Field(
            description="predictor: what the evaluated candidates tell of a new one; weights: accuracy with the "
            "weights of the section weights; the others need no training"
        )
    )
    keep: float = Field(0.5, gt=0, lt=1, description="share of the candidates that is trained")
    after: int = Field(10, ge=5, description="so many are trained before any is dropped")


class Search(Section):
    """Which architectures are tried, and how many."""

    strategy: Literal[
        "gp",
        "local_search",
        "evolution",
        "reinforce",
        "expansion",
        "random",
        "tpe",
        "nsga2",
        "optuna_gp",
        "n2n",
        "pruning_population",
    ] = "gp"
    trials: int | None = Field(20, ge=1, description="number of distinct architectures to evaluate")
    seconds: float | None = Field(None, gt=0, description="wall time after which no new trial starts")
    seed: int = Field(0, ge=0)
    constraints: dict[str, Bounds] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict, description="parameters of the strategy")
    references: tuple[str, ...] = Field(
        (),
        description="known networks that are evaluated first, by name or as architecture.json; landmarks of the front",
    )
    produce: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="what proposes architectures before the strategy does, with its options: largest; of pruning "
        "uniform, ranked, sensitivity, transformable; of branching shared, separate, hand, random_trees, affinity, "
        "bmtas, learning_to_branch",
    )
    early_stopping: EarlyStopping | None = None
    screen: Screen | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> Search:
        if self.trials is None and self.seconds is None:
            raise ValueError("a search needs trials or seconds")
        return self


class Run(Section):
    """Where the trials run, and what is kept."""

    executor: Literal["inline", "processes", "ray"] = "inline"
    address: str | None = Field(
        None, description="of a Ray cluster: auto or HOST:PORT; by default Ray is started on this machine"
    )
    gpus: float | Literal["auto"] = Field(
        "auto",
        description="share of a GPU for a trial on Ray; auto measures the memory of the first, and packs what fits",
    )
    workers: int = Field(
        1,
        ge=1,
        description="trials at once. A proposal knows all results but those of the last 2 (workers - 1) trials, in "
        "every executor: so the same seed fills the same table",
    )
    threads: int = Field(1, ge=1, description="CPU threads a worker; part of what makes scores repeatable")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0 …")
    processes: int | Literal["auto"] = Field(
        "auto",
        description="that train one network together in nasplat train; auto is one a GPU of this machine. With "
        "executor: ray a number is that of workers of the cluster",
    )
    storage: str = Field("journal", description="journal, sqlite, or any Optuna URL")
    trial_seconds: float | None = Field(None, gt=0, description="a trial that takes longer has failed")
    disk_mb: int = Field(1024, ge=1, description="budget for the weights of the front")


class Weights(Section):
    """A source of weights for all networks of the space, trained once before the search.

    Candidates start from its weights, and `train: {epochs: 0}` scores them so; where `search.screen` is by weights,
    they are screened with them and start afresh.
    """

    source: Literal["supernet", "graph_hypernetwork", "smash"] = "supernet"
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the source: rule, paths and kernels of a supernet; networks, width, channels and kernel of a "
        "graph_hypernetwork, and a space of its own to train on, for networks outside of which it is asked or not "
        "(outside: refuse, warn); generated, base, kernels, rule, paths and sizes of smash",
    )
    train: dict[str, Any] = Field(default_factory=dict, description="overrides of the section train, for the source")
    file: str | None = Field(None, description="of a source that was trained before; by default it is trained")
    check: int = Field(
        20,
        ge=0,
        description="so many candidates, drawn over the whole ranking, are trained alone after a search with `train: "
        "{epochs: 0}`, to tell whether the weights of the source rank better than counting parameters does; 0 "
        "checks nothing. Where search.screen is by weights, the candidates that it let pass are the check",
    )
    check_train: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides of the section train, for networks that are trained alone; default: those of "
        "final.train, and 5 epochs where no budget is given",
    )

    @model_validator(mode="after")
    def _a_check_tells_something(self) -> Weights:
        if 0 < self.check < 3:
            raise ValueError(
                f"check: {self.check} trained networks tell nothing of a ranking: use 20 or more, or 0 for no check"
            )
        return self


class Final(Section):
    """What `nasplat train` changes for the full schedule: training settings, and the size of the network."""

    train: dict[str, Any] = Field(default_factory=dict, description="overrides of the section train")
    space: dict[str, Any] = Field(
        default_factory=dict, description="overrides of the space, such as cells and channels"
    )


class Experiment(Section):
    """A search from data to front."""

    name: str = Field("experiment", pattern=r"^[\w.-]+$")
    space: str | dict[str, Any] = Field(description="a YAML file, or the space itself")
    data: Data = Field(default_factory=lambda: Data())
    train: Train = Field(default_factory=lambda: Train())
    score: Score = Field(default_factory=lambda: Score())
    weights: Weights | None = None
    search: Search = Field(default_factory=lambda: Search())
    run: Run = Field(default_factory=lambda: Run())
    final: Final = Field(default_factory=lambda: Final())

    @model_validator(mode="before")
    @classmethod
    def _several_tasks_are_scored_together(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("data"), dict) or not values["data"].get("tasks"):
            return values
        score = values.get("score")
        if score is None or (isinstance(score, dict) and "maximise" not in score):
            return {**values, "score": {"maximise": ("delta_m",), **(score or {})}}
        return values

    @property
    def tabular(self) -> bool:
        """Whether candidates are looked up in a table, and nothing is trained."""
        return isinstance(self.space, dict) and self.space.get("family") == "tabular"

    @property
    def scored_by_source(self) -> bool:
        """Whether candidates are scored with the weights of a source as they come from it."""
        return self.weights is not None and self.train.epochs == 0

    @model_validator(mode="after")
    def _a_table_has_no_curves(self) -> Experiment:
        if self.tabular and (self.search.early_stopping or self.search.screen):
            raise ValueError("a table answers without training: leave out search.early_stopping and search.screen")
        return self

    @model_validator(mode="after")
    def _weights_of_somewhere(self) -> Experiment:
        if self.search.screen is not None and self.search.screen.by == "weights" and self.weights is None:
            raise ValueError("search.screen is by weights: the section weights says whose, such as {source: supernet}")
        if self.search.screen is not None and self.search.screen.by == "weights" and self.train.epochs == 0:
            raise ValueError("search.screen is by weights, and train.epochs: 0 trains nothing afterwards")
        if self.weights is not None and (self.tabular or self.data.tasks):
            raise ValueError("weights: leave it out, a table has no networks, and several tasks are trained for each")
        return self

    @model_validator(mode="after")
    def _gradnorm_needs_a_shared_layer(self) -> Experiment:
        relaxed = [name for name in self.search.produce if name in ("bmtas", "learning_to_branch")]
        if relaxed and self.train.weighting == "gradnorm":
            raise ValueError(
                f"search.produce.{relaxed[0]}: gradnorm looks at a layer that all tasks share, and a search by "
                "gradients has none: use train.weighting: hand or uncertainty"
            )
        return self

    @model_validator(mode="after")
    def _nothing_to_stop_early(self) -> Experiment:
        if self.train.epochs == 0 and self.search.early_stopping:
            raise ValueError("train.epochs: 0 leaves nothing to stop early: leave out search.early_stopping")
        return self

    @model_validator(mode="after")
    def _accuracy_of_a_trained_classifier(self) -> Experiment:
        untrained = self.train.objective in ("simclr", "memory_bank") and self.score.probe is None
        if untrained and "accuracy" in (*self.score.maximise, *self.score.minimise):
            raise ValueError(f"{self.train.objective} trains no classifier: score.probe says how to measure accuracy")
        return self
