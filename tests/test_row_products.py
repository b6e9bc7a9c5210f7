"""Products of few rows: each form gives the numbers of `F.linear`, and which one is taken depends on the processor."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import assert_equal
from transformer_xl import row_products
from transformer_xl.row_products import row_last_by_parts, rows_first_by_parts, weight_first


def random_product(n_rows: int, n_out: int, n_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(size, generator=generator) for size in ((n_rows, n_in), (n_out, n_in), (n_out,))
    )
    return states, weight / n_in**0.5, bias


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 9, 10, 15, 16, 48, 49, 64, 65])
@pytest.mark.parametrize(("n_out", "n_in"), [(9, 5), (11, 6), (16, 3), (3, 4), (10, row_products.LONG_ROW)])
@pytest.mark.parametrize("is_amd", [True, False])
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_rows_of_any_number_and_size_get_what_linear_gives(
    n_threads, is_amd, n_out, n_in, n_rows, has_bias, monkeypatch
):
    monkeypatch.setattr(row_products, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(row_products, "is_amd", lambda: is_amd)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    states, weight, bias = random_product(n_rows, n_out, n_in)
    bias = bias if has_bias else None
    assert_equal(row_products.linear_of_rows(states, weight, bias), F.linear(states, weight, bias))


@pytest.mark.parametrize(
    ("is_amd", "n_rows", "n_out", "n_in", "form"),
    [
        (True, 1, 256, 256, row_last_by_parts),
        (True, 1, 64, 4096, rows_first_by_parts),
        (True, 1, 257, 256, row_last_by_parts),
        (True, 1, 255, 256, F.linear),  # lies in a cache
        (True, 3, 257, 256, weight_first),
        (True, 4, 256, 256, rows_first_by_parts),
        (True, 16, 256, 256, weight_first),
        (True, 65, 256, 256, F.linear),
        (False, 1, 256, 256, F.linear),
        (False, 9, 256, 256, F.linear),
        (False, 10, 256, 256, weight_first),
        (False, 49, 256, 256, F.linear),
    ],
)
def test_the_form_is_the_one_that_the_processor_is_fastest_in(is_amd, n_rows, n_out, n_in, form, monkeypatch):
    monkeypatch.setattr(row_products, "is_amd", lambda: is_amd)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert row_products.fastest_form(n_rows, n_out, n_in) is form


def test_one_row_lies_as_rows_do_and_may_come_otherwise():
    """What comes out goes into the next product, where strides of a column cost most of the gain."""
    states, weight, bias = random_product(1, 8, 6)
    for form in (row_last_by_parts, rows_first_by_parts):
        assert form(states, weight, bias).stride() == (8, 1)
    column = weight_first(states, weight, bias)
    assert column.stride() == (1, 1)
    assert_equal(row_last_by_parts(column, weight.T.contiguous(), None), column @ weight)


@pytest.mark.parametrize(
    ("text", "maker"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False)]
)
def test_the_maker_of_the_processor_is_read_from_the_system(text, maker, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(row_products, "Path", lambda _: tmp_path / "cpuinfo")
    assert row_products.is_amd.__wrapped__() is maker


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", True),
        ("Intel64 Family 6, GenuineIntel", False),
        ("", False),
    ],
)
def test_elsewhere_than_on_linux_python_knows_the_maker(text, maker, tmp_path, monkeypatch):
    monkeypatch.setattr(row_products, "Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr(row_products.platform, "processor", lambda: text)
    assert row_products.is_amd.__wrapped__() is maker


def test_weights_that_are_not_plain_bring_their_own_product():
    weight = torch.zeros(4, 3)
    assert row_products.can_choose_form(weight)
    assert row_products.can_choose_form(torch.nn.Parameter(weight))
    assert not row_products.can_choose_form(weight.double())
    assert not row_products.can_choose_form(weight.T)
    assert not row_products.can_choose_form(weight.as_subclass(type("Quantised", (torch.Tensor,), {})))
