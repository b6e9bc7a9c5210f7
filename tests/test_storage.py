"""Room from NumPy instead of torch: shapes, types and places as of any other tensor."""

import pytest
import torch

from transformer_xl.storage import CACHE_LINE, copied, product, room_for, zeros_like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (7, 0, 2), (300, 1001)])
def test_room_has_the_shape_and_dtype_and_begins_at_a_cache_line(shape, dtype):
    rooms = [room_for(shape, dtype) for _ in range(5)]
    for number, room in enumerate(rooms):
        assert (room.shape, room.dtype, room.is_contiguous()) == (shape, dtype, True)
        assert room.data_ptr() % CACHE_LINE == 0
        room.fill_(number)
    assert all((room == number).all() for number, room in enumerate(rooms))  # none lies in another one


def test_room_is_filled_with_nan_where_torch_does_it():
    torch.use_deterministic_algorithms(True)
    try:
        assert room_for((4, 9), torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_zeros_copies_and_products_are_those_of_torch():
    first, second = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    assert torch.equal(zeros_like(first), torch.zeros_like(first))
    copy = copied(second.T)
    assert torch.equal(copy, second.T)
    assert copy.is_contiguous()
    assert torch.equal(product(first, second.T), first @ second.T)
