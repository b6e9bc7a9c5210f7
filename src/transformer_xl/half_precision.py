"""Where numbers of 16 bits have matrix products of their own on a processor.

Without instructions that oneDNN can use, torch multiplies such matrices number by number, up to sixty times as long as
in float32. Converting factors to float32 first costs little beside a product of many rows, and loses nothing: every
number of 16 bits is one of float32, in which sums are added up either way.
"""

from functools import cache

import torch

_QUESTIONS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@cache
def has_products(dtype: torch.dtype) -> bool:
    """Whether torch's library multiplies matrices of this dtype on this processor; True where it does not say."""
    question = _QUESTIONS.get(dtype)
    if question is None or not hasattr(torch.ops.mkldnn, question):
        return True
    return bool(getattr(torch.ops.mkldnn, question)())


__all__ = ["has_products"]
