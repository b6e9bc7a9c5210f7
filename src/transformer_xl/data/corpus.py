"""The corpus inside the package, and how a text is split."""

from collections.abc import Mapping
from importlib.resources import files
from itertools import accumulate, pairwise

TRAIN_VALID_TEST: Mapping[str, float] = {"train": 0.90, "valid": 0.05, "test": 0.05}


def tiny_shakespeare() -> str:
    """About 1.1 million characters of Shakespeare's plays, public domain, 65 different symbols.

    The selection is Karpathy's "tinyshakespeare" (https://github.com/karpathy/char-rnn).
    """
    return (files("transformer_xl.data") / "tiny_shakespeare.txt").read_text(encoding="utf-8")


def split_text(text: str, fractions: Mapping[str, float] = TRAIN_VALID_TEST) -> dict[str, str]:
    """Cut a text into named stretches in order; together they are the text.

    Args:
        text: the text.
        fractions: the share of each stretch; they add up to 1.

    Raises:
        ValueError: the fractions do not add up to 1, or a stretch would be empty.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise ValueError(f"fractions={dict(fractions)} must be positive and add up to 1.")
    ends = [0, *(round(share * len(text)) for share in accumulate(fractions.values()))]
    parts = {name: text[start:end] for name, (start, end) in zip(fractions, pairwise(ends), strict=True)}
    for name, part in parts.items():
        if not part:
            raise ValueError(f"text has {len(text)} characters, which leaves none for {name!r}: pass a longer text.")
    return parts


__all__ = ["TRAIN_VALID_TEST", "split_text", "tiny_shakespeare"]
