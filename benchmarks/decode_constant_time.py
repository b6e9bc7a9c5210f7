"""Does a token cost the same however long the text is? Seconds for each thousand of 10,000 tokens, and peak memory.

python benchmarks/decode_constant_time.py runs/quickstart/model

Prints a table, then one JSON line.
"""

import argparse
import json
import resource
import statistics
import time
from importlib.metadata import version

import torch

from transformer_xl import TransfoXLLMHeadModel, TransfoXLTokenizer
from transformer_xl.generation import Sampling, stream_tokens

BLOCK = 1000


def block_seconds(model: TransfoXLLMHeadModel, prompt: list[int], n_tokens: int) -> list[float]:
    """Seconds of each block of `BLOCK` tokens."""
    tokens = stream_tokens(model, prompt, Sampling(seed=0))
    next(tokens)  # reads the prompt
    seconds = []
    for block in range(n_tokens // BLOCK):
        started = time.perf_counter()
        for _ in range(BLOCK):
            next(tokens)
        seconds.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        made = f"tokens {block * BLOCK:>7,} to {(block + 1) * BLOCK:>7,}"
        print(f"{made}  {seconds[-1]:6.2f} s   peak {peak:,.0f} MiB", flush=True)
    return seconds


def main() -> None:
    """Measure the model in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder, such as the quickstart's")
    parser.add_argument("--tokens", type=int, default=10_000, help="tokens to make (default: 10000)")
    parser.add_argument("--threads", type=int, default=1, help="a small model is fastest with few (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = TransfoXLLMHeadModel.from_pretrained(arguments.model).eval()
    tokenizer = TransfoXLTokenizer.from_pretrained(arguments.model)
    seconds = block_seconds(model, tokenizer.encode("ROMEO:"), arguments.tokens)
    summary = {
        "benchmark": "decode_constant_time",
        "seconds_of_each_thousand": [round(s, 3) for s in seconds],
        "second_thousand_s": round(seconds[1], 3),
        "last_thousand_s": round(seconds[-1], 3),
        "median_ms_per_token": round(statistics.median(seconds[1:]) / BLOCK * 1000, 3),
        "mem_len": model.config.mem_len,
        "threads": arguments.threads,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
