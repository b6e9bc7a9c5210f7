"""Each code example of the reference documentation of the TransfoXL classes, with nothing changed but the import line.

The models and tokenizers they name are folders here: small ones under the same relative path.
"""

import inspect
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from models import tiny_model
from transformer_xl import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    TransfoXLTokenizer,
)

TEXT = "hello , my dog is cute . the dog is here and my cat is there"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder that holds `transfo-xl/transfo-xl-wt103`."""
    home = tmp_path_factory.mktemp("hub")
    folder = home / "transfo-xl" / "transfo-xl-wt103"
    tokenizer = TransfoXLTokenizer.train(texts=[TEXT], lower_case=True)
    model = tiny_model(dtype=torch.float32, vocab_size=len(tokenizer), cutoffs=[5, 10], eos_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return home


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.chdir(home)


def test_top_of_the_page(monkeypatch):
    monkeypatch.setenv("TRUST_REMOTE_CODE", "")  # so that what the example sets ends with it
    os.environ["TRUST_REMOTE_CODE"] = "True"

    checkpoint = "transfo-xl/transfo-xl-wt103"
    revision = "40a186da79458c9f9de846edfaea79c412137f97"

    tokenizer = TransfoXLTokenizer.from_pretrained(checkpoint, revision=revision)
    model = TransfoXLLMHeadModel.from_pretrained(checkpoint, revision=revision)

    assert len(tokenizer) == model.config.vocab_size
    assert model(**tokenizer("my cat is cute", return_tensors="pt")).logits.shape == (1, 4, len(tokenizer))


def test_configuration():
    with torch.device("meta"):  # 285 million parameters
        # Initializing a Transformer XL configuration
        configuration = TransfoXLConfig()

        # Initializing a model (with random weights) from the configuration
        model = TransfoXLModel(configuration)

        # Accessing the model configuration
        configuration = model.config
    assert configuration.vocab_size == 267735
    assert len(model.layers) == 18


def test_transformer():
    tokenizer = AutoTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    model = TransfoXLModel.from_pretrained("transfo-xl/transfo-xl-wt103")

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    outputs = model(**inputs)

    last_hidden_states = outputs.last_hidden_state
    assert tokenizer.convert_ids_to_tokens(inputs.input_ids[0]) == ["hello", ",", "my", "dog", "is", "cute"]
    assert last_hidden_states.shape == (1, 6, 12)


def test_language_model():
    tokenizer = AutoTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    model = TransfoXLLMHeadModel.from_pretrained("transfo-xl/transfo-xl-wt103")

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    outputs = model(**inputs, labels=inputs["input_ids"])
    loss = outputs.loss
    logits = outputs.logits

    assert loss.shape == ()
    assert logits.shape == (1, 6, len(tokenizer))
    targets = inputs["input_ids"][:, 1:, None]
    torch.testing.assert_close(loss, -logits[:, :-1].gather(2, targets).mean())


def test_single_label_classification():
    tokenizer = AutoTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    model = TransfoXLForSequenceClassification.from_pretrained("transfo-xl/transfo-xl-wt103")

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

    with torch.no_grad():
        logits = model(**inputs).logits

    predicted_class_id = logits.argmax().item()

    # To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
    num_labels = len(model.config.id2label)
    model = TransfoXLForSequenceClassification.from_pretrained("transfo-xl/transfo-xl-wt103", num_labels=num_labels)

    labels = torch.tensor([1])
    loss = model(**inputs, labels=labels).loss

    assert predicted_class_id in (0, 1)
    torch.testing.assert_close(loss, -model(**inputs).logits.log_softmax(-1)[0, 1])


def test_multi_label_classification():
    tokenizer = AutoTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    model = TransfoXLForSequenceClassification.from_pretrained(
        "transfo-xl/transfo-xl-wt103", problem_type="multi_label_classification"
    )

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

    with torch.no_grad():
        logits = model(**inputs).logits

    predicted_class_ids = torch.arange(0, logits.shape[-1])[torch.sigmoid(logits).squeeze(dim=0) > 0.5]

    # To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
    num_labels = len(model.config.id2label)
    model = TransfoXLForSequenceClassification.from_pretrained(
        "transfo-xl/transfo-xl-wt103", num_labels=num_labels, problem_type="multi_label_classification"
    )

    labels = torch.sum(
        torch.nn.functional.one_hot(predicted_class_ids[None, :].clone(), num_classes=num_labels), dim=1
    ).to(torch.float)
    loss = model(**inputs, labels=labels).loss

    probabilities = model(**inputs).logits.sigmoid()
    torch.testing.assert_close(loss, -torch.where(labels == 1, probabilities, 1 - probabilities).log().mean())


# Signatures.

FORWARD = ["input_ids", "mems", "inputs_embeds", "labels", "output_attentions", "output_hidden_states", "return_dict"]


@pytest.mark.parametrize("cls", [TransfoXLModel, TransfoXLLMHeadModel, TransfoXLForSequenceClassification])
def test_arguments_of_forward_begin_in_the_documented_order(cls):
    documented = [name for name in FORWARD if cls is not TransfoXLModel or name != "labels"]
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    assert [parameter.name for parameter in parameters[: len(documented)]] == documented
    assert all(parameter.default is None for parameter in parameters[: len(documented)])


TOKENIZER = {
    "special": None, "min_freq": 0, "max_size": None, "lower_case": False, "delimiter": None, "vocab_file": None,
    "pretrained_vocab_file": None, "never_split": None, "unk_token": "<unk>", "eos_token": "<eos>",
    "additional_special_tokens": ["<formula>"], "language": "en",
}  # fmt: skip


def test_parameters_of_the_tokenizer_are_the_documented_ones():
    parameters = list(inspect.signature(TransfoXLTokenizer).parameters.values())[: len(TOKENIZER)]
    found = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert found == TOKENIZER
    assert list(found) == list(TOKENIZER)


def test_vocabulary_is_saved_as_documented(tmp_path):
    tokenizer = TransfoXLTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    (path,) = tokenizer.save_vocabulary(save_directory=str(tmp_path), filename_prefix="mine")
    assert Path(path).name == "mine-vocab.json"
    assert TransfoXLTokenizer(pretrained_vocab_file=path).get_vocab() == tokenizer.get_vocab()


def test_padding_is_on_the_left_unless_asked_otherwise():
    tokenizer = TransfoXLTokenizer.from_pretrained("transfo-xl/transfo-xl-wt103")
    model = TransfoXLLMHeadModel.from_pretrained("transfo-xl/transfo-xl-wt103")
    texts = ["my dog is cute", "the cat"]
    left = tokenizer(texts, padding=True, return_tensors="pt")
    assert left.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    right = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    assert right.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(model(**left).logits[1, 2:], model(**right).logits[1, :2])
