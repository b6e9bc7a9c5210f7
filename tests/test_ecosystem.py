"""Life inside transformers: Auto classes, files in both formats, tied weights, pipelines, number formats, replicas.

Generation, training and compilation have modules of their own, `test_ecosystem_*.py`.
"""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from models import random_ids, tiny_config, tiny_model
from transformer_xl import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    TransfoXLTokenizer,
)

F32 = torch.float32
NOTHING_MISSED = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
TEXT = "the a cat dog sat ran on under mat tree and then it was not here there again ."

MODELS = {
    "div-1": {"div_val": 1},
    "div-2": {"div_val": 2},
    "div-4": {"div_val": 4, "d_embed": 16},
    "plain": {"cutoffs": []},
    "not-adaptive": {"adaptive": False, "div_val": 1},
    "projected-1": {"div_val": 1, "d_embed": 16},
    "projected-2": {"div_val": 2, "d_embed": 16},
    "projected-plain": {"cutoffs": [], "d_embed": 16},
    "own-words": {"tie_word_embeddings": False},
    "own-words-1": {"tie_word_embeddings": False, "div_val": 1},
    "own-projections": {"tie_projs": [False, False, False]},
    "all-projections-tied": {"tie_projs": [True, True, True]},
    "all-projections-tied-1": {"tie_projs": [True, True, True], "div_val": 1, "d_embed": 16},
    "one-projection-tied-1": {"tie_projs": [False, False, True], "div_val": 1, "d_embed": 16},
    "own-words-tied-projections": {"tie_word_embeddings": False, "tie_projs": [False, True, True]},
    "shared-biases": {"untie_r": False},
    "shaw": {"attn_type": 1},
    "vaswani": {"attn_type": 2, "mem_len": 0},
    "al-rfou": {"attn_type": 3, "mem_len": 0, "tgt_len": 8},
}


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all safetensors files of a folder; a name in two files would be an error."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                assert name not in tensors
                tensors[name] = file.get_tensor(name)
    return tensors


def assert_same_predictions(model, other, *, vocab_size=40):
    """Two models give the same numbers for two segments, memory included."""
    segments = random_ids(2, 10, vocab_size=vocab_size).split(5, dim=1)
    mems = other_mems = None
    with torch.no_grad():
        for segment in segments:
            output, other_output = model(segment, mems=mems), other(segment, mems=other_mems)
            assert_close(output[0], other_output[0], rtol=0, atol=0)
            mems, other_mems = output.mems, other_output.mems


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory):
    """A saved language model with a white-space tokenizer of 21 words."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = TransfoXLTokenizer.train(texts=[TEXT], special=["<eos>", "<unk>"], mode="whitespace")
    model = tiny_model(dtype=F32, vocab_size=len(tokenizer), cutoffs=[8, 14], eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Auto classes.


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [
        (AutoConfig, TransfoXLConfig),
        (AutoTokenizer, TransfoXLTokenizer),
        (AutoModel, TransfoXLModel),
        (AutoModelForCausalLM, TransfoXLLMHeadModel),
        (AutoModelForSequenceClassification, TransfoXLForSequenceClassification),
    ],
)
def test_auto_class_finds_ours(auto_class, expected, word_folder):
    assert type(auto_class.from_pretrained(word_folder)) is expected


def test_auto_classes_know_the_model_after_the_import_alone(word_folder):
    program = (
        "import sys, transformer_xl; from transformers import AutoModelForCausalLM, AutoTokenizer;"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "print(type(model).__name__, type(tokenizer).__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(word_folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert run.stdout.split() == ["TransfoXLLMHeadModel", "TransfoXLTokenizer"]


def test_auto_model_from_config_has_the_config(word_folder):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(word_folder))
    assert type(model) is TransfoXLLMHeadModel
    assert model.config.cutoffs == [8, 14]


def test_num_labels_given_to_from_pretrained_sizes_the_classifier(word_folder):
    model = AutoModelForSequenceClassification.from_pretrained(word_folder, num_labels=5)
    assert model.score.weight.shape == (5, model.config.d_model)
    assert model(random_ids(2, 3, vocab_size=21)).logits.shape == (2, 5)


# Files.


@pytest.mark.parametrize("name", MODELS)
def test_saved_model_loads_with_every_tensor_and_no_duplicate(name, tmp_path):
    model = tiny_model(dtype=F32, **MODELS[name])
    model.save_pretrained(tmp_path)
    loaded, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == NOTHING_MISSED
    assert not loaded.training
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
    assert_same_predictions(model, loaded)

    stored, state = tensors_in(tmp_path), model.state_dict()
    tied = model.tied_parameters()
    assert stored.keys() == state.keys() - tied.keys()
    for target, source in tied.items():
        assert loaded.get_parameter(target) is loaded.get_parameter(source), target
    n_objects = len(dict(loaded.named_parameters()))
    assert n_objects == len(stored)  # named_parameters counts an object once, so nothing else is shared

    loaded.save_pretrained(tmp_path / "again")
    again = tensors_in(tmp_path / "again")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[key], stored[key]) for key in stored)


def test_names_in_the_file_are_those_of_old_checkpoints(tmp_path):
    tiny_model(dtype=F32, div_val=2).save_pretrained(tmp_path)
    layer = "dec_attn.qkv_net.weight dec_attn.r_net.weight dec_attn.o_net.weight dec_attn.r_r_bias dec_attn.r_w_bias "
    layer += "dec_attn.layer_norm.weight dec_attn.layer_norm.bias pos_ff.layer_norm.weight pos_ff.layer_norm.bias "
    layer += "pos_ff.CoreNet.0.weight pos_ff.CoreNet.0.bias pos_ff.CoreNet.3.weight pos_ff.CoreNet.3.bias"
    expected = {f"transformer.layers.{i}.{name}" for i in range(2) for name in layer.split()}
    expected |= {f"transformer.word_emb.emb_layers.{i}.weight" for i in range(3)}
    expected |= {f"transformer.word_emb.emb_projs.{i}" for i in range(3)}
    expected |= {f"crit.out_layers.{i}.bias" for i in range(3)}
    expected |= {"crit.cluster_weight", "crit.cluster_bias", "crit.out_projs.0"}
    assert tensors_in(tmp_path).keys() == expected


@pytest.mark.parametrize(
    "changes", [{}, {"div_val": 1}, {"tie_word_embeddings": False}], ids=["tied", "div-1", "untied"]
)
def test_sharded_save_loads_completely(changes, tmp_path):
    model = tiny_model(dtype=F32, **changes)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == NOTHING_MISSED
    assert_same_predictions(model, loaded)


def test_transformer_alone_starts_a_language_model_and_a_classifier(tmp_path):
    transformer = TransfoXLModel(tiny_config(untie_r=False)).eval()
    transformer.save_pretrained(tmp_path)

    model, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    tied = model.tied_parameters()
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("crit.")} - tied.keys()
    assert info["unexpected_keys"] == set()
    assert_same_predictions(transformer, model.transformer)

    classifier, info = TransfoXLForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == ({"score.weight"}, set())
    assert_same_predictions(transformer, classifier.transformer)


def test_language_model_gives_its_transformer_to_the_other_classes(tmp_path):
    model = tiny_model(dtype=F32)
    model.save_pretrained(tmp_path)
    softmax = {name for name in model.state_dict() if name.startswith("crit.")} - model.tied_parameters().keys()

    transformer, info = TransfoXLModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), softmax)
    assert_same_predictions(model.transformer, transformer)

    classifier, info = TransfoXLForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == ({"score.weight"}, softmax)
    classifier.save_pretrained(tmp_path / "classifier")
    again, info = TransfoXLForSequenceClassification.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert info == NOTHING_MISSED
    assert_same_predictions(classifier, again)


def old_state(model: TransfoXLLMHeadModel) -> dict[str, torch.Tensor]:
    """The state that transformers 4.35 kept: both names of tied tensors, shared biases in each layer, a buffer."""
    state = dict(model.state_dict())
    state["transformer.pos_emb.inv_freq"] = torch.ones(model.config.d_model // 2)
    if not model.config.untie_r:
        for i in range(model.config.n_layer):
            for name in ("r_w_bias", "r_r_bias"):
                state[f"transformer.layers.{i}.dec_attn.{name}"] = state[f"transformer.{name}"]
    return state


OLD_MODELS = ["div-1", "div-2", "plain", "projected-1", "own-words", "own-projections", "shared-biases"]


@pytest.mark.parametrize("name", OLD_MODELS)
def test_old_bin_folder_loads(name, tmp_path):
    model = tiny_model(dtype=F32, **MODELS[name])
    model.config.save_pretrained(tmp_path)
    torch.save(old_state(model), tmp_path / "pytorch_model.bin")
    loaded, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == NOTHING_MISSED
    assert_same_predictions(model, loaded)
    for target, source in model.tied_parameters().items():
        assert loaded.get_parameter(target) is loaded.get_parameter(source), target
    loaded.save_pretrained(tmp_path / "new")
    assert_same_predictions(model, TransfoXLLMHeadModel.from_pretrained(tmp_path / "new"))


@pytest.mark.parametrize("name", ["div-2", "shared-biases"])
def test_sharded_old_bin_folder_loads(name, tmp_path):
    model = tiny_model(dtype=F32, **MODELS[name])
    model.config.save_pretrained(tmp_path)
    state = old_state(model)
    names = sorted(state)
    half = len(names) // 2
    parts = {"pytorch_model-00001-of-00002.bin": names[:half], "pytorch_model-00002-of-00002.bin": names[half:]}
    for file, members in parts.items():
        torch.save({member: state[member] for member in members}, tmp_path / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == NOTHING_MISSED
    assert_same_predictions(model, loaded)


def test_load_state_dict_takes_a_saved_file(tmp_path):
    """Trainer resumes this way: without renaming, and without the tied names."""
    model, other = tiny_model(dtype=F32), tiny_model(dtype=F32, seed=1)
    model.save_pretrained(tmp_path)
    outcome = other.load_state_dict(tensors_in(tmp_path), strict=False)
    assert set(outcome.missing_keys) == model.tied_parameters().keys()
    assert outcome.unexpected_keys == []
    assert_same_predictions(model, other)


def test_old_config_with_every_generation_default_stays_quiet(tmp_path, caplog):
    """Releases before 4 wrote `max_length: 20` and the like into each config.json; nobody had chosen them."""
    model = tiny_model(dtype=F32)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    old = {"max_length": 20, "min_length": 0, "do_sample": False, "num_beams": 1, "top_k": 50, "temperature": 1.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), **old}))
    loaded = TransfoXLLMHeadModel.from_pretrained(tmp_path)
    ids = random_ids(1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated = loaded.generate(ids, max_new_tokens=30, min_new_tokens=2, do_sample=False)
    assert generated.shape == (1, 34)
    assert not caplog.records
    loaded.save_pretrained(tmp_path / "new")
    assert "max_length" not in json.loads((tmp_path / "new" / "generation_config.json").read_text())


def test_old_config_keeps_a_generation_setting_that_someone_chose(tmp_path):
    tiny_model(dtype=F32).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_length": 9, "num_beams": 2}))
    loaded = TransfoXLLMHeadModel.from_pretrained(tmp_path)
    assert (loaded.generation_config.max_length, loaded.generation_config.num_beams) == (9, 2)
    assert loaded.generate(random_ids(1, 4)).shape == (1, 9)


# Construction and copies.


@pytest.mark.parametrize("name", MODELS)
def test_model_can_be_built_on_the_meta_device(name):
    with torch.device("meta"):
        model = TransfoXLLMHeadModel(tiny_config(**MODELS[name]))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} <= {"meta"}
    scores = model(torch.zeros(2, 3, dtype=torch.long, device="meta")).prediction_scores
    assert (scores.shape, scores.device.type) == ((2, 3, 40), "meta")


def test_deep_copy_is_independent_and_stays_tied():
    model = tiny_model(dtype=F32)
    twin = copy.deepcopy(model)
    assert_same_predictions(model, twin)
    for target, source in model.tied_parameters().items():
        assert twin.get_parameter(target) is twin.get_parameter(source)
    with torch.no_grad():
        twin.transformer.word_emb.emb_layers[0].weight += 1
    assert not torch.equal(twin(random_ids(1, 3)).logits, model(random_ids(1, 3)).logits)


def test_config_survives_pickling_and_json():
    config = tiny_config(attn_type=1, tie_projs=[True, False, True], num_labels=3)
    for twin in (
        pickle.loads(pickle.dumps(config)),  # noqa: S301 - what multiprocessing does with it
        TransfoXLConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        copy.deepcopy(config),
    ):
        assert twin.to_dict() == config.to_dict()


def test_data_parallel_replica_is_refused_in_one_line():
    model = tiny_model(dtype=F32)
    replica = model._replicate_for_data_parallel()
    replica.transformer = model.transformer._replicate_for_data_parallel()  # as torch does with every module
    with pytest.raises(RuntimeError, match=r"DataParallel must not wrap this model.*DistributedDataParallel") as caught:
        replica(random_ids(1, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_model_loads_onto_one_device(device_map, word_folder):
    model = AutoModelForCausalLM.from_pretrained(word_folder, device_map=device_map)
    assert model.generate(random_ids(1, 3, vocab_size=21).to(model.device), max_new_tokens=3).shape == (1, 6)


def test_model_in_parts_on_several_devices_is_refused(word_folder, tmp_path):
    parts = {"transformer.word_emb": "cpu", "transformer.drop": "cpu", "transformer.layers": "disk", "crit": "cpu"}
    message = (
        r"^device_map puts parts of the model on cpu, disk, but its parts share weights and must be on one device: "
        r"pass device_map='cuda:0', or none\.$"
    )
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(word_folder, device_map=parts, offload_folder=str(tmp_path))


def test_normal_use_is_quiet(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_model(dtype=F32)
        model.save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        ids = random_ids(2, 5)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model.generate(**inputs, max_new_tokens=4, do_sample=True, temperature=0.7, top_k=5)
        model.generate(**inputs, max_length=9, num_beams=2)
        model.train()
        output = model(ids, labels=ids)
        model(ids, labels=ids, mems=output.mems, output_attentions=True).loss.backward()
        model.resize_token_embeddings(42)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Attention implementations.


def test_attention_implementation_can_be_switched():
    model = tiny_model(dtype=F32, attn_implementation="eager")
    ids = random_ids(2, 7)
    assert model.config._attn_implementation == "eager"
    literal = model(ids).logits
    model.set_attn_implementation("sdpa")
    assert model.transformer.config._attn_implementation == "sdpa"
    fused = model(ids).logits
    assert_close(fused, literal, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fused, literal)  # two ways of computing, or the switch did nothing
    model.set_attn_implementation("eager")
    assert torch.equal(model(ids).logits, literal)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_can_be_chosen_at_loading(implementation, word_folder):
    model = AutoModelForCausalLM.from_pretrained(word_folder, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation


def test_default_attention_implementation_is_sdpa(word_folder):
    assert AutoModelForCausalLM.from_pretrained(word_folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_implementation_without_distances_is_refused(implementation):
    with pytest.raises(ValueError, match=r"TransfoXLLMHeadModel does not support"):
        tiny_model(dtype=F32, attn_implementation=implementation)


# Number formats.


# Half formats carry 8 or 11 bits of mantissa, through two layers and a softmax with scores of about 10.
SCORE_TOLERANCES = {torch.bfloat16: 0.25, torch.float16: 0.03, torch.float64: 1e-4}


@pytest.mark.parametrize("dtype", SCORE_TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "changes", [{"div_val": 1}, {"div_val": 4}, {"div_val": 4, "attn_type": 1}, {"div_val": 1, "d_embed": 20}], ids=str
)
def test_weights_in_another_format_train_and_generate(dtype, changes):
    sizes = {"d_model": 16, "d_embed": 16, "d_head": 8, "init_std": 0.2}
    model = tiny_model(dtype=dtype, **{**sizes, **changes})
    first, second = random_ids(2, 12).split(6, dim=1)

    scores = model(first).logits
    assert scores.dtype == torch.promote_types(dtype, F32)
    assert_close(scores.exp().sum(-1), torch.ones(2, 6, dtype=scores.dtype), rtol=1e-5, atol=1e-5)
    expected = tiny_model(dtype=F32, **{**sizes, **changes})(first).logits
    assert_close(scores.float(), expected, rtol=0, atol=SCORE_TOLERANCES[dtype])
    assert model.generate(first, max_new_tokens=10, do_sample=False).shape == (2, 16)
    assert model.generate(first, max_new_tokens=4, num_beams=3, do_sample=False).shape == (2, 10)

    model.train()
    output = model(first, labels=first)
    assert {mem.dtype for mem in output.mems} == {dtype}
    output = model(second, labels=second, mems=output.mems)
    assert output.loss.dtype == torch.promote_types(dtype, F32)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert model(second, labels=second, mems=output.mems).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("div_val", [1, 4])
def test_autocast_trains_and_generates(dtype, div_val):
    model = tiny_model(dtype=F32, div_val=div_val, d_model=16, d_embed=16, init_std=0.2, dropout=0.1, dropatt=0.1)
    first, second = random_ids(2, 12).split(6, dim=1)
    expected = model(first).logits
    with torch.autocast("cpu", dtype=dtype):
        scores = model(first).logits
        assert scores.dtype == F32
        assert model.generate(first, max_new_tokens=10, do_sample=False).shape == (2, 16)
    assert_close(scores, expected, rtol=0, atol=SCORE_TOLERANCES[dtype])
    model.train()
    with torch.autocast("cpu", dtype=dtype):
        output = model(first, labels=first)
        output = model(second, labels=second, mems=output.mems)
    assert output.loss.dtype == F32
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_auto_model_loads_in_the_format_asked_for(word_folder):
    model = AutoModelForCausalLM.from_pretrained(word_folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    assert model.generate(random_ids(1, 4, vocab_size=21), max_new_tokens=8, do_sample=False).shape == (1, 12)


def test_saved_format_is_the_loaded_format(tmp_path):
    tiny_model(dtype=F32).to(torch.float16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in AutoModel.from_pretrained(tmp_path).parameters()} == {torch.float16}


# Pipelines.


def test_text_generation_pipeline_continues_as_generate_does(word_folder):
    writer = pipeline("text-generation", model=str(word_folder), prefix="", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(word_folder)
    prompt = "the cat sat on"
    ids = writer.tokenizer(prompt, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 4:]
    written = writer(
        prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, return_tensors=True, return_full_text=None
    )
    assert written[0]["generated_token_ids"][4:] == expected.tolist()
    text = writer(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert text.startswith(prompt)


def test_text_generation_pipeline_of_a_batch_equals_one_by_one(word_folder):
    writer = pipeline("text-generation", model=str(word_folder), prefix="", device="cpu")
    writer.tokenizer.pad_token = writer.tokenizer.eos_token  # pipelines refuse batches without one
    prompts = ["the", "a dog ran under the tree", "it was"]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "skip_special_tokens": False}
    together = writer(prompts, batch_size=3, **options)
    alone = [writer(prompt, **options) for prompt in prompts]
    assert together == alone


def test_text_generation_pipeline_puts_its_article_before_the_prompt_unless_the_config_has_a_prefix(
    word_folder, tmp_path
):
    """The pipeline knows this class by name; an article that a small vocabulary cannot spell would be an error."""
    assert "1991" in pipeline("text-generation", model=str(word_folder), device="cpu")._preprocess_params["prefix"]
    model = AutoModelForCausalLM.from_pretrained(word_folder)
    model.config.prefix = ""
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(word_folder).save_pretrained(tmp_path)
    assert pipeline("text-generation", model=str(tmp_path), device="cpu")._preprocess_params["prefix"] == ""


def test_text_classification_pipeline_of_a_batch_equals_the_model(word_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(word_folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(word_folder, num_labels=3)
    with torch.no_grad():
        model.score.weight.normal_(std=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    classify.tokenizer.pad_token = classify.tokenizer.eos_token  # pipelines refuse batches without one
    texts = ["the cat sat on the mat .", "dog", "it was not here and then it was"]
    for text, found in zip(texts, classify(texts, batch_size=3), strict=True):  # more rows than layers
        probabilities = model(tokenizer(text, return_tensors="pt").input_ids).logits[0].softmax(-1)
        scores = {entry["label"]: entry["score"] for entry in found}
        assert_close(torch.tensor([scores[f"LABEL_{i}"] for i in range(3)]), probabilities, rtol=1e-4, atol=1e-5)
