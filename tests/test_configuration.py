"""The configuration: what it accepts, refuses, saves and reads."""

import json

import pytest
import torch

from models import FIXTURES, tiny_config
from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel, TransfoXLModel
from transformer_xl.configuration import PRESETS

DEFAULTS = {  # the reference's table
    "vocab_size": 267735, "cutoffs": [20000, 40000, 200000], "d_model": 1024, "d_embed": 1024, "n_head": 16,
    "d_head": 64, "d_inner": 4096, "div_val": 4, "pre_lnorm": False, "n_layer": 18, "mem_len": 1600, "clamp_len": 1000,
    "same_length": True, "attn_type": 0, "sample_softmax": -1, "adaptive": True, "dropout": 0.1, "dropatt": 0.0,
    "untie_r": True, "init": "normal", "init_range": 0.01, "proj_init_std": 0.01, "init_std": 0.02,
    "layer_norm_epsilon": 1e-05, "eos_token_id": 0,
}  # fmt: skip


def test_defaults_are_those_of_the_reference():
    config = TransfoXLConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert config.tie_projs == [False, True, True, True]
    assert config.tie_word_embeddings
    assert config.initial_memory == "zeros"
    assert config.span_counts_self
    assert config.pad_token_id is None


def test_sharing_projections_is_the_default_of_tie_projs():
    assert TransfoXLConfig(proj_share_all_but_first=False).tie_projs == [False] * 4
    assert TransfoXLConfig(proj_share_all_but_first=False, tie_projs=[True] * 4).tie_projs == [True] * 4
    assert TransfoXLConfig(vocab_size=50, adaptive=False).tie_projs == [False]


@pytest.mark.parametrize("folder", sorted((FIXTURES / "golden/hf-4.35").iterdir()), ids=lambda folder: folder.name)
def test_old_files_load_and_save_with_the_same_values(folder, tmp_path):
    old = json.loads((folder / "config.json").read_text())
    config = TransfoXLConfig.from_pretrained(folder)
    assert {name: getattr(config, name) for name in DEFAULTS} == {name: old[name] for name in DEFAULTS}
    config.save_pretrained(tmp_path)
    assert TransfoXLConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_hub_models_own_file_loads(tmp_path):
    """The keys of the released WikiText-103 model's config.json, aliases and all."""
    settings = {
        **DEFAULTS, "n_token": 267735, "tie_weight": True, "proj_share_all_but_first": True, "ext_len": 0,
        "tgt_len": 128,
        "tie_projs": [False, True, True, True], "max_position_embeddings": -1, "model_type": "transfo-xl",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 250}},
        "architectures": ["TransfoXLLMHeadModel"],
    }  # fmt: skip
    del settings["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = TransfoXLConfig.from_pretrained(tmp_path)
    assert config.vocab_size == config.n_token == 267735
    assert config.hidden_size == 1024
    assert (config.tgt_len, config.ext_len) == (128, 0)


@pytest.mark.parametrize(("alias", "name", "value"), [
    ("n_token", "vocab_size", 300_000), ("hidden_size", "d_model", 512), ("num_attention_heads", "n_head", 4),
    ("num_hidden_layers", "n_layer", 2), ("tie_weight", "tie_word_embeddings", False),
])  # fmt: skip
def test_other_names_of_a_field_are_read_and_must_not_contradict_it(alias, name, value):
    config = TransfoXLConfig(**{alias: value})
    assert getattr(config, name) == getattr(config, alias) == value
    assert getattr(TransfoXLConfig(**{alias: value, name: value}), name) == value
    default = getattr(TransfoXLConfig(), name)
    with pytest.raises(
        ValueError, match=f"{alias}={value} and {name}={default} name the same setting but differ: pass one"
    ):
        TransfoXLConfig(**{alias: value, name: default})


REFUSED = [
    ({"vocab_size": 0}, ValueError, "vocab_size=0 must be at least 1."),
    ({"vocab_size": "200"}, TypeError, "vocab_size='200' must be an integer."),
    ({"vocab_size": True}, TypeError, "vocab_size=True must be an integer."),
    ({"vocab_size": 100}, ValueError, "cutoffs[0]=20000 must lie between 0 and vocab_size=100; pass cutoffs=[] for"),
    ({"cutoffs": [5, 5]}, ValueError, "cutoffs[1]=5 must lie between 5 and vocab_size=267735"),
    ({"cutoffs": [0]}, ValueError, "cutoffs[0]=0 must lie between 0 and vocab_size=267735"),
    ({"cutoffs": [9.5]}, TypeError, "cutoffs[0]=9.5 must be an integer."),
    ({"d_model": 33}, ValueError, "d_model=33 must be even for attn_type=0, whose position signal is half sines"),
    ({"d_model": 33, "attn_type": 2, "mem_len": 0}, ValueError, "d_model=33 must be even for attn_type=2"),
    ({"n_head": 0}, ValueError, "n_head=0 must be at least 1."),
    ({"d_head": -1}, ValueError, "d_head=-1 must be at least 1."),
    ({"n_layer": 0}, ValueError, "n_layer=0 must be at least 1."),
    ({"mem_len": -1}, ValueError, "mem_len=-1 must be at least 0."),
    ({"clamp_len": 0.5}, TypeError, "clamp_len=0.5 must be an integer."),
    ({"div_val": 0}, ValueError, "div_val=0 must be at least 1."),
    ({"div_val": 64}, ValueError, "div_val=64 must leave the last of 4 clusters at least one of d_embed=1024"),
    ({"dropout": 1.5}, ValueError, "dropout=1.5 must be a probability: pass a number from 0 to 1."),
    ({"dropatt": -0.1}, ValueError, "dropatt=-0.1 must be a probability: pass a number from 0 to 1."),
    ({"dropout": None}, TypeError, "dropout=None must be a number."),
    ({"same_length": 1}, TypeError, "same_length=1 must be True or False."),
    ({"attn_type": 4}, ValueError, "attn_type=4 must be one of 0, 1, 2, 3."),
    ({"attn_type": 2}, ValueError, "mem_len=1600 must be 0 for attn_type=2 (Vaswani), whose positions know"),
    ({"attn_type": 3}, ValueError, "mem_len=1600 must be 0 for attn_type=3 (Al-Rfou), whose positions know"),
    ({"attn_type": 3, "mem_len": 0, "n_head": 3}, ValueError, "n_head=3 must make n_head * d_head = 192 equal"),
    ({"sample_softmax": 100}, ValueError, "sample_softmax=100 must be 0 or below with clusters: pass cutoffs=[]"),
    ({"tie_projs": [True]}, ValueError, "tie_projs=[True] must hold 4 values of True or False, one a cluster."),
    ({"init": "xavier"}, ValueError, "init='xavier' must be one of 'normal', 'uniform'."),
    ({"initial_memory": "ones"}, ValueError, "initial_memory='ones' must be one of 'zeros', 'empty'."),
    ({"layer_norm_epsilon": 0}, ValueError, "layer_norm_epsilon=0 must be positive, such as 1e-5."),
    ({"pad_token_id": 300_000}, ValueError, "pad_token_id=300000 must be below vocab_size=267735, or None."),
    ({"eos_token_id": 300_000}, ValueError, "eos_token_id=300000 must be below vocab_size=267735, or None."),
    ({"proj_share_all_but_first": "yes"}, TypeError, "proj_share_all_but_first='yes' must be True or False."),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error", "message"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_impossible_values_are_refused_in_one_line(settings, error, message):
    with pytest.raises(error) as raised:
        TransfoXLConfig(**settings)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_plain_softmax_ignores_default_cutoffs():
    for settings in ({"adaptive": False}, {"cutoffs": []}, {"cutoffs": None}):
        assert TransfoXLConfig(vocab_size=60, **settings).cluster_cutoffs == []


def test_a_model_refuses_a_config_that_was_changed_to_something_impossible():
    config = tiny_config()
    config.attn_type = 3
    with pytest.raises(ValueError, match="mem_len=6 must be 0 for attn_type=3"):
        TransfoXLModel(config)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_can_be_changed(name):
    config = TransfoXLConfig.preset(name)
    assert config.tgt_len == config.mem_len
    assert TransfoXLConfig.preset(name, n_layer=3).n_layer == 3


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="preset='wt103' must be one of enwik8-base, enwik8-large, lm1b-base"):
        TransfoXLConfig.preset("wt103")


@pytest.mark.parametrize(("name", "published", "unit"), [
    ("enwik8-base", 41e6, 1e6), ("enwik8-large", 277e6, 1e6), ("text8-large", 277e6, 1e6), ("wt103-base", 151e6, 1e6),
    ("wt103-large", 285e6, 1e6), ("lm1b-base", 0.46e9, 0.01e9), ("lm1b-large", 0.8e9, 0.1e9),
])  # fmt: skip
def test_presets_have_the_published_numbers_of_parameters(name, published, unit):
    """Paper tables 1 to 4, to a unit of the last digit; 285 million, not 257, is what wt103-large's own script has."""
    with torch.device("meta"):
        model = TransfoXLLMHeadModel(TransfoXLConfig.preset(name))
    actual = sum(parameter.numel() for parameter in model.parameters())
    assert abs(actual - published) < unit, actual
