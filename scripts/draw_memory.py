"""Draw docs/memory.png: which keys the queries of three segments see, as the model's own mask says.

python scripts/draw_memory.py
"""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from transformer_xl.attention import visible_keys

PICTURE = Path(__file__).parents[1] / "docs" / "memory.png"
SEGMENT_LEN, MEM_LEN, N_SEGMENTS = 4, 6, 3
MEMORY, SEGMENT, START = "#9bb8d9", "#1f5fa8", "#e3c9a8"
PANELS = (
    ("same_length=False\nthe whole memory, and its own past", None),
    (f"same_length=True\nthe last mem_len={MEM_LEN} tokens, itself included", MEM_LEN),
)


def seen(span: int | None) -> list[tuple[int, int, str]]:
    """(query, key, colour) of every pair in which the query sees the key; keys below 0 are the zero start."""
    pairs = []
    for segment in range(N_SEGMENTS):
        first = segment * SEGMENT_LEN
        mask = visible_keys(SEGMENT_LEN, MEM_LEN, span=span, device=torch.device("cpu"))[0, 0]
        for i, j in mask.nonzero().tolist():
            key = first - MEM_LEN + j
            colour = START if key < 0 else MEMORY if key < first else SEGMENT
            pairs.append((first + i, key, colour))
    return pairs


def draw(axes: Any, title: str, span: int | None) -> None:
    """One panel."""
    n_tokens = N_SEGMENTS * SEGMENT_LEN
    for query, key, colour in seen(span):
        axes.add_patch(_square(key, query, colour))
    for segment in range(N_SEGMENTS + 1):
        axes.axhline(segment * SEGMENT_LEN - 0.5, color="#555555", linewidth=0.9)
    for segment in range(N_SEGMENTS):
        middle = segment * SEGMENT_LEN + (SEGMENT_LEN - 1) / 2
        axes.text(n_tokens - 0.2, middle, f"segment {segment + 1}", va="center", fontsize=9, color="#333333")
    axes.axvline(-0.5, color="#555555", linewidth=0.9, linestyle=(0, (3, 3)))
    axes.set_xlim(-MEM_LEN - 0.7, n_tokens + 3.2)
    axes.set_ylim(n_tokens - 0.3, -0.7)
    axes.set_aspect("equal")
    axes.set_xticks(range(0, n_tokens, 2))
    axes.set_yticks(range(0, n_tokens, 2))
    axes.set_xlabel("token that is seen (before 0: the zero start)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _square(x: float, y: float, colour: str) -> Any:
    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="none")


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(12, 5.2), layout="constrained", dpi=130)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (title, span) in zip(panels, PANELS, strict=True):
        draw(axes, title, span)
    panels[0].set_ylabel("token that looks")
    legend = [
        Patch(facecolor=SEGMENT, label="its own segment, with gradient"),
        Patch(facecolor=MEMORY, label="memory, without gradient"),
        Patch(facecolor=START, label='zero vectors, with initial_memory="zeros" only'),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"tgt_len={SEGMENT_LEN}, mem_len={MEM_LEN}", x=0.01, ha="left", fontweight="bold")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
