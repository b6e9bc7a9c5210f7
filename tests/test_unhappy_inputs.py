"""What a user can get wrong, and what the error says: one line with the field, the value, the rule and the remedy.

Configurations are in `test_configuration.py`, arguments of `generate` in `test_ecosystem_generate.py`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from models import assert_equal, random_ids, tiny_config, tiny_model
from transformer_xl import (
    TransfoXLCache,
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    reset_mems,
)

IDS = random_ids(2, 5)
F64 = torch.float64


def assert_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """The call raises exactly this error with exactly this message, which is one line."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == message
    assert "\n" not in message


# Ids and embeddings.

VOCABULARY = "use the model's own tokenizer, or resize_token_embeddings after adding tokens."
INPUTS = [
    ({"input_ids": torch.tensor([[3, 40]])}, ValueError,
     f"input_ids holds 40 but must lie in 0 to 39 (vocab_size=40): {VOCABULARY}"),
    ({"input_ids": torch.tensor([[3, -1]])}, ValueError,
     f"input_ids holds -1 but must lie in 0 to 39 (vocab_size=40): {VOCABULARY}"),
    ({"input_ids": torch.ones(2, 5)}, TypeError,
     "input_ids is torch.float32 but must hold integers: convert with input_ids.long()."),
    ({"input_ids": IDS > 3}, TypeError,
     "input_ids is torch.bool but must hold integers: convert with input_ids.long()."),
    ({"input_ids": [[3, 4]]}, TypeError,
     "input_ids is a list but must be a tensor [B, Q]: ask the tokenizer for return_tensors='pt', "
     "or pass torch.tensor([ids])."),
    ({"input_ids": IDS[0]}, ValueError, "input_ids has shape [5] but must be [B, Q]: add a batch dimension."),
    ({"input_ids": IDS[:, :0]}, ValueError,
     "the segment has no token: pass at least one (length 0 has no output and moves no memory)."),
    ({"input_ids": IDS[:0]}, ValueError, "the batch has no row: pass at least one."),
    ({"inputs_embeds": torch.zeros(0, 5, 12, dtype=F64)}, ValueError, "the batch has no row: pass at least one."),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 12, dtype=F64)}, ValueError,
     "input_ids and inputs_embeds must not both be given: pass one of them."),
    ({}, ValueError, "input_ids or inputs_embeds must be given, but neither was: pass one of them."),
    ({"inputs_embeds": torch.zeros(2, 5, 11, dtype=F64)}, ValueError,
     "inputs_embeds has shape [2, 5, 11] but must be [B, Q, d_model=12]."),
    ({"inputs_embeds": torch.zeros(5, 12, dtype=F64)}, ValueError,
     "inputs_embeds has shape [5, 12] but must be [B, Q, d_model=12]."),
    ({"inputs_embeds": torch.zeros(2, 5, 12)}, TypeError,
     "inputs_embeds is torch.float32 but the model computes in torch.float64: "
     "convert with inputs_embeds.to(model.dtype)."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), INPUTS)
@pytest.mark.parametrize("cls", [TransfoXLModel, TransfoXLLMHeadModel, TransfoXLForSequenceClassification])
def test_impossible_inputs_are_refused(cls, arguments, error, message):
    assert_refused(lambda: tiny_model(cls)(**arguments), error, message)


def test_embeddings_of_another_format_are_welcome_under_autocast():
    model = tiny_model(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(inputs_embeds=torch.zeros(2, 5, 12, dtype=torch.bfloat16)).logits.isfinite().all()


def test_argument_that_is_gone_is_refused_by_name():
    """The masks of heads are gone from the documented signature."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'head_mask'"):
        tiny_model()(IDS, head_mask=None)


# Settings that `test_configuration.py` does not know.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cutoffs": 20}, TypeError, "cutoffs=20 must be a list of integers, [] for a plain softmax."),
        ({"cutoffs": "20"}, TypeError, "cutoffs='20' must be a list of integers, [] for a plain softmax."),
        ({"eos_token_id": "<eos>"}, TypeError, "eos_token_id='<eos>' must be an integer or None."),
        ({"pad_token_id": True}, TypeError, "pad_token_id=True must be an integer or None."),
    ],
)
def test_impossible_settings_are_refused(settings, error, message):
    assert_refused(lambda: tiny_config(**settings), error, message)


def test_unknown_problem_type_is_refused():
    """Some releases of transformers do it themselves."""
    with pytest.raises((ValueError, StrictDataclassError), match=r"problem_type.*ranking.*multi_label_classification"):
        tiny_config(problem_type="ranking")


# Memories.

MEMS = [torch.zeros(6, 2, 12, dtype=F64), torch.zeros(6, 2, 12, dtype=F64)]
OUTPUT = "pass `mems` of the last output."
ROWS = "memory belongs to the rows it came from; start with mems=None or model.init_mems(batch_size)."
WRONG_MEMS = [
    (MEMS[:1], ValueError, f"mems has 1 tensors but must have n_layer=2: {OUTPUT}"),
    ([*MEMS, MEMS[0]], ValueError, f"mems has 3 tensors but must have n_layer=2: {OUTPUT}"),
    ([], ValueError, f"mems has 0 tensors but must have n_layer=2: {OUTPUT}"),
    (torch.stack(MEMS), TypeError, f"mems is a Tensor but must be a list of 2 tensors: {OUTPUT}"),
    ([None, None], TypeError, f"mems is a list holding NoneType but must be a list of 2 tensors: {OUTPUT}"),
    ([torch.zeros(7, 2, 12, dtype=F64)] * 2, ValueError,
     "mems[0] has length 7 but mem_len=6 is the longest: cut it with mem[-mem_len:] or raise mem_len with "
     "model.reset_memory_length."),
    ([MEMS[0], MEMS[1][1:]], ValueError,
     f"mems[1] has length 5 but must have that of mems[0], 6: {OUTPUT}"),
    ([mem[:, :1] for mem in MEMS], ValueError,
     f"mems[0] has shape [6, 1, 12] but must be [M <= 6, batch 2, d_model 12]: {ROWS}"),
    ([MEMS[0], MEMS[1][..., :11]], ValueError,
     f"mems[1] has shape [6, 2, 11] but must be [M <= 6, batch 2, d_model 12]: {ROWS}"),
    ([mem[0] for mem in MEMS], ValueError,
     f"mems[0] has shape [2, 12] but must be [M <= 6, batch 2, d_model 12]: {ROWS}"),
    ([mem.half() for mem in MEMS], TypeError,
     "mems[0] is torch.float16 but the model computes in torch.float64: "
     "convert with [mem.to(model.dtype) for mem in mems]."),
    ([mem.long() for mem in MEMS], TypeError,
     "mems[0] is torch.int64 but the model computes in torch.float64: "
     "convert with [mem.to(model.dtype) for mem in mems]."),
]  # fmt: skip


@pytest.mark.parametrize(("mems", "error", "message"), WRONG_MEMS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_memories_that_do_not_fit_are_refused(use_cache, mems, error, message):
    assert_refused(lambda: tiny_model()(IDS, mems=mems, use_cache=use_cache), error, message)


def test_memories_are_refused_by_a_model_without_memory():
    message = (
        "mems[0] has length 6 but mem_len=0 is the longest: cut it with mem[-mem_len:] or raise mem_len with "
        "model.reset_memory_length."
    )
    assert_refused(lambda: tiny_model(mem_len=0)(IDS, mems=MEMS), ValueError, message)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.tensor([1, 0]), "torch.int64 of shape [2]"),
        (torch.tensor([True]), "torch.bool of shape [1]"),
        (torch.ones(2, 1, dtype=torch.bool), "torch.bool of shape [2, 1]"),
    ],
)
def test_mask_of_rows_to_forget_must_fit(mask, found):
    message = f"mask is {found} but must be torch.bool of shape [2]: True for each row to forget."
    assert_refused(lambda: reset_mems(MEMS, mask), ValueError, message)
    cache = tiny_model()(IDS, use_cache=True).past_key_values
    assert_refused(lambda: cache.reset_rows(mask), ValueError, message)


@pytest.mark.parametrize(
    ("mem_len", "error", "message"),
    [
        (-1, ValueError, "mem_len=-1 must be at least 0."),
        (1.5, TypeError, "mem_len=1.5 must be an integer."),
        (3, ValueError, "mem_len=3 must be 0 for attn_type=2 (Vaswani), whose positions know no memory."),
    ],
)
def test_impossible_memory_length_is_refused_and_changes_nothing(mem_len, error, message):
    model = tiny_model(attn_type=2 if mem_len == 3 else 0, mem_len=0)
    assert_refused(lambda: model.reset_memory_length(mem_len), error, message)
    assert model.config.mem_len == 0
    model(IDS)


# Targets.

ALIGNED = "one target an input."
LABELS = [
    ({"labels": IDS, "shift_labels": IDS}, ValueError,
     "labels and shift_labels must not both be given: labels are shifted inside, pass one of them."),
    ({"labels": IDS[:, 1:]}, ValueError, f"labels has shape [2, 4] but must be [2, 5]: {ALIGNED}"),
    ({"labels": IDS[:1]}, ValueError, f"labels has shape [1, 5] but must be [2, 5]: {ALIGNED}"),
    ({"labels": IDS[..., None]}, ValueError, f"labels has shape [2, 5, 1] but must be [2, 5]: {ALIGNED}"),
    ({"shift_labels": IDS[:, 1:]}, ValueError, f"shift_labels has shape [2, 4] but must be [2, 5]: {ALIGNED}"),
    ({"labels": IDS + 40}, ValueError,
     f"labels holds 45 but must lie in 0 to 39 (vocab_size=40), or be -100 to be ignored: {VOCABULARY}"),
    ({"labels": torch.full((2, 5), -1)}, ValueError,
     f"labels holds -1 but must lie in 0 to 39 (vocab_size=40), or be -100 to be ignored: {VOCABULARY}"),
    ({"shift_labels": torch.full((2, 5), 99)}, ValueError,
     f"shift_labels holds 99 but must lie in 0 to 39 (vocab_size=40), or be -100 to be ignored: {VOCABULARY}"),
    ({"labels": IDS + 0.5}, TypeError, "labels is torch.float32 but must hold integers: convert with labels.long()."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), LABELS)
@pytest.mark.parametrize("cutoffs", [[], [10, 20]], ids=["plain", "adaptive"])
def test_impossible_targets_are_refused(cutoffs, arguments, error, message):
    assert IDS[0, 0] == 5
    assert_refused(lambda: tiny_model(cutoffs=cutoffs)(IDS, **arguments), error, message)


CLASSES = "pass num_labels= to from_pretrained."
CLASS_LABELS = [
    (3, torch.tensor([0, 3]), ValueError,
     f"labels holds 3 but must lie in 0 to 2 (num_labels=3), or be -100 to be ignored: {CLASSES}"),
    (3, torch.tensor([0, -1]), ValueError,
     f"labels holds -1 but must lie in 0 to 2 (num_labels=3), or be -100 to be ignored: {CLASSES}"),
    (3, torch.tensor([0]), ValueError,
     "labels has shape [1] but must be [2] for problem_type='single_label_classification' and num_labels=3."),
    (3, torch.tensor([0.0, 1.0]), ValueError,
     "labels has shape [2] but must be [2, 3] for problem_type='multi_label_classification' and num_labels=3."),
    (1, torch.zeros(2, 2), ValueError,
     "labels has shape [2, 2] but must be [2, 1] for problem_type='regression' and num_labels=1."),
]  # fmt: skip


@pytest.mark.parametrize(("num_labels", "labels", "error", "message"), CLASS_LABELS)
def test_impossible_classes_are_refused(num_labels, labels, error, message):
    model = tiny_model(TransfoXLForSequenceClassification, num_labels=num_labels)
    assert_refused(lambda: model(IDS, labels=labels), error, message)


def test_classifier_without_classes_is_refused():
    config = tiny_config(num_labels=0)
    message = "num_labels=0 must be at least 1 (1 is regression)."
    assert_refused(lambda: TransfoXLForSequenceClassification(config), ValueError, message)


# Masks.


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (1, 5), (5,), (2, 1, 5, 5)], ids=str)
@pytest.mark.parametrize("cls", [TransfoXLModel, TransfoXLLMHeadModel, TransfoXLForSequenceClassification])
def test_mask_of_another_shape_is_refused(cls, shape):
    message = f"attention_mask has shape {list(shape)} but must be [2, 5], one value a token, or [2, past + 5]."
    assert_refused(lambda: tiny_model(cls)(IDS, attention_mask=torch.ones(shape)), ValueError, message)


@pytest.mark.parametrize("initial_memory", ["zeros", "empty"])
def test_row_of_nothing_but_padding_gives_numbers(initial_memory):
    model = tiny_model(initial_memory=initial_memory)
    output = model(IDS, attention_mask=torch.tensor([[0] * 5, [1] * 5]), labels=IDS)
    assert output.logits.isfinite().all()
    assert torch.equal(output.losses[0], torch.zeros(4, dtype=F64))
    assert_equal(output.logits[1], model(IDS[1:]).logits[0])


# Caches.


def cache_of(**changes) -> TransfoXLCache:
    return tiny_model(**changes)(IDS, use_cache=True).past_key_values


GIVEN = "pass the one that the last output gave, or TransfoXLCache(model.config)."
CACHES = {
    "foreign": (DynamicCache, TypeError, f"past_key_values is a DynamicCache but must be a TransfoXLCache: {GIVEN}"),
    "tuple": (lambda: ((), ()), TypeError, f"past_key_values is a tuple but must be a TransfoXLCache: {GIVEN}"),
    "mems": (lambda: MEMS, TypeError, f"past_key_values is a list but must be a TransfoXLCache: {GIVEN}"),
    "memory length": (
        lambda: cache_of(mem_len=9), ValueError,
        "past_key_values has 2 layers and mem_len=9 but the model has n_layer=2 and mem_len=6: start a new cache.",
    ),
    "layers": (
        lambda: cache_of(n_layer=1), ValueError,
        "past_key_values has 1 layers and mem_len=6 but the model has n_layer=2 and mem_len=6: start a new cache.",
    ),
    "heads": (
        lambda: cache_of(n_head=2, d_head=6), ValueError,
        "past_key_values has n_head=2 and d_head=6 but the model has n_head=3 and d_head=4: start a new cache.",
    ),
    "span": (
        lambda: cache_of(same_length=False), ValueError,
        "past_key_values has span=None but the model has span=6 (keys that a query may see, by same_length and "
        "span_counts_self): start a new cache.",
    ),
    "format": (
        lambda: cache_of(dtype=torch.float32), TypeError,
        "past_key_values is torch.float32 but the model computes in torch.float64: convert with "
        "cache.to(dtype=model.dtype).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CACHES)
def test_cache_that_does_not_fit_is_refused(name):
    make, error, message = CACHES[name]
    model, cache = tiny_model(), make()
    assert_refused(lambda: model(IDS, past_key_values=cache), error, message)


def test_cache_of_other_rows_is_refused():
    message = (
        "past_key_values holds 2 rows but the input has 1: pass as many rows, or change those of the cache with its "
        "batch_select_indices or batch_repeat_interleave."
    )
    assert_refused(lambda: tiny_model()(IDS[:1], past_key_values=cache_of()), ValueError, message)


def test_cache_beside_memories_is_refused():
    message = "mems and past_key_values must not both hold the past: pass one (mems may start a new cache)."
    assert_refused(lambda: tiny_model()(IDS, mems=MEMS, past_key_values=cache_of()), ValueError, message)


def test_cache_without_memory_is_refused():
    message = "mem_len=0 must be positive for a TransfoXLCache: without memory there is nothing to keep."
    assert_refused(lambda: TransfoXLCache(tiny_config(mem_len=0)), ValueError, message)


def test_cropping_a_cache_is_refused():
    message = (
        "TransfoXLCache cannot be cropped: tokens that left the memory cannot come back, so this model can take no "
        "part in assisted generation. Copy the cache before the tokens instead."
    )
    assert_refused(lambda: cache_of().crop(2), ValueError, message)


# Folders.


def saved(folder: Path, **options) -> Path:
    tiny_model(dtype=torch.float32).save_pretrained(folder, **options)
    return folder


def as_bin(folder: Path) -> Path:
    """Replace the weights of a saved folder by what an old release wrote."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def assert_broken(call: Callable[[], Any], path: Path) -> None:
    """The call is refused because of this safetensors file, with the library's own words in brackets."""
    message = rf"^{path} is no whole safetensors file \([^\n]+\): copy or download it again\.$"
    with pytest.raises(OSError, match=message):
        call()


WHOLE = "take the whole file, or the config.json that belongs to it."
ANEW = "take the config.json that belongs to the weights, or start it anew with ignore_mismatched_sizes=True."
load = TransfoXLLMHeadModel.from_pretrained


@pytest.mark.parametrize("load", [TransfoXLLMHeadModel.from_pretrained, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("n_kept", [0, 7, 500, -1])
def test_truncated_safetensors_file_is_refused_by_name(load, n_kept, tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_kept])
    assert_broken(lambda: load(tmp_path), path)


def test_truncated_shard_is_refused_by_name(tmp_path):
    path = sorted(saved(tmp_path, max_shard_size="4KB").glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        OSError, match=rf"^{path} is no whole safetensors file \([^\n]*\): copy or download it again\.$"
    ):
        load(tmp_path)


def test_page_in_place_of_weights_is_refused_by_name(tmp_path):
    """Downloads that went wrong leave an HTML page or the pointer of a large-file store."""
    path = saved(tmp_path) / "model.safetensors"
    path.write_text("<html><body>404</body></html>")
    with pytest.raises(
        OSError, match=rf"^{path} is no whole safetensors file \([^\n]*\): copy or download it again\.$"
    ):
        load(tmp_path)


@pytest.mark.parametrize("n_kept", [0, 7, 4000, -100])
def test_truncated_bin_file_is_refused_by_name(n_kept, tmp_path):
    path = as_bin(saved(tmp_path))
    path.write_bytes(path.read_bytes()[:n_kept])
    assert_refused(lambda: load(tmp_path), OSError, f"{path} is no whole PyTorch file: copy or download it again.")


@pytest.mark.parametrize("n_kept", [1, 15, 100, 105, 600, 2000, -1])
def test_truncated_bin_file_of_the_older_format_is_refused_by_name(n_kept, tmp_path):
    path = as_bin(saved(tmp_path))
    state = tiny_model(dtype=torch.float32).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    load(tmp_path)
    path.write_bytes(path.read_bytes()[:n_kept])
    assert_refused(lambda: load(tmp_path), OSError, f"{path} is no whole PyTorch file: copy or download it again.")


class Program:
    """Its pickle asks the reader to run a command."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_bin_file_with_a_program_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Program()}, as_bin(saved(tmp_path / "model")))
    message = (
        f"a .bin file in {tmp_path / 'model'} holds more than tensors, and nothing in it was executed: "
        "take a file of a state_dict, or try `transformer-xl convert`."
    )
    assert_refused(lambda: load(tmp_path / "model"), ValueError, message)
    assert not (tmp_path / "executed").exists()


def test_missing_weights_are_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=rf"^[^\n]*no file named model\.safetensors[^\n]*{tmp_path}[^\n]*$"):
        load(tmp_path)


def test_missing_shard_is_refused_by_name(tmp_path):
    path = sorted(saved(tmp_path, max_shard_size="4KB").glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(OSError, match=rf"^[^\n]*{path.name}[^\n]*$"):
        load(tmp_path)


def test_missing_config_is_refused_by_name(tmp_path):
    path = saved(tmp_path) / "config.json"
    path.unlink()
    assert_refused(lambda: load(tmp_path), OSError, f"{path} is missing: copy it from where the weights came from.")


def test_config_that_is_no_json_is_refused_by_name(tmp_path):
    path = saved(tmp_path) / "config.json"
    path.write_text("{")
    with pytest.raises(OSError, match=rf"^[^\n]*{path}[^\n]* is not a valid JSON file\.$"):
        load(tmp_path)


def test_impossible_value_in_a_config_file_is_refused(tmp_path):
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "d_model": 13}))
    message = "d_model=13 must be even for attn_type=0, whose position signal is half sines, half cosines."
    assert_refused(lambda: load(tmp_path), ValueError, message)
    assert_refused(lambda: TransfoXLConfig.from_pretrained(tmp_path), ValueError, message)


@pytest.mark.parametrize(
    ("lost", "n_tensors"),
    [("transformer.layers.0.dec_attn.qkv_net.weight", 38), ("crit.out_layers.1.bias", 38), ("crit.cluster_weight", 38)],
)
def test_weights_that_lack_a_tensor_are_refused(lost, n_tensors, tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    state = load_file(path)
    assert len(state) == n_tensors
    del state[lost]
    save_file(state, path, metadata={"format": "pt"})
    message = f"{tmp_path} lacks 1 of {n_tensors} tensors, such as {lost}: {WHOLE}"
    assert_refused(lambda: load(tmp_path), ValueError, message)


def test_transformer_that_lacks_all_its_layers_is_refused(tmp_path):
    TransfoXLModel(tiny_config()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("layers.")}
    save_file(state, path, metadata={"format": "pt"})
    message = f"{tmp_path} lacks 26 of 32 tensors, such as layers.0.dec_attn.layer_norm.bias: {WHOLE}"
    assert_refused(lambda: TransfoXLModel.from_pretrained(tmp_path), ValueError, message)


def test_config_of_another_model_is_refused(tmp_path):
    path = saved(tmp_path) / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "n_layer": 3}))
    message = f"{tmp_path} lacks 13 of 51 tensors, such as transformer.layers.2.dec_attn.layer_norm.bias: {WHOLE}"
    assert_refused(lambda: load(tmp_path), ValueError, message)

    path.write_text(json.dumps({**settings, "d_inner": 24}))
    message = f"transformer.layers.0.pos_ff.CoreNet.0.bias has shape [20] in {tmp_path} but must be [24]: {ANEW}"
    assert_refused(lambda: load(tmp_path), ValueError, message)


def test_classifier_of_other_classes_starts_its_head_anew_on_request_alone(tmp_path):
    tiny_model(TransfoXLForSequenceClassification, num_labels=3).save_pretrained(tmp_path)
    message = f"score.weight has shape [3, 12] in {tmp_path} but must be [5, 12]: {ANEW}"
    load = TransfoXLForSequenceClassification.from_pretrained
    assert_refused(lambda: load(tmp_path, num_labels=5), ValueError, message)
    assert load(tmp_path, num_labels=5, ignore_mismatched_sizes=True)(IDS).logits.shape == (2, 5)
