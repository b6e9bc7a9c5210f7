"""Linear maps: each form gives the numbers of `F.linear`, and which one is taken depends on the processor."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from models import assert_equal
from transformer_xl import half_precision, linear_maps
from transformer_xl.layers import apply_linear
from transformer_xl.linear_maps import by_onednn, row_last_by_parts, rows_first_by_parts, weight_first


def random_product(n_rows: int, n_out: int, n_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(size, generator=generator) for size in ((n_rows, n_in), (n_out, n_in), (n_out,))
    )
    return states, weight / n_in**0.5, bias


def set_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package run as on a processor of that maker and width."""
    monkeypatch.setattr(linear_maps, "is_amd", lambda: name.startswith("AMD"))
    monkeypatch.setattr(linear_maps, "has_avx512", lambda: name.endswith("AVX-512"))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 9, 10, 15, 16, 32, 33, 48, 49, 64, 65])
@pytest.mark.parametrize(("n_out", "n_in"), [(9, 5), (11, 6), (16, 3), (3, 4), (10, linear_maps.LONG_ROW), (37, 6)])
@pytest.mark.parametrize("processor", ["Intel's", "AMD's", "AMD's, AVX-512"])
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_rows_of_any_number_and_size_get_what_linear_gives(
    n_threads, processor, n_out, n_in, n_rows, has_bias, monkeypatch
):
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(linear_maps, "ROWS_OF_A_PART", 4)
    set_processor(processor, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    states, weight, bias = random_product(n_rows, n_out, n_in)
    bias = bias if has_bias else None
    assert_equal(linear_maps.linear_of_rows(states, weight, bias), F.linear(states, weight, bias))


@pytest.mark.parametrize(
    ("processor", "n_rows", "n_out", "n_in", "form"),
    [
        ("AMD's, AVX-512", 1, 256, 256, row_last_by_parts),
        ("AMD's, AVX-512", 1, 64, 4096, by_onednn),
        ("AMD's, AVX-512", 1, 257, 256, row_last_by_parts),
        ("AMD's, AVX-512", 1, 255, 256, F.linear),  # lies in a cache
        ("AMD's, AVX-512", 4, 257, 256, weight_first),
        ("AMD's, AVX-512", 5, 256, 256, by_onednn),
        ("AMD's, AVX-512", 2, 64, linear_maps.SHORT_ROW, weight_first),
        ("AMD's, AVX-512", 3, 64, linear_maps.SHORT_ROW, by_onednn),
        ("AMD's, AVX-512", 500, 255, 256, F.linear),
        ("AMD's, AVX-512", 500, 256, 256, by_onednn),
        ("AMD's", 1, 255, 256, F.linear),
        ("AMD's", 1, 256, 256, row_last_by_parts),
        ("AMD's", 1, 64, linear_maps.SHORT_ROW, rows_first_by_parts),
        ("AMD's", 4, 256, 256, weight_first),
        ("AMD's", 5, 256, 256, rows_first_by_parts),
        ("AMD's", 2, 64, linear_maps.SHORT_ROW, weight_first),
        ("AMD's", 3, 64, linear_maps.SHORT_ROW, rows_first_by_parts),
        ("AMD's", 32, 256, 256, rows_first_by_parts),
        ("AMD's", 33, 256, 256, by_onednn),
        ("Intel's", 1, 256, 256, F.linear),
        ("Intel's", 9, 256, 256, F.linear),
        ("Intel's", 10, 256, 256, weight_first),
        ("Intel's", 49, 256, 256, F.linear),
    ],
)
def test_the_form_is_the_one_that_the_processor_is_fastest_in(processor, n_rows, n_out, n_in, form, monkeypatch):
    set_processor(processor, monkeypatch)
    assert linear_maps.fastest_form(n_rows, n_out, n_in) is form


@pytest.mark.parametrize(("n_out", "sizes"), [(6, [3, 3]), (7, [3, 3, 1]), (9, [3, 3, 3]), (1, [1])])
def test_rows_meet_equal_parts_of_a_weight_and_what_is_left(n_out, sizes, monkeypatch):
    monkeypatch.setattr(linear_maps, "ROWS_OF_A_PART", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    met = []
    bmm, linear = torch.bmm, F.linear
    monkeypatch.setattr(torch, "bmm", lambda rows, parts: met.extend([parts.shape[2]] * len(parts)) or bmm(rows, parts))
    monkeypatch.setattr(F, "linear", lambda rows, weight, bias: met.append(len(weight)) or linear(rows, weight, bias))
    states, weight, _ = random_product(5, n_out, 4)
    rows_first_by_parts(states, weight, None)
    assert met == sizes


def test_one_row_lies_as_rows_do_and_may_come_otherwise():
    """What comes out goes into the next product, where strides of a column cost most of the gain."""
    states, weight, bias = random_product(1, 8, 6)
    assert row_last_by_parts(states, weight, bias).stride() == (8, 1)
    assert rows_first_by_parts(states, weight, bias).stride() == (8, 1)
    assert by_onednn(states, weight, bias).stride() == (8, 1)
    column = weight_first(states, weight, bias)
    assert column.stride() == (1, 1)
    for form in (row_last_by_parts, rows_first_by_parts, by_onednn):
        assert_equal(form(column, weight.T.contiguous(), None), column @ weight)


@pytest.mark.parametrize(
    ("text", "maker"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False)]
)
def test_the_maker_of_the_processor_is_read_from_the_system(text, maker, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(linear_maps, "Path", lambda _: tmp_path / "cpuinfo")
    assert linear_maps.is_amd.__wrapped__() is maker


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", True),
        ("Intel64 Family 6, GenuineIntel", False),
        ("", False),
    ],
)
def test_elsewhere_than_on_linux_python_knows_the_maker(text, maker, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_maps, "Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr(linear_maps.platform, "processor", lambda: text)
    assert linear_maps.is_amd.__wrapped__() is maker


def test_weights_that_are_not_plain_bring_their_own_product():
    weight = torch.zeros(4, 3)
    assert linear_maps.can_choose_form(weight)
    assert linear_maps.can_choose_form(torch.nn.Parameter(weight))
    assert not linear_maps.can_choose_form(weight.double())
    assert not linear_maps.can_choose_form(weight.T)
    assert not linear_maps.can_choose_form(weight.as_subclass(type("Quantised", (torch.Tensor,), {})))


@pytest.mark.parametrize(("text", "has_them"), [("flags : avx2 avx512f avx512dq", True), ("flags : avx2 fma", False)])
def test_the_width_of_the_processor_is_read_from_the_system(text, has_them, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(linear_maps, "Path", lambda _: tmp_path / "cpuinfo")
    assert linear_maps.has_avx512.__wrapped__() is has_them


def test_without_onednn_the_product_is_torch_s(monkeypatch):
    set_processor("AMD's, AVX-512", monkeypatch)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(linear_maps, "has_onednn", linear_maps.has_onednn.__wrapped__)
    assert linear_maps.fastest_form(5, 256, 256) is F.linear


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 5, linear_maps.ROWS_IN_BAGS, linear_maps.ROWS_IN_BAGS + 1, 33])
@pytest.mark.parametrize(("n_out", "n_in"), [(9, 5), (64, 48), (33, 128), (200, 7)])
def test_a_packed_weight_gives_what_the_weight_gives_and_changes_with_it(
    n_out, n_in, n_rows, has_bias, packed_products
):
    states, weight, bias = (tensor.bfloat16() for tensor in random_product(n_rows, n_out, n_in))
    bias = bias if has_bias else None
    multiply = linear_maps.PackingMap(weight, bias)
    is_packed = n_rows <= linear_maps.ROWS_IN_BAGS or linear_maps.has_products(torch.bfloat16)
    for n_packed in (3, 6):
        for _ in range(linear_maps.PACK_AFTER + 3):
            expected = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
            assert_close(multiply(states).double(), expected, rtol=2**-7, atol=2**-7)
        assert len(packed_products) == (n_packed if is_packed else 0)
        weight.mul_(-2)  # as an optimiser's step would


def test_a_weight_is_packed_once_and_let_go_with_the_map(packed_products):
    states, weight, _ = (tensor.bfloat16() for tensor in random_product(2, 32, 16))
    multiply = linear_maps.PackingMap(weight, None)
    for _ in range(linear_maps.PACK_AFTER + 5):
        multiply(states)
    assert len(packed_products) == 5
    assert all(packed is packed_products[0] for packed in packed_products)
    alive = weakref.ref(packed_products[0])
    packed_products.clear()
    assert alive() is not None
    del multiply
    assert alive() is None


def test_a_bias_that_changes_alone_counts_from_then_on(packed_products):
    states, weight, bias = (tensor.bfloat16() for tensor in random_product(2, 32, 16))
    multiply = linear_maps.PackingMap(weight, bias)
    for bias_now in (bias.clone(), bias.clone() + 5):
        bias.copy_(bias_now)
        for _ in range(linear_maps.PACK_AFTER + 2):
            assert_close(multiply(states), F.linear(states, weight, bias_now), rtol=2**-7, atol=2**-7)
    assert len(packed_products) == 4


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 7])
@pytest.mark.parametrize(("n_out", "n_in"), [(64, 48), (130, 300), (5, 9)])
def test_sums_of_rows_are_rounded_once(n_out, n_in, n_rows, has_bias):
    states, weight, bias = (tensor.bfloat16() for tensor in random_product(n_rows, n_out, n_in))
    bias = bias if has_bias else None
    panels = linear_maps.in_panels(weight, bias)
    assert panels.shape == (-(-n_out // linear_maps.PANEL), n_in + has_bias, linear_maps.PANEL)
    made = linear_maps.by_bags(states, panels, n_out)
    assert made.shape == (n_rows, n_out)
    expected = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
    assert_close(made.double(), expected, rtol=0.51 * 2**-7, atol=1e-6)


def test_what_is_packed_is_plain_large_and_in_bfloat16(monkeypatch):
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: True)
    monkeypatch.setattr(linear_maps, "has_bfloat16_instructions", lambda: True)
    monkeypatch.setattr(linear_maps, "has_onednn", lambda: True)
    weight = torch.zeros(256, 256, dtype=torch.bfloat16)
    assert linear_maps.can_pack(weight, None)
    assert linear_maps.can_pack(torch.nn.Parameter(weight), None)
    assert not linear_maps.can_pack(weight[:255], None)
    assert not linear_maps.can_pack(weight.half(), None)
    assert not linear_maps.can_pack(weight.float(), None)
    assert not linear_maps.can_pack(weight.to("meta"), None)
    assert not linear_maps.can_pack(weight.as_subclass(type("Quantised", (torch.Tensor,), {})), None)
    with torch.inference_mode():
        made_there = weight.clone()
    assert not linear_maps.can_pack(made_there, None)
    assert not linear_maps.can_pack(weight, made_there[0])
    assert linear_maps.can_pack(weight, weight[0])
    monkeypatch.setattr(linear_maps, "has_onednn", lambda: False)
    assert not linear_maps.can_pack(weight, None)
    monkeypatch.setattr(linear_maps, "has_onednn", lambda: True)
    monkeypatch.setattr(linear_maps, "has_bfloat16_instructions", lambda: False)
    assert not linear_maps.can_pack(weight, None)
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: False)
    for has_fbgemm in (True, False):
        monkeypatch.setattr(linear_maps, "has_fbgemm", lambda has_fbgemm=has_fbgemm: has_fbgemm)
        assert linear_maps.can_pack(weight, None) is has_fbgemm
        assert not linear_maps.can_pack(weight.half(), None)


@pytest.mark.parametrize(
    ("flags", "has_them"), [("avx2 avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("avx2 avx512f", False)]
)
def test_instructions_for_bfloat16_are_read_from_the_system(flags, has_them, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr(linear_maps, "Path", lambda _: tmp_path / "cpuinfo")
    assert linear_maps.has_bfloat16_instructions.__wrapped__() is has_them


@pytest.fixture(params=["AMD's", "AMD's, AVX-512"])
def forms(request, monkeypatch):
    """The number of rows of each product whose form was chosen."""
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    set_processor(request.param, monkeypatch)
    taken = []
    fastest_form = linear_maps.fastest_form
    monkeypatch.setattr(linear_maps, "fastest_form", lambda n, *size: taken.append(n) or fastest_form(n, *size))
    return taken


def test_states_of_any_shape_get_what_a_module_gives(forms):
    module = torch.nn.Linear(8, 16)
    for shape in ((8,), (1, 8), (2, 3, 8), (0, 4, 8), (2, 1, 5, 8)):
        states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert_equal(apply_linear(module, states), module(states))
    assert forms == [1, 1, 6, 0, 10]


def test_a_module_is_called_where_somebody_looks_or_wants_gradients(forms):
    states = torch.randn(4, 8)
    module = torch.nn.Linear(8, 16)
    assert apply_linear(module, states).requires_grad
    seen = []
    handle = module.register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        apply_linear(module, states)
        handle.remove()
        assert apply_linear(torch.nn.Sequential(module), states).shape == (4, 16)
        with torch.autocast("cpu", torch.bfloat16):
            assert apply_linear(module, states).dtype == torch.bfloat16
    assert seen == [1]
    assert not forms


@pytest.fixture
def no_half_products(monkeypatch):
    """A processor without products of 16 bits; the dtypes of the weights that are multiplied in float32."""
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: dtype.itemsize > 2)
    converted = []
    by_float32 = linear_maps.by_float32
    monkeypatch.setattr(linear_maps, "by_float32", lambda *args: converted.append(args[1].dtype) or by_float32(*args))
    return converted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 7, 8, 21, 40])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_many_rows_of_16_bits_are_multiplied_in_float32_where_they_have_no_product(
    dtype, n_rows, has_bias, is_transposed, no_half_products, monkeypatch
):
    monkeypatch.setattr(linear_maps, "CONVERTED_AT_ONCE", 50)
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    set_processor("AMD's", monkeypatch)
    states, weight, bias = (tensor.to(dtype) for tensor in random_product(n_rows, 33, 20))
    weight = weight.T.contiguous().T if is_transposed else weight
    bias = bias if has_bias else None
    expected = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        made = linear_maps.linear(states.view(n_rows, 1, 20), weight, bias)
    assert made.shape == (n_rows, 1, 33)
    is_converted = is_transposed or n_rows >= linear_maps.CONVERTED_ROWS  # then there is one rounding, at the end
    rounding = torch.finfo(dtype).eps * (0.51 if is_converted else 2)
    assert_close(made.view(n_rows, 33).double(), expected, rtol=rounding, atol=1e-6 if is_converted else rounding)
    assert no_half_products == [dtype] * is_converted


def test_what_is_not_plain_or_wants_gradients_is_not_converted(no_half_products):
    states, weight, bias = (tensor.bfloat16() for tensor in random_product(20, 9, 5))
    assert linear_maps.linear(states, torch.nn.Parameter(weight), bias).requires_grad
    with torch.no_grad():
        linear_maps.linear(states, weight.as_subclass(type("Quantised", (torch.Tensor,), {})), bias)
        linear_maps.linear(states.double(), weight.double(), bias.double())
        with pytest.raises(RuntimeError, match="dtype"):
            linear_maps.linear(states.float(), weight, bias)
    assert not no_half_products


@pytest.mark.parametrize("answer", [True, False])
def test_torch_s_library_says_which_products_it_has(answer, monkeypatch):
    ask = half_precision.has_products.__wrapped__
    assert ask(torch.float32)
    assert ask(torch.float64)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: answer)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: not answer)
    assert ask(torch.bfloat16) is answer
    assert ask(torch.float16) is not answer
