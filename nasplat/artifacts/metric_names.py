"""How metrics are named and written for people, wherever they are shown."""

from __future__ import annotations

from math import isfinite
from typing import Literal

Unit = Literal["percent", "change", "count", "bytes", "milliseconds", "seconds", "number"]

# Metric -> what it is called, and what it is measured in. Others go by their own name.
METRICS: dict[str, tuple[str, Unit]] = {
    "accuracy": ("Accuracy", "percent"),
    "test_accuracy": ("Test accuracy", "percent"),
    "validation_accuracy": ("Validation accuracy", "percent"),
    "train_accuracy": ("Training accuracy", "percent"),
    "macs": ("MACs", "count"),
    "params": ("Parameters", "count"),
    "original_macs": ("MACs of the original", "count"),
    "original_params": ("Parameters of the original", "count"),
    "original_test_accuracy": ("Test accuracy of the original", "percent"),
    "delta_m": ("Gain over single tasks", "change"),
    "mean_average_precision": ("Mean average precision", "percent"),
    "mean_accuracy": ("Mean accuracy", "percent"),
    "mean_iou": ("Mean IoU", "percent"),
    "pixel_accuracy": ("Pixel accuracy", "percent"),
    "rmse": ("RMSE", "number"),
    "mse": ("MSE", "number"),
    "r2": ("R²", "number"),
    "peak_bytes": ("Peak activations", "bytes"),
    "latency": ("Latency", "milliseconds"),
    "latency_spread": ("Spread of latency", "milliseconds"),
    "seconds": ("Time", "seconds"),
    "train_seconds": ("Training", "seconds"),
    "loss": ("Loss", "number"),
    "weights": ("Accuracy with the source's weights", "percent"),
    "naswot": ("NASWOT", "number"),
    "snip": ("SNIP", "number"),
    "jacob_cov": ("Jacobian covariance", "number"),
    "synflow": ("SynFlow", "number"),
    "grad_norm": ("Gradient norm", "number"),
}


def label(metric: str) -> str:
    """What a metric is called: `Parameters` for `params`, and `hair: accuracy` for `hair.accuracy`.

    A user's own, `module:function`, has its function's name.
    """
    if ":" in metric:
        return metric.rpartition(":")[2]
    task, _, name = metric.rpartition(".")
    if task:
        named = label(name)
        return f"{task}: {named if named.isupper() else named[0].lower() + named[1:]}"
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ").capitalize()


def prefixed(prefix: str, metric: str) -> str:
    """A metric under a longer name, such as `test_accuracy` of `accuracy`, and `hair.test_accuracy` of a task's own."""
    task, dot, name = metric.rpartition(".")
    return f"{task}{dot}{prefix}_{name}"


def unit(metric: str) -> Unit:
    """What a metric is measured in; of others the last word of the name tells, so that `top5_accuracy` is a share."""
    name = metric.rpartition(":")[2].rpartition(".")[2]
    if name in METRICS:
        return METRICS[name][1]
    return METRICS.get(name.rpartition("_")[2], ("", "number"))[1]


def text(metric: str, value: float) -> str:
    """A value as people read it: `91.25 %`, `12.3 M`, `1.50 MB`, `3.20 ms`."""
    if not isfinite(value):
        return str(value)
    match unit(metric):
        case "percent":
            return f"{100 * value:.2f} %"
        case "change":
            return f"{100 * value:+.2f} %"
        case "count":
            return _scaled(value, ["", " k", " M", " G", " T"])
        case "bytes":
            return _scaled(value, [" B", " kB", " MB", " GB", " TB"])
        case "milliseconds":
            return _duration(value / 1000)
        case "seconds":
            return _duration(value)
        case _:
            return f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """`1 network`, `3 networks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _scaled(value: float, suffixes: list[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(suffixes) - 1:
        value, step = value / 1000, step + 1
    whole = step == 0 and float(value).is_integer()
    return (f"{value:.0f}" if whole else significant(value)) + suffixes[step]


def _duration(value: float) -> str:
    if abs(value) < 1:
        return f"{significant(1000 * value)} ms"
    if abs(value) < 99.5:
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def significant(value: float, digits: int = 3) -> str:
    """A number to so many digits, never with an exponent."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 0.9999 counts as 1.00
    decimals = max(0, digits - 1 - exponent)
    return f"{value:.{decimals}f}"
