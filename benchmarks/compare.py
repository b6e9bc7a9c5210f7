"""How fast this package is beside transformers 4.35.0, the last release whose Transformer-XL works.

    python benchmarks/compare.py [--workload NAME ...] [--quick] [--rounds N] [--threads N] [--results FOLDER]

Both sides have the same weights and inputs and run in turns on this machine, each in a process of its own; times are
medians, and rounds that the host of a virtual machine disturbs are repeated. What the machine can do is measured
after each of our rounds, as other programs take their share of it. transformers 4.35.0 is installed into `.venv-4.35`
the first time. Where the two do not compute the same numbers, no speed-up is printed. `workloads.py` says what is
measured, `worker.py` how; docs/performance.md explains the outcome.

Writes compare.json and compare.md into the folder of results, and prints the table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from workloads import RANDOM_WEIGHTS, SCALING, WORKLOADS, Sizes, Workload, cost_of, tokens_of, window_operations

from transformer_xl import TransfoXLTokenizer

ROOT = Path(__file__).resolve().parent.parent
PEER_FOLDER = ROOT / ".venv-4.35"
PEER_PYTHON = PEER_FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PEER_PACKAGES = ["transformers==4.35.0", "torch==2.13.0", "numpy<2", "sacremoses==0.2.0"]  # no accelerate
MOST_TAKEN = 0.05  # of the processors' time during a round, by the host of a virtual machine
MOST_TRIES = 4  # of a round, if the host takes more each time


class Worker:
    """A process of one side that answers requests (see worker.py)."""

    def __init__(self, *, is_ours: bool, task: str, options: dict[str, Any], n_threads: int) -> None:
        python = sys.executable if is_ours else str(PEER_PYTHON)
        command = [python, str(ROOT / "benchmarks" / "worker.py"), *(["--ours"] if is_ours else [])]
        threads = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "PYTHONWARNINGS": "ignore"}
        environment = {**os.environ, **threads, **offline}
        self._process = subprocess.Popen(  # noqa: S603 - our own worker
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.ask({"task": task, "options": options})

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker failed with exit code {self._process.wait()}: see its message above.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def worker(**arguments: Any) -> Iterator[Worker]:
    """A worker that ends with the block."""
    process = Worker(**arguments)
    try:
        yield process
    finally:
        process.close()


class Side:
    """Our side or the other one of a workload."""

    def __init__(self, workload: Workload, *, is_peer: bool, inputs: "Inputs", n_threads: int) -> None:
        self.is_ours = not is_peer or workload.peer is not None  # the other side may be a model of ours as well
        config = workload.peer if is_peer and workload.peer else workload.config
        options = inputs.options(workload, config)
        if not is_peer and workload.dtype != "float32":
            options["dtype"] = workload.dtype
        self._arguments = {
            "is_ours": self.is_ours, "task": workload.task, "options": options, "n_threads": n_threads
        }  # fmt: skip
        self._is_fresh = workload.is_fresh
        self._worker: Worker | None = None
        self.answers: list[dict[str, float]] = []
        self.n_repeated = 0

    def start(self) -> None:
        """Start the process, unless it is running."""
        if self._worker is None:
            self._worker = Worker(**self._arguments)

    def warm_up(self) -> None:
        """One round that does not count, unless each round needs a new process."""
        assert self._worker is not None
        if not self._is_fresh:
            self._worker.ask({"do": "round"})
        self._worker.ask({"do": "start peak"})

    def round(self) -> None:
        """One measured round: of some tries, if the host disturbs them, the least disturbed one."""
        tries = [self._try()]
        while tries[-1]["taken"] > MOST_TAKEN and len(tries) < MOST_TRIES:
            tries.append(self._try())
        self.n_repeated += len(tries) - 1
        self.answers.append(min(tries, key=lambda answer: answer["taken"]))

    def _try(self) -> dict[str, float]:
        if self._is_fresh:
            self.close()
            self.start()
            self.warm_up()
        assert self._worker is not None
        answer: dict[str, float] = self._worker.ask({"do": "round"})
        return answer

    def arrays(self, folder: str) -> dict[str, np.ndarray]:
        """What this side computes, by name."""
        assert self._worker is not None
        path = Path(folder, f"agreement-{time.monotonic_ns()}.npz")
        self._worker.ask({"do": "agreement", "path": str(path)})
        with np.load(path) as arrays:
            return dict(arrays)

    def profile(self) -> list[dict[str, Any]]:
        """The operations that one more round spends most time in."""
        assert self._worker is not None
        answer: list[dict[str, Any]] = self._worker.ask({"do": "profile"})
        return answer

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def median(self, name: str) -> float:
        """Of the rounds so far."""
        return statistics.median(answer[name] for answer in self.answers)

    @property
    def peak_mib(self) -> float:
        """The most memory that any round used."""
        return max(answer["peak_mib"] for answer in self.answers)


class Inputs:
    """Models and texts that workloads need, written once into a temporary folder."""

    def __init__(self, folder: str, n_threads: int) -> None:
        self.folder = folder
        self._n_threads = n_threads
        self._models: dict[str, str] = {}
        self._texts: dict[str, dict[str, str]] = {}

    def options(self, workload: Workload, config: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a workload's task."""
        if workload.task == "Encode":
            return {**workload.options, **self._text(workload.options["mode"])}
        if workload.task == "Import":
            return dict(workload.options)
        return {**workload.options, "folder": self._model({**config, **RANDOM_WEIGHTS})}

    def _model(self, config: dict[str, Any]) -> str:
        name = json.dumps(config, sort_keys=True)
        if name not in self._models:
            self._models[name] = str(Path(self.folder, f"model{len(self._models)}"))
            options = {"folder": self._models[name], "config": config}
            with worker(is_ours=True, task="Prepare", options=options, n_threads=self._n_threads):
                pass
        return self._models[name]

    def _text(self, mode: str) -> dict[str, str]:
        """The play in the package, and its words: as it is, or with all words between spaces."""
        if mode not in self._texts:
            text = files("transformer_xl").joinpath("data", "tiny_shakespeare.txt").read_text(encoding="utf-8")
            tokenizer = TransfoXLTokenizer()
            lines = [tokenizer.tokenize(line) for line in text.splitlines()]
            paths = {name: str(Path(self.folder, f"{mode}.{name}")) for name in ("vocabulary", "text")}
            words = dict.fromkeys(["<unk>", "<eos>", *(word for line in lines for word in line)])
            Path(paths["vocabulary"]).write_text("\n".join(words) + "\n", encoding="utf-8")
            if mode == "whitespace":
                text = "\n".join(" ".join(line) for line in lines) + "\n"
            Path(paths["text"]).write_text(text, encoding="utf-8")
            self._texts[mode] = paths
        return self._texts[mode]


def install_peer() -> None:
    """Make the environment of transformers 4.35.0, unless it is there."""
    stamp = PEER_FOLDER / ".installed"
    if stamp.exists():
        return
    print(f"Installing {', '.join(PEER_PACKAGES)} into {PEER_FOLDER.name} (once) ...", flush=True)
    if not PEER_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER_FOLDER)], check=True)  # noqa: S603 - our own interpreter
    pip = [str(PEER_PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    # torch alone first: where several builds of it are offered, this takes the one that the user's index prefers.
    for packages in (PEER_PACKAGES[1:2], PEER_PACKAGES):
        subprocess.run([*pip, *packages], check=True)  # noqa: S603 - our own interpreter
    stamp.touch()


def compare(workload: Workload, inputs: Inputs, *, rounds: int, n_threads: int, machine: Worker) -> Any:
    """The entry of one workload in the results."""
    sides = [Side(workload, is_peer=False, inputs=inputs, n_threads=n_threads)]
    if workload.has_peer:
        sides.append(Side(workload, is_peer=True, inputs=inputs, n_threads=n_threads))
    with ExitStack() as stack:
        for side in sides:
            stack.callback(side.close)
            side.start()
        # First of all: in training, the sides' dropout makes their weights different.
        arrays = [side.arrays(inputs.folder) for side in sides]
        for side in sides:
            side.warm_up()
        has_floor = cost_of(workload) is not None
        paces = []
        for _ in range(rounds):
            for side in sides:
                side.round()
                if side is sides[0] and has_floor:  # now: a host gives twice as much from one minute to the next
                    paces.append(machine.ask({"do": "measure"}))
        profile = sides[0].profile() if has_floor else None
    return {**_entry(workload, sides, _difference(workload, arrays), paces), "profile": profile}


def scaling_table(inputs: Inputs, *, rounds: int | None, n_threads: int, machine: Worker) -> Iterator[dict[str, Any]]:
    """How the time for a token grows, beside how the floor grows."""
    for what, workloads in SCALING:
        for value, workload in workloads:
            entry = compare(workload, inputs, rounds=rounds or workload.rounds, n_threads=n_threads, machine=machine)
            n_tokens = tokens_of(workload)
            yield {
                "what": what,
                "value": value,
                "ms_per_token": 1000 * entry["ours"] / n_tokens,
                "floor_ms_per_token": 1000 * entry["floor"] / n_tokens,
                "over_floor": entry["over_floor"],
                "peak_mib": entry["ours_peak_mib"],
            }


def _difference(workload: Workload, arrays: list[dict[str, np.ndarray]]) -> float | None:
    """The largest difference of what the sides compute, infinite where they have not even the same shapes; None where
    there is one side only, or nothing computed."""
    if len(arrays) < 2 or not arrays[0]:
        return None
    if workload.task == "Read":  # two models: each side was compared with its own literal path
        return max(float(np.abs(array).max()) for side in arrays for array in side.values())
    ours, theirs = arrays
    if ours.keys() - theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return float("inf")
    differences = {name: np.abs(ours[name] - theirs[name].astype(ours[name].dtype)) for name in ours}
    if workload.task == "Train":
        # Gradients have all sizes; and where rounding switches a unit of a feed-forward part, a whole row differs.
        return max(float(np.linalg.norm(differences[name]) / np.linalg.norm(ours[name])) for name in ours)
    return max(float(difference.max()) for difference in differences.values())


def _entry(workload: Workload, sides: list[Side], difference: float | None, paces: list[dict[str, float]]) -> Any:
    ours, peer = sides[0], sides[1] if len(sides) > 1 else None
    agrees = peer is not None and (difference is None or difference <= workload.tolerance)
    cost, seconds = cost_of(workload), ours.median("seconds")
    machine = {name: statistics.median(pace[name] for pace in paces) for name in (paces[0] if paces else ())}
    floor = None if cost is None else cost.seconds(**machine)
    entry = {
        "name": workload.name,
        "dtype": workload.dtype,
        "ours": seconds,
        "peer": peer.median("seconds") if peer else None,
        "unit": workload.unit,
        "ratio": peer.median("seconds") / seconds if peer and agrees else None,
        "floor": floor,
        "over_floor": None if floor is None else seconds / floor,
        "machine": machine or None,
        "ours_peak_mib": round(ours.peak_mib),
        "peer_peak_mib": round(peer.peak_mib) if peer else None,
        "memory_ratio": ours.peak_mib / peer.peak_mib if peer and agrees else None,
        "agrees": agrees if peer else None,
        "difference": difference,
        "tolerance": workload.tolerance if difference is not None else None,
        "rounds": len(ours.answers),
        "rounds_repeated": sum(side.n_repeated for side in sides),
        "ours_all": [answer["seconds"] for answer in ours.answers],
        "peer_all": [answer["seconds"] for answer in peer.answers] if peer else None,
        "ours_processor_s": ours.median("processor_s"),
        "peer_processor_s": peer.median("processor_s") if peer else None,
    }
    if workload.task == "Read":
        assert cost is not None
        entry["ratio_of_operations"] = (
            window_operations(Sizes.of(workload.config), workload.options["window_len"]) / cost.operations
        )
    return entry


def facts(n_threads: int) -> dict[str, Any]:
    """What a reader must know to judge the numbers."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    changes = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False)  # noqa: S603
    peer_versions = (
        "import torch, transformers, sys; print(sys.version.split()[0], torch.__version__, transformers.__version__)"
    )
    peer = subprocess.run([str(PEER_PYTHON), "-c", peer_versions], capture_output=True, text=True, check=True)  # noqa: S603
    names = ("python", "torch", "transformers")
    return {
        "device": device_name(n_threads),
        "threads": n_threads,
        "versions": {
            "ours": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "transformer-xl")},
            },
            "peer": dict(zip(names, peer.stdout.split(), strict=True)),
        },
        "commit": (commit.stdout.strip() or "unknown") + (" with changes" if changes.stdout.strip() else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "benchmarks/compare.py", *_without_folder(sys.argv[1:])]),
    }


def _without_folder(arguments: list[str]) -> list[str]:
    """Arguments of this command without where the results go, which is nobody's business."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--results")
    return parser.parse_known_args(arguments)[1]


def device_name(n_threads: int) -> str:
    """The processor's name, as far as the system says it, its cores, and how many threads are used."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {n_threads} threads"


def markdown(results: dict[str, Any]) -> str:
    """The results as a document with a table."""
    machine, versions = results["machine"], results["versions"]
    rows = [
        "| workload | dtype | ours | transformers 4.35 | unit | times as fast | over the floor "
        "| peak memory, ours / theirs | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in results["workloads"]:
        memory = f"{entry['ours_peak_mib']:,} / {entry['peer_peak_mib'] or 0:,} MiB".replace("/ 0 MiB", "/ -")
        if entry["memory_ratio"]:
            memory += f" ({entry['memory_ratio']:.2f})"
        ratio = "they disagree" if entry["agrees"] is False else _number(entry["ratio"], "x")
        if "ratio_of_operations" in entry:
            ratio += f" (operations: {entry['ratio_of_operations']:,.0f}x)"
        rows.append(
            f"| {entry['name']} | {entry['dtype']} | {entry['ours']:.4g} | {_number(entry['peer'])} | {entry['unit']} "
            f"| {ratio} | {_number(entry['over_floor'], 'x')} | {memory} | {_number(entry['difference'])} |"
        )
    return "\n".join(
        [
            "# Speed beside transformers 4.35.0",
            "",
            f"{results['device']}, {results['date']}, commit {results['commit']}.",
            f"Ours: {_versions(versions['ours'])}. Theirs: {_versions(versions['peer'])}.",
            f"This machine reads {machine['bytes_per_s'] / 1e9:.1f} GB/s and makes "
            f"{machine['operations_per_s'] / 1e9:.0f} GFLOP/s in a large float32 matrix product, at the start; the "
            "floor is what a workload must read or compute at the pace measured after each of its rounds, the median.",
            f"Command: `{results['command']}`. In `evaluation-vs-vanilla` the other side is our own vanilla model.",
            "",
            *rows,
            "",
            *scaling_rows(results.get("scaling", [])),
            *profile_rows(results["workloads"]),
        ]
    )


def scaling_rows(entries: list[dict[str, Any]]) -> list[str]:
    """The scaling table as Markdown."""
    if not entries:
        return []
    head = [
        "Time for one token. It may grow as its floor does, and less where the floor is not reached at the beginning.",
        "",
        "| what grows | value | ms/token | floor | over the floor | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = [
        f"| {entry['what']} | {entry['value']:,} | {entry['ms_per_token']:.4g} | {entry['floor_ms_per_token']:.4g} "
        f"| {entry['over_floor']:.4g}x | {entry['peak_mib']:,} MiB |"
        for entry in entries
    ]
    return ["## Scaling", "", *head, *rows, ""]


def profile_rows(entries: list[dict[str, Any]]) -> list[str]:
    """Where our time goes, as Markdown: the longest operations of each workload."""
    rows = [
        f"| {entry['name']} | {operation['share']:.1%} | {operation['calls']:,} | {operation['operation']} "
        f"| {operation['shapes']} |"
        for entry in entries
        for operation in (entry["profile"] or [])[:6]
    ]
    if not rows:
        return []
    head = [
        "The longest operations of one more round of ours, by torch's profiler: the time of each kind, and its calls.",
        "",
        "| workload | share | calls | operation | shapes |",
        "| --- | --- | --- | --- | --- |",
    ]
    return ["## Where our time goes", "", *head, *rows, ""]


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{unit}" if value < 1000 else f"{value:,.0f}{unit}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def write(results: dict[str, Any], folder: Path) -> None:
    """Write both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("compare.json", json.dumps(results, indent=1) + "\n"), ("compare.md", markdown(results))):
        unfinished = folder / f".{name}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)


def main() -> None:
    """Measure what was asked for."""
    names = [workload.name for workload in WORKLOADS] + ["scaling"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="one measured round of each")
    parser.add_argument("--rounds", type=int, help="measured rounds of each (default: the workload's own)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write to")
    arguments = parser.parse_args()
    install_peer()
    results: dict[str, Any] = facts(arguments.threads)
    results["workloads"] = []
    with ExitStack() as stack:
        machine = stack.enter_context(worker(is_ours=True, task="Machine", options={}, n_threads=arguments.threads))
        results["machine"] = machine.ask({"do": "measure"})
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="transformer-xl-bench-"))
        inputs = Inputs(folder, arguments.threads)
        for workload in WORKLOADS:
            if workload.name not in arguments.workload:
                continue
            rounds = 1 if arguments.quick else arguments.rounds or workload.rounds
            started = time.perf_counter()
            entry = compare(workload, inputs, rounds=rounds, n_threads=arguments.threads, machine=machine)
            results["workloads"].append(entry)
            write(results, arguments.results)  # now: a run takes an hour, and may be ended early
            print(
                f"{workload.name}: {entry['ours']:.4g} {workload.unit}, peer {_number(entry['peer'])}, "
                f"ratio {_number(entry['ratio'])}, over the floor {_number(entry['over_floor'])}, "
                f"memory {_number(entry['memory_ratio'])}, difference {_number(entry['difference'])} "
                f"({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
        if "scaling" in arguments.workload:
            measure = {"rounds": 1 if arguments.quick else arguments.rounds, "machine": machine}
            results["scaling"] = []
            for entry in scaling_table(inputs, n_threads=arguments.threads, **measure):
                results["scaling"].append(entry)
                write(results, arguments.results)
                print(f"{entry['what']} {entry['value']:,}: {entry['ms_per_token']:.4g} ms", flush=True)
    print(markdown(results))


if __name__ == "__main__":
    main()
