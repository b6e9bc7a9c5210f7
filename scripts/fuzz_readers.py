"""Feeds the readers of old formats with damaged and forged files, and stops at the first that misbehaves.

    python scripts/fuzz_readers.py --inputs 100000 --output benchmarks/results/fuzz_readers.json

Real files (tests/fixtures/legacy, tests/fixtures/golden/tf) and hostile pickles of every protocol are edited by
hypothesis: bytes flipped, cut out, repeated, exchanged for instructions and for numbers at the edges, parts of other
files put in. Edits are made to whole files and, so that checksums do not end every run at the gate, to the parts
inside: the pickle in an archive, blocks and entries of a TensorFlow index. Each input must give a value or one of the
errors that the readers promise, with a message of one line, within the bounds of time and memory below, while the
interpreter imports, compiles, starts and opens nothing but the input itself. hypothesis shrinks an input that fails.
"""

import argparse
import collections
import io
import json
import pickle
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from transformer_xl.cli.errors import user_message
from transformer_xl.configuration import TransfoXLConfig
from transformer_xl.legacy.checkpoint import LegacyCheckpoint, settle_config
from transformer_xl.legacy.conversion import filled_model
from transformer_xl.legacy.source import read_source
from transformer_xl.legacy.tensorflow_file import TensorFlowFile
from transformer_xl.pickle_reader import read_pickle, read_torch_file
from transformer_xl.vocabulary import read_vocabulary

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
SECONDS_PER_INPUT = 20.0
MEBIBYTES_IN_ALL = 512  # that the process may grow by; the inputs are below 1 MB
INPUTS_PER_ROUND = 2000  # hypothesis remembers what it tried
PROMISED_ERRORS = (ValueError, OSError)
QUIET_EVENTS = {"builtins.id", "gc.get_objects", "object.__getattr__", "object.__setattr__", "os.listdir", "os.scandir"}


@dataclass(frozen=True, repr=False)
class Target:
    """A file to damage and the reader to give it to."""

    name: str
    content: bytes
    wrap: Callable[[bytes], bytes]  # makes the file from the edited content
    file_name: str
    read: Callable[[Path], Any]

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Watch:
    """Notes what the interpreter does while a reader runs."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed = ""
        self.events: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event in QUIET_EVENTS:
            return
        if event == "open" and str(arguments[0]).startswith(self.allowed) and arguments[1] in ("r", "rb", None):
            return
        self.events.append(f"{event} {arguments!r:.200}")


WATCH = Watch()
SEEN: collections.Counter[str] = collections.Counter()
SLOWEST: dict[str, float] = {}


def hostile_pickles() -> list[bytes]:
    """Small programs that the interpreter's own reader would run, or choke on."""
    parts: list[Any] = [
        collections.OrderedDict(a=[1, 2.5, None]),
        collections.Counter("banana"),
        {"bytes": b"\x00\xff", "set": {1, 2}},
        [("text", 10**30, -1, True)] * 3,
        bytearray(b"abc"),
    ]
    programs = [pickle.dumps(part, protocol) for part in parts for protocol in range(6)]
    programs += [
        b"cos\nsystem\n(S'id'\ntR.",
        b"(ios\nsystem\nS'id'\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x031+1\x85R.",
        b"cbuiltins\ngetattr\n(cos\nenviron\nS'get'\ntR(S'PATH'\ntR.",
        b"\x80\x02cos\nsystem\n)\x81}(S'a'\nI1\nub.",
        b"\x80\x02\x82\x01.",
        b"Pid\n.",
        b"\x80\x05\x97.",
        b"]" + b"2\x86" * 40 + b".",
        b")" + b"\x85" * 300 + b".",
        b"]q\x00h\x00a.",
        b"X\xff\xff\xff\x7fa.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x95" + b"\xff" * 8 + b"N.",
        b"Nr\xff\xff\xff\xff.",
        b"}(K\x01]u.",
    ]
    return programs


def archive_member(path: Path, suffix: str) -> tuple[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(suffix))
        return name, archive.read(name)


def with_pickle(path: Path, member: str) -> Callable[[bytes], bytes]:
    """Puts an edited pickle back into its archive, with right checksums."""

    def rebuild(content: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name == member else old.read(name))
        return out.getvalue()

    return rebuild


def with_checksums(content: bytes) -> bytes:
    """Gives the blocks of an edited TensorFlow index right checksums, where its footer still finds them."""
    raw = bytearray(content)

    def number(position: int) -> tuple[int, int]:
        value = shift = 0
        while position < len(raw) and shift < 63:
            value |= (raw[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if raw[position - 1] < 0x80:
                break
        return value, position

    def mend(start: int, size: int) -> None:
        if start + size + 5 <= len(raw):
            checksum = google_crc32c.value(bytes(raw[start : start + size + 1]))
            masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
            raw[start + size + 1 : start + size + 5] = struct.pack("<I", masked)

    position, places = max(0, len(raw) - 48), []
    for _ in range(2):
        start, position = number(position)
        size, position = number(position)
        places.append((start, size))
    mend(0, places[0][0] - 5)
    for start, size in places:
        mend(start, size)
    return bytes(raw)


def read_and_settle(path: Path) -> tuple[LegacyCheckpoint, TransfoXLConfig]:
    """What a conversion does before it makes a model."""
    checkpoint = read_source(path)
    return checkpoint, settle_config(checkpoint, {"mem_len": 4, "clamp_len": 3, "same_length": True}).config


def read_and_fill(path: Path) -> None:
    """What a conversion does before it writes."""
    filled_model(*read_and_settle(path))


def read_all_variables(path: Path) -> None:
    file = TensorFlowFile(path.with_name(path.name.removesuffix(".index")))
    for name in file.variables:
        file.read(name)


def pickled_vocabularies() -> list[bytes]:
    """Vocabularies with words enough for the instructions that the reader executes in runs."""
    words = ["<eos>", "<unk>", "naïve", *(f"word{n}" for n in range(600))]
    ids = {word: index for index, word in enumerate(words)}
    state = {"counter": collections.Counter({word: 70_000 - 200 * n for n, word in enumerate(words)}), "sym2idx": ids}
    return [pickle.dumps({**state, "idx2sym": words, "special": ["<eos>"]}, protocol) for protocol in range(6)]


def nvidia_file(folder: Path) -> Path:
    """A small checkpoint as NVIDIA's program saves it."""
    case = load_file(FIXTURES / "golden" / "original" / "relative" / "case.safetensors")
    state = {name.removeprefix("state."): value for name, value in case.items() if name.startswith("state.")}
    arguments = json.loads((FIXTURES / "golden" / "original" / "relative" / "arguments.json").read_bytes())
    torch.save({"model_config": arguments, "model_state": state, "epoch": 1}, folder / "checkpoint_best.pt")
    return folder / "checkpoint_best.pt"


def read_parent(path: Path) -> tuple[LegacyCheckpoint, TransfoXLConfig]:
    """The folder around a config."""
    return read_and_settle(path.parent)


def targets(made: Path) -> dict[str, list[Target]]:
    """Every reader with every real file that it has, by name; `made` is a folder for those that are made here."""
    legacy = FIXTURES / "legacy"
    found: list[Target] = []
    (made / "folder").mkdir()
    shutil.copy(legacy / "hf-4.35" / "pytorch_model.bin", made / "folder")

    def whole(path: Path, read: Callable[[Path], Any], name: str) -> None:
        found.append(Target(f"{read.__name__} {path.name}", path.read_bytes(), bytes, name, read))

    def pickle_file(path: Path) -> Any:
        return read_pickle(path.read_bytes(), source=path.name)

    for name in ("original/model.pt", "original/model-torch04.pt", "hf-4.35/pytorch_model.bin"):
        whole(legacy / name, read_torch_file, "model.pt")
        whole(legacy / name, read_and_settle, "model.pt")
    whole(legacy / "vocab.bin", read_vocabulary, "vocab.bin")
    whole(legacy / "hf-4.35" / "vocab.pkl", read_vocabulary, "vocab.pkl")
    whole(legacy / "hf-4.35" / "vocab.pkl", pickle_file, "vocab.pkl")
    for path, read in (
        (legacy / "original" / "model.pt", read_and_fill),
        (legacy / "hf-4.35" / "pytorch_model.bin", read_torch_file),
        (legacy / "vocab.bin", read_vocabulary),
        (nvidia_file(made), read_and_fill),
    ):
        member, content = archive_member(path, "/data.pkl")
        found.append(
            Target(f"{read.__name__} pickle in {path.name}", content, with_pickle(path, member), path.name, read)
        )
    whole(legacy / "hf-4.35" / "config.json", read_parent, "folder/config.json")
    words = json.dumps(["<eos>", "<unk>", *(f"wörd{n}" for n in range(40))], ensure_ascii=False).encode()
    found.append(Target("read_vocabulary vocab.json", words, bytes, "vocab.json", read_vocabulary))
    pickled = "read_vocabulary pickled"
    found += [Target(pickled, data, bytes, "vocab.pkl", read_vocabulary) for data in pickled_vocabularies()]
    found += [Target("read_pickle small program", code, bytes, "a.pkl", pickle_file) for code in hostile_pickles()]
    for case in ("A", "B"):
        index = (FIXTURES / "golden" / "tf" / case / "model.ckpt-0.index").read_bytes()
        found.append(Target("TensorFlow index", index, bytes, f"{case}.index", read_all_variables))
        found.append(Target("TensorFlow index, mended", index, with_checksums, f"{case}.index", read_all_variables))
        found.append(Target("TensorFlow, whole", index, with_checksums, f"{case}.index", read_and_settle))
    safetensors = (FIXTURES / "golden" / "tf" / "B" / "case.safetensors").read_bytes()
    found.append(Target("safetensors", safetensors, bytes, "model.safetensors", read_and_settle))
    grouped: dict[str, list[Target]] = {}
    for target in found:
        grouped.setdefault(target.name, []).append(target)
    return grouped


OPCODES = [bytes([code]) for code in b"().012NIJKLMFGSTUVXBCltede]}dpqrghjcRiobPQasu"]
OPCODES += [bytes([code]) for code in range(0x80, 0x99)]
EDGES = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\x00\x00\x00\x80",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"cos\nsystem\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"999999999\n",
    b"2\x86" * 20,
    *(b'"x"', b"[", b'{"a": ', b"null", b"true", b"-1", b"1e999", b"9" * 5000),
]

KINDS = ("set", "flip", "insert", "delete", "repeat", "splice", "cut")
BYTES_PER_EDIT = 9
# One draw for all edits: drawing each part of each edit would take longer than reading the file.
edits = st.binary(min_size=BYTES_PER_EDIT, max_size=8 * BYTES_PER_EDIT)


def edited(content: bytes, changes: bytes, donor: bytes) -> bytes:
    """Applies the edits that are written in `changes`: kind, place, length, source of new bytes, new bytes."""
    raw = bytearray(content)
    for start in range(0, len(changes) - BYTES_PER_EDIT + 1, BYTES_PER_EDIT):
        edit = changes[start : start + BYTES_PER_EDIT]
        kind, length = KINDS[edit[0] % len(KINDS)], 1 + edit[4] % 64
        at = int.from_bytes(edit[1:4], "little") % (len(raw) + 1)
        new = [edit[6:9], OPCODES[edit[6] % len(OPCODES)], EDGES[edit[6] % len(EDGES)]][edit[5] % 3]
        if kind == "set":
            raw[at : at + len(new)] = new
        elif kind == "flip" and raw:
            raw[at % len(raw)] ^= 1 << edit[5] % 8
        elif kind == "insert":
            raw[at:at] = new
        elif kind == "delete":
            del raw[at : at + length]
        elif kind == "repeat":
            raw[at:at] = raw[at : at + length] * (1 + edit[5] % 5)
        elif kind == "splice":
            place = int.from_bytes(edit[5:9], "little") % (len(donor) + 1)
            raw[at : at + length] = donor[place : place + length]
        elif kind == "cut" and length > 56:  # seldom: most of a file should stay
            del raw[at:]
    return bytes(raw)


def require(is_kept: bool, complaint: str) -> None:
    """Raises if a promise is broken; hypothesis then looks for the smallest input that breaks it."""
    if not is_kept:
        raise AssertionError(complaint)


def check(target: Target, content: bytes, folder: Path) -> None:
    """Gives one input to its reader and raises if that does what it must not."""
    path = folder / target.file_name
    path.write_bytes(target.wrap(content))
    if path.suffix == ".index":
        data = folder / f"{path.stem}.data-00000-of-00001"
        if not data.exists():
            data.write_bytes((FIXTURES / "golden" / "tf" / path.stem / "model.ckpt-0.data-00000-of-00001").read_bytes())
    WATCH.events.clear()
    WATCH.allowed = str(folder)
    start = time.process_time()
    WATCH.is_on = True
    try:
        target.read(path)
        outcome: str = "value"
        message: str | None = ""
    except PROMISED_ERRORS as error:
        outcome, message = type(error).__name__, user_message(error)
    finally:
        WATCH.is_on = False
    seconds = time.process_time() - start
    require(not WATCH.events, f"the interpreter was busy: {WATCH.events}")
    require(message is not None, f"{outcome} that none of our checks raised")
    require("\n" not in (message or ""), f"more than one line: {message!r}")
    require(seconds < SECONDS_PER_INPUT, f"{seconds:.1f} s")
    SEEN[f"{target.name}: {outcome}"] += 1
    SLOWEST[target.name] = max(SLOWEST.get(target.name, 0.0), seconds)


def grown_mebibytes(start: int) -> float:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024


def fuzz(n_inputs: int, first_seed: int) -> dict[str, Any]:
    """Runs the inputs in rounds and gives the counts; an input that misbehaves raises."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        groups = list(targets(folder).values())
        every = [target for group in groups for target in group]
        for target in every:  # imports and caches of the first use are not the readers' doing
            path = folder / target.file_name
            path.write_bytes(target.wrap(target.content))
            if path.suffix != ".index":
                try:
                    target.read(path)
                except PROMISED_ERRORS:
                    continue
        memory_at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, n_done = time.time(), 0
        for number in range((n_inputs + INPUTS_PER_ROUND - 1) // INPUTS_PER_ROUND):

            @seed(first_seed + number)
            @settings(
                max_examples=INPUTS_PER_ROUND, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(st.sampled_from(groups).flatmap(st.sampled_from), st.sampled_from(every), edits)
            def one_round(target: Target, donor: Target, changes: bytes) -> None:
                check(target, edited(target.content, changes, donor.content), folder)

            one_round()
            n_done = sum(SEEN.values())
            grown = grown_mebibytes(memory_at_start)
            print(f"{n_done} inputs, {time.time() - started:.0f} s, grown by {grown:.0f} MiB", flush=True)
            require(grown < MEBIBYTES_IN_ALL, f"the process grew by {grown:.0f} MiB")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607 - git of the user
    return {
        "inputs": n_done,
        "first_seed": first_seed,
        "misbehaved": 0,
        "seconds": round(time.time() - started),
        "grown_mebibytes": round(grown_mebibytes(memory_at_start)),
        "slowest_seconds": {name: round(seconds, 2) for name, seconds in sorted(SLOWEST.items())},
        "outcomes": dict(sorted(SEEN.items())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypothesis": version("hypothesis"),
        "device": f"{platform.processor() or platform.machine()}, one process",
        "commit": commit.stdout.strip() or "unknown",
        "date": date.today().isoformat(),
        "command": " ".join(["python scripts/fuzz_readers.py", *sys.argv[1:]]),
    }


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    result = fuzz(arguments.inputs, arguments.seed)
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
