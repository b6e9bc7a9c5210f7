"""What holds for all tests: the same examples in every run, no deadline, one thread."""

import pytest
import torch
from hypothesis import settings
from transformers.utils.logging import disable_progress_bar

from transformer_xl import linear_maps

# Deadlines measure the machine, not the code; the same examples each time make a failure repeatable.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# The models of the tests are so small that a second thread costs more than it brings, above all on a busy machine.
torch.set_num_threads(1)

# Bars of loading and saving would stand between the lines that tests read.
disable_progress_bar()


@pytest.fixture(params=["oneDNN", "bags"])
def packed_products(request, monkeypatch):
    """The packed weight of each product with one in bfloat16, by either way that processors have."""
    is_onednn = request.param == "oneDNN"
    if is_onednn and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor")
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: is_onednn or dtype.itemsize > 2)
    monkeypatch.setattr(linear_maps, "has_bfloat16_instructions", lambda: is_onednn)
    monkeypatch.setattr(linear_maps, "has_fbgemm", lambda: not is_onednn)
    taken = []
    for name in ("by_onednn", "by_bags"):
        form = getattr(linear_maps, name)
        monkeypatch.setattr(linear_maps, name, lambda *args, form=form: taken.append(args[1]) or form(*args))
    return taken
