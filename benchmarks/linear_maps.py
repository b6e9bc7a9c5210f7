"""Which form of a linear map is the fastest on this machine, and which one the package takes.

    python benchmarks/linear_maps.py [--rows N ...] [--threads N] [--rounds N] [--results FILE]

Weights of the sizes that the WikiText-103 and enwik8 models have, 100 MB of each so that none stays in a cache, are
multiplied in turns by `F.linear` and by the forms of `transformer_xl/linear_maps.py`. Printed: GB of weights a second,
from the median of the rounds; `*` marks the form that the package takes for that product. The last line is the result
as JSON.
"""

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from compare import device_name
from torch.nn import functional as F

from transformer_xl import linear_maps

SIZES = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (20_000, 1024), (1536, 512), (2048, 512), (512, 2048)]
BYTES = 100_000_000
FORMS = {
    "linear": F.linear,
    "weight first": linear_maps.weight_first,
    "row last, by parts": linear_maps.row_last_by_parts,
    "rows first, by parts": linear_maps.rows_first_by_parts,
    **({"oneDNN": linear_maps.by_onednn} if linear_maps.has_onednn() else {}),
}


def paces(n_rows: int, n_out: int, n_in: int, rounds: int) -> dict[str, float]:
    """GB of weights a second, by form."""
    weights = [torch.randn(n_out, n_in) for _ in range(max(2, BYTES // (4 * n_out * n_in)))]
    states, bias = torch.randn(n_rows, n_in), torch.randn(n_out)
    forms = {name: form for name, form in FORMS.items() if n_rows == 1 or name != "row last, by parts"}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):  # the first one warms up
        for name, form in forms.items():
            started = time.perf_counter()
            for weight in weights:
                form(states, weight, bias)
            seconds[name].append(time.perf_counter() - started)
    n_bytes = 4 * n_out * n_in * len(weights)
    return {name: n_bytes / statistics.median(taken[1:]) / 1e9 for name, taken in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 8, 16, 64, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, help="JSON file to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    found = []
    for n_out, n_in in SIZES:
        for n_rows in arguments.rows:
            pace = paces(n_rows, n_out, n_in, arguments.rounds)
            form_taken = linear_maps.fastest_form(n_rows, n_out, n_in)
            taken = next(name for name, form in FORMS.items() if form is form_taken)
            shown = "  ".join(f"{name}{'*' if name == taken else ''} {gb:.1f}" for name, gb in pace.items())
            print(f"{n_rows} by {n_out} x {n_in}: {shown}", flush=True)
            found.append({"n_rows": n_rows, "n_out": n_out, "n_in": n_in, "taken": taken, "gb_per_s": pace})
    rows = " ".join(map(str, arguments.rows))
    result = json.dumps(
        {
            "command": f"python benchmarks/linear_maps.py --rows {rows} --threads {arguments.threads} "
            f"--rounds {arguments.rounds}",
            "date": date.today().isoformat(),
            "device": device_name(arguments.threads),
            "torch": torch.__version__,
            "products": found,
        }
    )
    if arguments.results:
        arguments.results.write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
