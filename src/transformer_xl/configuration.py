"""Sizes and options of a Transformer-XL (Dai et al. 2019, arXiv 1901.02860), as saved in `config.json`.

Names, codes and defaults of the fields are those of transformers 4.35, so its files load unchanged; fields that it did
not have are marked "new". The presets are the settings of the authors' training scripts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

ALIASES = {
    "n_token": "vocab_size",
    "tie_weight": "tie_word_embeddings",
    "hidden_size": "d_model",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names under which a field may be given and read."""

ATTENTION_TYPES = {0: "Transformer-XL", 1: "Shaw", 2: "Vaswani", 3: "Al-Rfou"}

_AT_LEAST = {
    "vocab_size": 1, "d_model": 1, "d_embed": 1, "n_head": 1, "d_head": 1, "d_inner": 1, "div_val": 1, "n_layer": 1,
    "mem_len": 0, "tgt_len": 1, "ext_len": 0, "init_range": 0, "proj_init_std": 0, "init_std": 0,
}  # fmt: skip
_PROBABILITIES = ("dropout", "dropatt")
_CHOICES: dict[str, Sequence[Any]] = {
    "attn_type": tuple(ATTENTION_TYPES),
    "init": ("normal", "uniform"),
    "initial_memory": ("zeros", "empty"),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
_INTEGERS = {
    "vocab_size", "d_model", "d_embed", "n_head", "d_head", "d_inner", "div_val", "n_layer", "mem_len", "clamp_len",
    "attn_type", "sample_softmax", "tgt_len", "ext_len",
}  # fmt: skip
_NUMBERS = {"dropout", "dropatt", "init_range", "proj_init_std", "init_std", "layer_norm_epsilon"}
_FLAGS = {"pre_lnorm", "same_length", "adaptive", "untie_r", "tie_word_embeddings", "use_cache", "span_counts_self"}


class TransfoXLConfig(PreTrainedConfig):
    """Sizes and options of a Transformer-XL; the defaults are those of the released WikiText-103 model.

    Args:
        vocab_size: number of tokens.
        cutoffs: first ids of the tail clusters of the adaptive softmax, ascending; `[]` is a plain softmax.
        d_model: width of the layers; even for `attn_type` 0 and 2, whose position signal is half sines, half cosines.
        d_embed: width of the embeddings of the first cluster.
        n_head: attention heads a layer.
        d_head: width of a head.
        d_inner: width inside the feed-forward part.
        div_val: cluster i has embeddings of width `d_embed // div_val**i`.
        pre_lnorm: normalise the input of each block instead of its output.
        n_layer: number of layers.
        mem_len: tokens remembered by each layer; 0 turns the recurrence off.
        clamp_len: distances beyond this count as this; 0 and below turn it off.
        same_length: every query sees the same number of keys (`mem_len`) instead of the whole memory.
        proj_share_all_but_first: default of `tie_projs`; not saved, `tie_projs` is.
        tie_projs: for each cluster, whether the softmax uses the projection of the embedding.
        attn_type: 0 Transformer-XL, 1 Shaw et al. 2018, 2 Vaswani et al. 2017, 3 Al-Rfou et al. 2019.
        sample_softmax: if positive, train with a softmax over this many sampled tokens (plain softmax only).
        adaptive: False makes the softmax and embedding plain, whatever `cutoffs` says.
        dropout: probability of zeroing, everywhere but on attention weights.
        dropatt: probability of zeroing an attention weight.
        untie_r: each layer has its own position biases u and v; False shares one pair.
        init: `"normal"` or `"uniform"`.
        init_range: parameters start in U(-init_range, init_range) if `init` is `"uniform"`.
        proj_init_std: standard deviation of the initial projections.
        init_std: standard deviation of the other initial parameters.
        layer_norm_epsilon: added to the variance.
        eos_token_id: id of the end symbol; None for models without one.
        tie_word_embeddings: the softmax uses the embedding's weights.
        initial_memory: new; what precedes the first segment: `"zeros"`, `mem_len` zero vectors that are attended to
            (transformers 4.35 and the authors' TensorFlow code), or `"empty"`, nothing (the authors' PyTorch code).
        span_counts_self: new; with `same_length`, a query sees `mem_len` keys, itself included; False: `mem_len + 1`
            (the authors' TensorFlow code).
        tgt_len, ext_len: length of a training segment and of its extension; with `mem_len` they give the rows of the
            position tables of `attn_type` 1 and 3.

    Raises:
        ValueError: a value is impossible, or one setting is given under two names with different values.
        TypeError: a value has the wrong type.
    """

    model_type = "transfo-xl"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mems", "past_key_values", "losses"]
    attribute_map: ClassVar[dict[str, str]] = ALIASES

    vocab_size: int = 267_735
    cutoffs: list[int] | tuple[int, ...] | None = (20_000, 40_000, 200_000)
    d_model: int = 1024
    d_embed: int = 1024
    n_head: int = 16
    d_head: int = 64
    d_inner: int = 4096
    div_val: int = 4
    pre_lnorm: bool = False
    n_layer: int = 18
    mem_len: int = 1600
    clamp_len: int = 1000
    same_length: bool = True
    tie_projs: list[bool] | tuple[bool, ...] | None = None
    attn_type: int = 0
    sample_softmax: int = -1
    adaptive: bool = True
    dropout: float = 0.1
    dropatt: float = 0.0
    untie_r: bool = True
    init: str = "normal"
    init_range: float = 0.01
    proj_init_std: float = 0.01
    init_std: float = 0.02
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int | list[int] | None = 0
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    use_cache: bool = True
    initial_memory: str = "zeros"
    span_counts_self: bool = True
    tgt_len: int = 128
    ext_len: int = 0

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse two names of one setting with two values: the class beneath would let the alias win silently."""
        for alias, name in ALIASES.items():
            if alias in settings and name in settings and settings[alias] != settings[name]:
                raise ValueError(
                    f"{alias}={settings[alias]} and {name}={settings[name]} name the same setting but differ: pass one."
                )
        config: Self = super().__new__(cls)
        return config

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("max_position_embeddings", None)  # a property of old releases; this model has no such limit
        share_projections = kwargs.pop("proj_share_all_but_first", True)
        is_flag = isinstance(share_projections, bool)
        _require(is_flag, "proj_share_all_but_first", share_projections, "be True or False", TypeError)
        for alias, name in ALIASES.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        is_list = isinstance(self.cutoffs, list | tuple | None)
        _require(is_list, "cutoffs", self.cutoffs, "be a list of integers, [] for a plain softmax", TypeError)
        self.cutoffs = list(self.cutoffs or [])  # a list, as JSON returns it, so that a reloaded config compares equal
        self._check_scalars()
        self._check_cutoffs()
        if self.tie_projs is None:
            self.tie_projs = [False] + [share_projections] * len(self.cluster_cutoffs)
        self.tie_projs = list(self.tie_projs)
        self.check()
        super().__post_init__(**kwargs)

    @property
    def cluster_cutoffs(self) -> list[int]:
        """First ids of the tail clusters that are in use: none if the softmax is plain."""
        return list(self.cutoffs or []) if self.adaptive else []

    @property
    def span(self) -> int | None:
        """Number of keys that a query may see, itself included; None if only causality limits it."""
        if not self.same_length or self.mem_len == 0:
            return None
        return self.mem_len if self.span_counts_self else self.mem_len + 1

    @property
    def n_position_rows(self) -> int:
        """Rows of the learned position tables of `attn_type` 1 and 3."""
        return self.tgt_len + self.ext_len + self.mem_len

    def check(self) -> None:
        """Raise a one-line `ValueError` or `TypeError` for the first impossible value; models call it again."""
        self._check_scalars()
        self._check_cutoffs()
        self._check_combinations()

    def validate_output_attentions(self) -> None:
        """Every implementation can return attention weights here: the call then takes the literal path."""

    def _check_scalars(self) -> None:
        for name in _INTEGERS:
            value = getattr(self, name)
            _require(isinstance(value, int) and not isinstance(value, bool), name, value, "be an integer", TypeError)
        for name in _NUMBERS:
            value = getattr(self, name)
            _require(
                isinstance(value, int | float) and not isinstance(value, bool), name, value, "be a number", TypeError
            )
        for name in _FLAGS:
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "be True or False", TypeError)
        for name, minimum in _AT_LEAST.items():
            _require(getattr(self, name) >= minimum, name, getattr(self, name), f"be at least {minimum}")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "be a probability: pass a number from 0 to 1")
        for name, choices in _CHOICES.items():
            _require(
                getattr(self, name) in choices, name, getattr(self, name), f"be one of {', '.join(map(repr, choices))}"
            )
        _require(
            self.layer_norm_epsilon > 0, "layer_norm_epsilon", self.layer_norm_epsilon, "be positive, such as 1e-5"
        )

    def _check_cutoffs(self) -> None:
        if not self.adaptive:
            return
        bounds = [0, *self.cluster_cutoffs, self.vocab_size]
        for i, (low, cutoff) in enumerate(pairwise(bounds[:-1])):
            rule = f"lie between {low} and vocab_size={self.vocab_size}; pass cutoffs=[] for a plain softmax"
            is_integer = isinstance(cutoff, int) and not isinstance(cutoff, bool)
            _require(is_integer, f"cutoffs[{i}]", cutoff, "be an integer", TypeError)
            _require(low < cutoff < self.vocab_size, f"cutoffs[{i}]", cutoff, rule)
        narrowest = self.d_embed // self.div_val ** len(self.cluster_cutoffs)
        rule = f"leave the last of {len(bounds) - 1} clusters at least one of d_embed={self.d_embed} columns; lower it"
        _require(narrowest >= 1, "div_val", self.div_val, rule)

    def _check_combinations(self) -> None:
        is_even_needed = self.attn_type in (0, 2)
        rule = f"be even for attn_type={self.attn_type}, whose position signal is half sines, half cosines"
        _require(not (is_even_needed and self.d_model % 2), "d_model", self.d_model, rule)
        rule = (
            f"be 0 for attn_type={self.attn_type} ({ATTENTION_TYPES[self.attn_type]}), whose positions know no memory"
        )
        _require(self.attn_type in (0, 1) or self.mem_len == 0, "mem_len", self.mem_len, rule)
        rule = f"make n_head * d_head = {self.n_head * self.d_head} equal d_model={self.d_model} for attn_type=3"
        _require(self.attn_type != 3 or self.n_head * self.d_head == self.d_model, "n_head", self.n_head, rule)
        is_plain = not self.cluster_cutoffs
        rule = "be 0 or below with clusters: pass cutoffs=[] to sample a plain softmax, or sample_softmax=-1"
        _require(self.sample_softmax <= 0 or is_plain, "sample_softmax", self.sample_softmax, rule)
        ties = self.tie_projs or []
        rule = f"hold {len(self.cluster_cutoffs) + 1} values of True or False, one a cluster"
        is_list = len(ties) == len(self.cluster_cutoffs) + 1 and all(isinstance(tie, bool) for tie in ties)
        _require(is_list, "tie_projs", ties, rule)
        rule = f"be below vocab_size={self.vocab_size}, or None"
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                is_integer = isinstance(token_id, int | None) and not isinstance(token_id, bool)
                _require(is_integer, name, value, "be an integer or None", TypeError)
                _require(token_id is None or token_id < self.vocab_size, name, token_id, rule)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The settings of one of the paper's experiments, as its training script has them.

        Args:
            name: `enwik8-base`, `enwik8-large`, `text8-base`, `text8-large`, `wt103-base`, `wt103-large`, `lm1b-base`
                or `lm1b-large`. Lengths are those of training; for evaluation see docs/memory.md.
            changes: fields that replace those of the preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} must be one of {', '.join(sorted(PRESETS))}.")
        return cls(**{**PRESETS[name], **changes})


def _require(is_fulfilled: bool, name: str, value: object, rule: str, error: type[Exception] = ValueError) -> None:
    if not is_fulfilled:
        raise error(f"{name}={value!r} must {rule}.")


_TRAINING = {"same_length": False, "clamp_len": -1}
_CHARACTERS: dict[str, Any] = {
    **_TRAINING,
    "cutoffs": [],
    "div_val": 1,
    "adaptive": False,
    "untie_r": False,
    "eos_token_id": None,
}
_CHARACTERS_BASE = {
    **_CHARACTERS, "n_layer": 12, "d_model": 512, "d_embed": 512, "n_head": 8, "d_head": 64, "d_inner": 2048,
    "dropout": 0.1, "dropatt": 0.0, "tgt_len": 512, "mem_len": 512,
}  # fmt: skip
_CHARACTERS_LARGE = {
    **_CHARACTERS, "n_layer": 24, "d_model": 1024, "d_embed": 1024, "n_head": 8, "d_head": 128, "d_inner": 3072,
    "dropout": 0.15, "dropatt": 0.15, "tgt_len": 768, "mem_len": 768,
}  # fmt: skip
_LM1B = {
    **_TRAINING, "vocab_size": 793_471, "cutoffs": [60_000, 100_000, 640_000], "div_val": 4,
    "proj_share_all_but_first": False, "untie_r": False, "tgt_len": 32, "mem_len": 32,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "enwik8-base": {**_CHARACTERS_BASE, "vocab_size": 204},
    "enwik8-large": {**_CHARACTERS_LARGE, "vocab_size": 204},
    "text8-base": {**_CHARACTERS_BASE, "vocab_size": 27},
    "text8-large": {**_CHARACTERS_LARGE, "vocab_size": 27},
    "wt103-base": {
        **_TRAINING, "n_layer": 16, "d_model": 410, "d_embed": 410, "n_head": 10, "d_head": 41, "d_inner": 2100,
        "div_val": 1, "dropout": 0.1, "dropatt": 0.0, "untie_r": False, "tgt_len": 150, "mem_len": 150,
    },
    "wt103-large": {
        **_TRAINING, "n_layer": 18, "d_model": 1024, "d_embed": 1024, "n_head": 16, "d_head": 64, "d_inner": 4096,
        "div_val": 4, "dropout": 0.2, "dropatt": 0.2, "init_std": 0.005, "tgt_len": 384, "mem_len": 384,
    },
    "lm1b-base": {
        **_LM1B, "n_layer": 20, "d_model": 1024, "d_embed": 1024, "n_head": 8, "d_head": 128, "d_inner": 6144,
        "dropout": 0.0, "dropatt": 0.0,
    },
    "lm1b-large": {
        **_LM1B, "n_layer": 24, "d_model": 1280, "d_embed": 1280, "n_head": 16, "d_head": 80, "d_inner": 8192,
        "dropout": 0.05, "dropatt": 0.05,
    },
}  # fmt: skip

__all__ = ["ATTENTION_TYPES", "PRESETS", "TransfoXLConfig"]
