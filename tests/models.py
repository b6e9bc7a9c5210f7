"""Small models and comparisons that several test modules share."""

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel
from transformer_xl.training.recipe import Recipe, make_recipe

FIXTURES = Path(__file__).parent / "fixtures"
AUTHORS_CASES = sorted((FIXTURES / "golden" / "original").iterdir())

TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},  # two orders of the same sums
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},  # the golden cases' own tolerance
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},  # 8 bits of mantissa, through a few layers
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},  # 11 bits
}


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal within the tolerance of their dtype."""
    dtype = expected.dtype if isinstance(expected, Tensor) else expected[0].dtype
    assert_close(actual, expected, **TOLERANCES.get(dtype, {"rtol": 0, "atol": 0}))


def load_authors_case(
    folder: Path, target: Path, implementation: str = "sdpa"
) -> tuple[TransfoXLLMHeadModel, dict[str, Tensor], dict[str, Any]]:
    """A golden case of the authors' code: the model, the numbers, and what `from_pretrained` said.

    Args:
        folder: of the case.
        target: an empty folder, which `from_pretrained` then reads.
        implementation: of attention.
    """
    arguments = json.loads((folder / "arguments.json").read_text())
    case = load_file(folder / "case.safetensors")
    TransfoXLConfig(**arguments, untie_r=False, initial_memory="empty").save_pretrained(target)
    state = {
        authors_name(name): authors_value(name, value) for name, value in case.items() if name.startswith("state.")
    }
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    model, info = TransfoXLLMHeadModel.from_pretrained(
        target, attn_implementation=implementation, output_loading_info=True
    )
    return model.eval(), case, info


def authors_name(name: str) -> str:
    """The parameter's name here, for one of a case."""
    name = name.split(".", 1)[1]
    return name if name.startswith("crit.") else f"transformer.{name}"


def authors_value(name: str, value: Tensor) -> Tensor:
    """Its value here: their tail clusters count from the end of the head."""
    return value.flip(0) if "cluster" in name else value


def tiny_config(**changes: Any) -> TransfoXLConfig:
    """Two layers; initial weights are large, so that a wrong term shows."""
    settings = {
        "vocab_size": 40,
        "cutoffs": [10, 20],
        "d_model": 12,
        "d_embed": 12,
        "n_head": 3,
        "d_head": 4,
        "d_inner": 20,
        "div_val": 2,
        "n_layer": 2,
        "mem_len": 6,
        "clamp_len": -1,
        "same_length": True,
        "dropout": 0.0,
        "dropatt": 0.0,
        "init_std": 0.5,
        "proj_init_std": 0.5,
        "eos_token_id": None,
        "tgt_len": 8,
    }
    return TransfoXLConfig(**{**settings, **changes})


def tiny_model(cls: type = TransfoXLLMHeadModel, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any):
    """A model of `tiny_config` in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    config._attn_implementation = changes.get("attn_implementation", "sdpa")
    return cls(config).to(dtype).eval()


def random_ids(*shape: int, vocab_size: int = 40, seed: int = 1) -> Tensor:
    """Token ids drawn evenly."""
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def settings_of_models(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Changes to `tiny_config` that make a valid model of any kind."""
    drawn = {
        "attn_type": draw(st.sampled_from([0, 0, 1])),
        "mem_len": draw(st.integers(1, 9)),
        "n_head": draw(st.integers(1, 3)),
        "d_head": draw(st.integers(1, 5)),
        "d_model": draw(st.sampled_from([2, 6, 12])),
        "n_layer": draw(st.integers(1, 3)),
        "clamp_len": draw(st.sampled_from([-1, 1, 4])),
        "same_length": draw(st.booleans()),
        "span_counts_self": draw(st.booleans()),
        "pre_lnorm": draw(st.booleans()),
        "untie_r": draw(st.booleans()),
        "initial_memory": draw(st.sampled_from(["zeros", "empty"])),
        "attn_implementation": draw(st.sampled_from(["eager", "sdpa"])),
        "tgt_len": draw(st.integers(1, 9)),
        "div_val": draw(st.sampled_from([1, 2])),
        "cutoffs": draw(st.sampled_from([[], [10, 20]])),
        "seed": draw(st.integers(0, 3)),
    }
    return {**drawn, **fixed}


def run_segments(model: Any, ids: Tensor, lengths: list[int], *, use_cache: bool = False, **kwargs: Any):
    """Log-probabilities of `ids` fed in segments of `lengths`, and the state left behind (mems or cache)."""
    state, scores = None, []
    for segment in ids.split(lengths, dim=1):
        if use_cache:
            output = model(segment, past_key_values=state, use_cache=True, **kwargs)
            state = output.past_key_values
        else:
            output = model(segment, mems=state, **kwargs)
            state = output.mems
        scores.append(output.logits)
    return torch.cat(scores, dim=1), state


SMALL_SIZES = {"n_layer": 2, "tgt_len": 8, "mem_len": 6, "ext_len": 4, "clamp_len": 5, "sample_softmax": 5}
SMALL_CUTOFFS = [10, 20, 30]
SMALL_READING = {**SMALL_SIZES, "batch_size": 2, "tgt_len": 4, "mem_len": 7, "max_tokens": 64, "every": 1}


def scaled_down(recipe: Recipe) -> Recipe:
    """A recipe as small as can be, with all options of the one given; for a vocabulary of more than 30 tokens.

    Its batch may be dealt to 1, 2 or 4 processes; its training has two steps, each with all that may come after one.
    """
    tables = recipe.model_dump(exclude_none=True)
    model, train = tables["model"], tables["train"]
    cutoffs = SMALL_CUTOFFS[: len(model.get("cutoffs", ()))]
    width = max(8, model.get("div_val", 1) ** len(cutoffs))  # leaves the last cluster a column
    model |= {"d_model": width, "d_embed": width, "n_head": 2, "d_head": width // 2, "d_inner": 2 * width}
    model |= {"cutoffs": cutoffs, **_at_most(SMALL_SIZES, model)}
    train |= {"batch_size": 4 * train["accumulation"], "max_steps": 2}
    tables["schedule"] |= _at_most({"warmup_steps": 1, "decay_steps": 2}, tables["schedule"])
    tables["averaging"] |= _at_most({"start_step": 1}, tables["averaging"])
    tables["evaluation"] |= _at_most(SMALL_READING, tables["evaluation"])
    tables["test"] |= _at_most(SMALL_READING, tables["test"])
    tables["checkpoints"]["every"] = tables["log"]["every"] = 1
    tables["log"]["tensorboard"] = False  # takes longer to import than the rest to run
    return make_recipe(tables)


def _at_most(limits: dict[str, int], table: dict[str, Any]) -> dict[str, int]:
    """The values of a table that have a limit, brought down to it."""
    return {name: min(table[name], limit) for name, limit in limits.items() if name in table}
