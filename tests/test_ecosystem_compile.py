"""torch.compile without graph breaks, torch.export of a step with memories: same numbers as without."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from models import random_ids, tiny_model
from transformer_xl import TransfoXLModel

PLAIN = {"cutoffs": [], "div_val": 1}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"attn_type": 1}, marks=pytest.mark.slow),
        pytest.param({"same_length": False, "initial_memory": "empty", "clamp_len": 3}, marks=pytest.mark.slow),
    ],
    ids=["transformer-xl", "shaw", "whole-memory-empty-start"],
)
def test_transformer_compiles_as_one_graph(changes):
    """Adaptive embedding included; memories of full and of growing length."""
    model = tiny_model(TransfoXLModel, n_layer=1, **changes)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mems = expected_mems = None
    for segment in random_ids(2, 7).split([4, 3], dim=1):
        output, expected = compiled(segment, mems=mems), model(segment, mems=expected_mems)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        mems, expected_mems = output.mems, expected.mems
        assert_close(mems, expected_mems)


def check_training_step(model, backend: str) -> None:
    """The second of two segments, so that memory takes part: loss and all gradients."""
    model.train()
    first, second = random_ids(2, 10).split(5, dim=1)
    mems = model(first).mems
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected = model(second, shift_labels=first, mems=mems)
    gradients = torch.autograd.grad(expected.loss, list(model.parameters()))
    output = compiled(second, shift_labels=first, mems=mems)
    assert_close(output.loss, expected.loss)
    assert_close(output.losses, expected.losses)
    assert_close(torch.autograd.grad(output.loss, list(model.parameters())), gradients)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_plain_softmax_language_model_compiles_as_one_graph(backend):
    check_training_step(tiny_model(n_layer=1, **PLAIN), backend)


@pytest.mark.slow
def test_plain_softmax_language_model_compiles_to_machine_code():
    check_training_step(tiny_model(n_layer=1, **PLAIN), "inductor")


def test_adaptive_softmax_breaks_the_graph_at_its_clusters_alone():
    """How many tokens a cluster has is known when the tokens are."""
    model, ids = tiny_model(n_layer=1).train(), random_ids(2, 5)
    explained = torch._dynamo.explain(model)(ids, labels=ids)
    stacks = [reason.user_stack[-1] for reason in explained.break_reasons]
    places = {(Path(frame.filename).name, frame.line) for frame in stacks}
    assert len(places) == 1
    file, line = places.pop()
    assert file == "adaptive.py"
    assert ".nonzero()" in line


def test_adaptive_softmax_compiles_as_one_graph_without_labels():
    model, ids = tiny_model(n_layer=1), random_ids(2, 5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(ids).logits, model(ids).logits)


@pytest.mark.parametrize("changes", [{}, {"attn_type": 1, **PLAIN}], ids=["adaptive", "shaw-plain"])
def test_exported_step_with_memories_gives_the_same(changes):
    model, ids = tiny_model(**changes), random_ids(3, 1)
    mems = model(random_ids(3, 9)).mems
    exported = torch.export.export(model, (ids,), {"mems": model.init_mems(3)}, strict=False)
    for step in random_ids(3, 4).split(1, dim=1):
        output, expected = exported.module()(step, mems=mems), model(step, mems=mems)
        assert_close(output.logits, expected.logits)
        assert_close(output.mems, expected.mems)
        mems = expected.mems
