"""What `compare.py` measures, and what each workload must cost at least.

Plain Python, read by the command and by both worker processes, whose environments differ.

Shapes: B batch, Q tokens of a segment, M memory, D model size, W = heads * head size, I inner size.
"""

from dataclasses import dataclass, field
from math import log
from typing import Any

CHARACTERS: dict[str, Any] = {
    "vocab_size": 204, "cutoffs": [], "adaptive": False, "div_val": 1, "d_model": 512, "d_embed": 512, "n_head": 8,
    "d_head": 64, "d_inner": 2048, "n_layer": 12, "untie_r": False, "clamp_len": -1,
}  # fmt: skip
"""The paper's base model of enwik8."""

WORDS_LARGE: dict[str, Any] = {}
"""The default configuration: the released WikiText-103 model, 18 layers and 267,735 words."""

WORDS_BASE: dict[str, Any] = {
    "n_layer": 4, "d_model": 410, "d_embed": 410, "n_head": 10, "d_head": 41, "d_inner": 2100, "div_val": 1,
    "untie_r": False, "clamp_len": -1, "same_length": False, "mem_len": 150,
}  # fmt: skip
"""The paper's base model of WikiText-103, with 4 of its layers."""

RANDOM_WEIGHTS: dict[str, Any] = {"init_std": 0.04, "proj_init_std": 0.04, "eos_token_id": None}
"""Wider than at the start of training, so that attention is not uniform and a wrong distance shows."""


@dataclass(frozen=True)
class Workload:
    """One line of the table.

    Attributes:
        name: as in the table and in `--workload`.
        task: the class in `worker.py` that runs it.
        unit: of one measured time.
        config: what differs from the default configuration, for us.
        peer: configuration for the other side: the same for transformers 4.35 (None), `{}` for no other side, or our
            own model of another kind.
        options: arguments of the task.
        dtype: `"float32"` or `"bfloat16"` on our side; the other side always computes in float32.
        rounds: measured times of each side.
        tolerance: largest difference of what both sides compute; in training, relative to the norm of each gradient.
        is_fresh: whether each round needs a new process.
    """

    name: str
    task: str
    unit: str
    config: dict[str, Any] = field(default_factory=dict)
    peer: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    rounds: int = 5
    tolerance: float = 2e-4
    is_fresh: bool = False

    @property
    def has_peer(self) -> bool:
        """Whether there is another side."""
        return self.peer is None or bool(self.peer)


def _decode(name: str, config: dict[str, Any], *, batch_size: int, n_tokens: int, peer_tokens: int, **rest: Any):
    options = {"batch_size": batch_size, "n_tokens": n_tokens, "peer_tokens": peer_tokens}
    # With few bits, later tokens depend on a choice that may be a close one.
    options["n_compared"] = 3 if rest.get("dtype", "float32") == "float32" else 1
    return Workload(name, "Decode", "s/token", config, options=options, **rest)


CHARACTERS_DECODING = {**CHARACTERS, "mem_len": 2100, "same_length": True}
_DECODE_WORDS = {"config": WORDS_LARGE, "batch_size": 1, "n_tokens": 16, "peer_tokens": 2}


def _evaluate(name: str, config: dict[str, Any], *, tgt_len: int, n_segments: int) -> list[Workload]:
    """Reading a text that is at hand, as `evaluate` does, and one that comes segment by segment."""
    options = {"batch_size": 1, "tgt_len": tgt_len, "n_segments": n_segments}
    return [
        Workload(name, "Evaluate", "s/segment", config, options=options),
        Workload(f"{name}-in-turn", "Evaluate", "s/segment", config, options={**options, "at_once": 1}),
    ]


def _vanilla(length: int) -> Workload:
    """The paper's table 9: reading with memory against a window that moves by one token."""
    vanilla = {**CHARACTERS, "attn_type": 3, "mem_len": 0, "tgt_len": length, "untie_r": True}
    options = {"batch_size": 1, "tgt_len": 128, "n_segments": 2, "window_len": length}
    config = {**CHARACTERS, "mem_len": length, "same_length": True}
    return Workload(f"evaluation-vs-vanilla-{length}", "Read", "s/token", config, vanilla, options, rounds=3)


WORKLOADS = [
    _decode("decode-wt103", **_DECODE_WORDS, rounds=5),
    _decode("decode-wt103-bfloat16", **_DECODE_WORDS, dtype="bfloat16", tolerance=0.25),
    _decode("decode-char-b1", CHARACTERS_DECODING, batch_size=1, n_tokens=64, peer_tokens=4),
    _decode("decode-char-b16", CHARACTERS_DECODING, batch_size=16, n_tokens=16, peer_tokens=1),
    *_evaluate("evaluate-wt103", WORDS_LARGE, tgt_len=128, n_segments=4),
    *_evaluate("evaluate-char", CHARACTERS_DECODING, tgt_len=80, n_segments=6),
    Workload(
        "train-char", "Train", "s/step", {**CHARACTERS, "n_layer": 4, "mem_len": 512, "same_length": False},
        options={"batch_size": 4, "tgt_len": 512}, tolerance=0.002,
    ),
    Workload("train-word", "Train", "s/step", WORDS_BASE, options={"batch_size": 4, "tgt_len": 150}, tolerance=0.002),
    *(_vanilla(length) for length in (800, 1800, 2800, 3800)),
    Workload("encode-raw", "Encode", "s", options={"mode": "moses"}),
    Workload("encode-words", "Encode", "s", options={"mode": "whitespace"}),
    Workload("load", "Load", "s", WORDS_LARGE, rounds=3, is_fresh=True),
    Workload("import", "Import", "s", options={"statement": "from {package} import TransfoXLLMHeadModel"}),
    Workload("import-package", "Import", "s", peer={}, options={"statement": "import {package}"}),
    Workload("command-help", "Import", "s", peer={}, options={"command": ["transformer-xl", "--help"]}),
]  # fmt: skip


def _growing(what: str, task: str, values: list[int]) -> tuple[str, list[tuple[int, Workload]]]:
    """Workloads that differ in one number, without another side."""
    options = {"batch_size": 1, "tgt_len": 128, "n_segments": 3, "at_once": 1, "n_tokens": 16, "n_compared": 1}
    config = {**CHARACTERS_DECODING, "mem_len": 1600}
    workloads = []
    for value in values:
        own, rest = ({**settings, what: value} if what in settings else settings for settings in (config, options))
        workloads.append((value, Workload(f"{what}={value}", task, "s", own, {}, rest, rounds=3)))
    return f"{what}, {'a new token' if task == 'Decode' else 'reading'}", workloads


SCALING = [
    _growing("mem_len", "Evaluate", [0, 500, 1000, 2000, 4000, 8000, 16_000]),
    _growing("mem_len", "Decode", [500, 1000, 2000, 4000, 8000, 16_000]),
    _growing("tgt_len", "Evaluate", [16, 64, 256, 1024]),
    _growing("batch_size", "Decode", [1, 2, 4, 8, 16, 32]),
    _growing("n_layer", "Decode", [3, 6, 12, 24]),
    _growing("vocab_size", "Decode", [1000, 10_000, 100_000, 267_735]),
]
"""What grows, and the workloads from the smallest to the largest: 12 layers of 512 and 1,600 memories otherwise."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that its cost depends on; defaults as in the default configuration."""

    n_layer: int = 18
    d_model: int = 1024
    n_head: int = 16
    d_head: int = 64
    d_inner: int = 4096
    d_embed: int = 1024
    div_val: int = 4
    vocab_size: int = 267_735
    cutoffs: tuple[int, ...] = (20_000, 40_000, 200_000)
    mem_len: int = 1600
    clamp_len: int = 1000
    same_length: bool = True

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Sizes":
        """Those of a configuration."""
        known = {name: value for name, value in config.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "cutoffs": tuple(known.get("cutoffs", cls.cutoffs))})

    @property
    def width(self) -> int:
        """W."""
        return self.n_head * self.d_head

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices that a layer multiplies a token with; the distances' projection is not among them."""
        return 4 * self.d_model * self.width + 2 * self.d_model * self.d_inner

    @property
    def clusters(self) -> list[tuple[int, int]]:
        """Tokens and embedding width of each cluster of the softmax."""
        edges = [0, *self.cutoffs, self.vocab_size]
        return [(edges[i + 1] - edges[i], self.d_embed // self.div_val**i) for i in range(len(edges) - 1)]

    def distances(self, k_len: int) -> int:
        """How many different distances `k_len` keys have."""
        return min(k_len, self.clamp_len + 1) if self.clamp_len > 0 else k_len

    def seen(self, q_len: int) -> float:
        """Keys that a query sees, on average."""
        return self.mem_len if self.same_length and self.mem_len else self.mem_len + (q_len + 1) / 2

    def share_of_targets(self) -> list[float]:
        """The part of the targets in each cluster, ids being log-uniform as in `worker.py`."""
        ends = [*self.cutoffs, self.vocab_size]
        reached = [log(end + 1) / log(self.vocab_size + 1) for end in ends]
        return [high - low for low, high in zip([0.0, *reached], reached, strict=False)]


@dataclass(frozen=True)
class Cost:
    """What a workload needs at least: operations (a multiplication and an addition are two) and bytes read."""

    operations: float
    n_bytes: float

    def seconds(self, operations_per_s: float, bytes_per_s: float) -> float:
        """The floor: whichever of the two takes longer."""
        return max(self.operations / operations_per_s, self.n_bytes / bytes_per_s)


def decoding_cost(sizes: Sizes, batch_size: int, number_bytes: int) -> Cost:
    """One token of each row: all weights, keys, values and distances are read once."""
    s, k_len = sizes, sizes.mem_len
    softmax = sum(n_tokens * width for n_tokens, width in s.clusters)
    weights = s.n_layer * s.layer_weights + softmax
    state = s.n_layer * s.width * (2 * k_len * batch_size + s.distances(k_len))
    scores = s.n_layer * s.width * (2 * k_len + s.distances(k_len))
    return Cost(2 * batch_size * (weights + scores), number_bytes * (weights + state))


def reading_cost(sizes: Sizes, batch_size: int, q_len: int) -> Cost:
    """A segment whose losses are wanted, with keys, values and distances of the memory at hand."""
    s, n_tokens, seen = sizes, batch_size * q_len, sizes.seen(q_len)
    softmax = _softmax_multiplications(s)
    scores = s.n_layer * s.width * (2 * seen + s.distances(int(seen)))
    n_bytes = 4 * (s.n_layer * (s.layer_weights + s.width * (2 * batch_size * s.mem_len + s.distances(s.mem_len))))
    return Cost(2 * n_tokens * (s.n_layer * s.layer_weights + scores + softmax), n_bytes)


def _softmax_multiplications(s: Sizes) -> float:
    """Multiplications for the loss of one target, the average over log-uniform targets."""
    n_tails = len(s.cutoffs)
    return sum(
        share * (n_tokens * width + (s.d_model * width if s.div_val > 1 or s.d_embed != s.d_model else 0))
        for (n_tokens, width), share in zip(
            [(s.clusters[0][0] + n_tails, s.clusters[0][1]), *s.clusters[1:]],
            [1.0, *s.share_of_targets()[1:]],
            strict=True,
        )
    )


def training_cost(sizes: Sizes, batch_size: int, q_len: int) -> Cost:
    """Forward and backward of a segment with memory as hidden states; the optimiser reads and writes 4 numbers each."""
    s, k_len, d, w = sizes, sizes.mem_len + q_len, sizes.d_model, sizes.width
    queries, contexts = batch_size * q_len, batch_size * k_len
    own = queries * (2 * d * w + 2 * d * s.d_inner)  # queries, output, feed-forward: forward, two gradients
    projections = 3 * own + 2 * d * w * (2 * contexts + queries) + 2 * d * w * k_len  # memory has no gradient
    attention = 3 * queries * s.seen(q_len) * w * 3
    n_weights = s.n_layer * (s.layer_weights + d * w) + sum(n * width for n, width in s.clusters)
    multiplications = s.n_layer * (projections + attention) + 3 * queries * _softmax_multiplications(s)
    return Cost(2 * multiplications, 4 * 7 * n_weights)


def window_operations(sizes: Sizes, window_len: int) -> float:
    """One token read through a window: every position of it in every layer but the last, where one is enough."""
    s = sizes
    pairs = window_len * (window_len + 1) / 2
    full_layers = (s.n_layer - 1) * (window_len * s.layer_weights + 2 * s.width * pairs)
    last_layer = window_len * 2 * s.d_model * s.width + s.layer_weights + 2 * s.width * window_len
    return 2 * (full_layers + last_layer + s.vocab_size * s.d_embed)


def tokens_of(workload: Workload) -> int:
    """Tokens in one unit of a workload that reads or writes text."""
    options = workload.options
    return int(options["batch_size"] * (1 if workload.task == "Decode" else options["tgt_len"]))


def cost_of(workload: Workload) -> Cost | None:
    """The least that our side of a workload needs for one unit; None where nothing is computed."""
    sizes, options = Sizes.of(workload.config), workload.options
    if workload.task == "Decode":
        return decoding_cost(sizes, options["batch_size"], 4 if workload.dtype == "float32" else 2)
    if workload.task == "Evaluate":
        return reading_cost(sizes, options["batch_size"], options["tgt_len"])
    if workload.task == "Read":
        cost = reading_cost(sizes, 1, options["tgt_len"])
        return Cost(cost.operations / options["tgt_len"], cost.n_bytes / options["tgt_len"])
    if workload.task == "Train":
        return training_cost(sizes, options["batch_size"], options["tgt_len"])
    return None
