"""Pictures of runs; matplotlib (the extra `plots`) is imported when one is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .evaluation import Evaluation
from .files import written_whole

WITH_MEMORY, WITHOUT_MEMORY = "#1f5fa8", "#d9722a"
TRAINING, REFERENCE = "#9bb8d9", "#8a8a8a"


def plot_quickstart(
    path: Path,
    *,
    training: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    with_memory: Evaluation,
    without_memory: Evaluation,
    references: Mapping[str, float],
) -> None:
    """Draw what was learned over time, and at which places of a segment memory helps.

    Args:
        path: the picture, replaced as a whole.
        training: records with `tokens` and `bits_per_character`, in order.
        validation: likewise.
        with_memory: the test with memory carried from segment to segment.
        without_memory: the test with each segment on its own.
        references: bits per character of simpler predictors, by name.
    """
    # The object interface needs no display and leaves a caller's pyplot alone.
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and only the extra `plots` installs it

    figure = Figure(figsize=(12, 5), layout="constrained", dpi=130)
    curve, places = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_curve(curve, training, validation, with_memory, without_memory, references)
    _draw_places(places, with_memory, without_memory)
    for axes in (curve, places):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png")


def plot_training(
    path: Path,
    *,
    title: str,
    unit: str,
    train: Sequence[Mapping[str, Any]],
    valid: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the loss of a run over its steps.

    Args:
        path: the picture, replaced as a whole.
        title: what the run is.
        unit: what losses are stated in, such as "bits per character"; records have it with underscores.
        train: records with `step` and the unit, in order.
        valid: likewise.
        test: likewise, one record or none.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and only the extra `plots` installs it

    name = unit.replace(" ", "_")
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=130)
    axes = figure.subplots()
    lines: Sequence[tuple[Sequence[Mapping[str, Any]], str, dict[str, Any]]] = (
        (train, "training", {"color": TRAINING, "linewidth": 1.2}),
        (valid, "validation", {"color": WITH_MEMORY, "marker": "o", "markersize": 4, "linewidth": 1.6}),
        (
            test,
            "test, best checkpoint",
            {"color": WITHOUT_MEMORY, "marker": "D", "linestyle": "none", "clip_on": False},
        ),
    )
    for records, label, style in lines:
        if records:
            last = f"{label}: {records[-1][name]:,.4g}"
            axes.plot([record["step"] for record in records], [record[name] for record in records], label=last, **style)
    seen = sorted(record[name] for records in (train, valid, test) for record in records)
    if name == "perplexity":
        axes.set_yscale("log")
    elif seen:  # the first steps may lie above the picture
        typical = seen[int(0.95 * (len(seen) - 1))]
        axes.set_ylim(seen[0] - 0.1 * (typical - seen[0]) - 0.05, typical + 0.1 * (typical - seen[0]) + 0.05)
    axes.set_xlim(left=0)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.set_ylabel(f"{unit} (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png")


def _draw_curve(
    axes: Any,
    training: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    with_memory: Evaluation,
    without_memory: Evaluation,
    references: Mapping[str, float],
) -> None:
    read = [record["tokens"] / 1e6 for record in training]
    axes.plot(
        read, [record["bits_per_character"] for record in training], color=TRAINING, linewidth=1.2, label="training"
    )
    axes.plot(
        [record["tokens"] / 1e6 for record in validation],
        [record["bits_per_character"] for record in validation],
        color=WITH_MEMORY, marker="o", markersize=4, linewidth=1.6, label="validation",
    )  # fmt: skip
    end = max(read, default=0.0)
    for name, evaluation, color in (
        ("test with memory", with_memory, WITH_MEMORY),
        ("test without memory", without_memory, WITHOUT_MEMORY),
    ):
        bits = evaluation.bits_per_token
        axes.plot([end], [bits], marker="D", markersize=7, color=color, linestyle="none", clip_on=False)
        is_upper = bits == max(with_memory.bits_per_token, without_memory.bits_per_token)
        text = {"color": color, "fontweight": "bold", "fontsize": 9, "va": "bottom" if is_upper else "top"}
        axes.annotate(f"{name}\n{bits:.2f}", (end, bits), (9, 0), textcoords="offset points", **text)
    for name, bits in references.items():
        axes.axhline(bits, color=REFERENCE, linewidth=0.9, linestyle=(0, (4, 3)))
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{name}: {bits:.2f}", (1, bits), (0, 3), color=REFERENCE, fontsize=9, **where)
    axes.set_xlim(0, 1.3 * end)
    seen = [with_memory.bits_per_token, *references.values()]  # the first steps may lie above the picture
    lowest = min(*seen, *(record["bits_per_character"] for record in training))
    axes.set_ylim(lowest - 0.3, max(seen) + 0.6)
    axes.set_title("What it learned", loc="left", fontweight="bold")
    axes.set_xlabel("million characters read")
    axes.set_ylabel("bits per character (less is better)")
    axes.legend(frameon=False, loc="upper center")


def _draw_places(axes: Any, with_memory: Evaluation, without_memory: Evaluation) -> None:
    curves = [_bits(evaluation.loss_by_position) for evaluation in (without_memory, with_memory)]
    places = range(1, len(curves[0]) + 1)
    axes.plot(places, curves[0], color=WITHOUT_MEMORY, linewidth=1.8, label="without memory")
    axes.plot(places, curves[1], color=WITH_MEMORY, linewidth=1.8, label="with memory")
    axes.fill_between(places, curves[0], curves[1], color=WITHOUT_MEMORY, alpha=0.12, linewidth=0)
    axes.set_xlim(1, len(curves[0]))
    axes.set_title("Where memory helps", loc="left", fontweight="bold")
    axes.set_xlabel("place in the segment")
    axes.set_ylabel("bits per character, test")
    axes.legend(frameon=False)


def _bits(losses: Sequence[float]) -> list[float]:
    return [loss / math.log(2) for loss in losses]


__all__ = ["plot_quickstart", "plot_training"]
