"""One side of a comparison: a process that loads a model, computes, and says how long it took.

Started by `compare.py` in our environment or in that of transformers 4.35, so both must be able to run every line that
concerns them. Requests come as JSON lines on stdin, answers go as JSON lines to stdout.

Shapes: B batch, Q tokens of a segment, M memory, D model size, V vocabulary.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IS_OURS = "--ours" in sys.argv


class Task:
    """What a worker can be asked for; `unit` times are those of one token, segment or step."""

    def round(self) -> float:
        """Do the work and give its seconds per unit."""
        raise AssertionError("each task says what its work is")

    def agreement(self) -> dict[str, Any]:
        """Arrays that the other side must have as well, by name."""
        return {}


class ModelTask(Task):
    """A task with a language model in a folder."""

    def __init__(self, folder: str, dtype: str = "float32", **sizes: int) -> None:
        import torch

        torch.set_grad_enabled(False)
        self.torch = torch
        self.sizes = sizes
        self.dtype = dtype
        self.model = load_model(folder, dtype)
        self.config = self.model.config
        self.batch_size = sizes.get("batch_size", 1)

    def random_mems(self) -> list[Any]:
        """Memories that look like the output of a layer norm, the same ones on both sides."""
        generator = self.torch.Generator().manual_seed(1)
        shape = (self.config.mem_len, self.batch_size, self.config.d_model)
        layers = range(self.config.n_layer)
        mems = [self.torch.randn(shape, generator=generator) for _ in layers]
        return [mem.to(self.model.dtype) for mem in mems]

    def random_ids(self, length: int, seed: int) -> Any:
        """Token ids `[B, length]`, log-uniform as words roughly are: rare ones have high ids."""
        generator = self.torch.Generator().manual_seed(seed)
        uniform = self.torch.rand(self.batch_size, length, generator=generator, dtype=self.torch.float64)
        ids = (uniform * math.log(self.config.vocab_size + 1)).exp().long() - 1
        return ids.clamp(max=self.config.vocab_size - 1)


class Decode(ModelTask):
    """New tokens after a full memory, by `generate` with sampling from the 50 most probable."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_tokens = self.sizes["n_tokens" if IS_OURS else "peer_tokens"]
        self.first = self.random_ids(1, seed=2)
        self.mems = self.random_mems()
        if IS_OURS:
            start = self.generate(self.first, n_tokens=2, mems=self.mems)
            self.ids, self.state = start.sequences, start.past_key_values

    def generate(self, ids: Any, *, n_tokens: int, **kwargs: Any) -> Any:
        return self.model.generate(
            ids,
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            **{"do_sample": True, "top_k": 50, "return_dict_in_generate": True, **kwargs},
        )

    def round(self) -> float:
        if not IS_OURS:
            started = time.perf_counter()
            self.generate(self.first, n_tokens=self.n_tokens, past_key_values=self.mems)
            return (time.perf_counter() - started) / self.n_tokens
        started = time.perf_counter()
        output = self.generate(self.ids, n_tokens=self.n_tokens, past_key_values=self.state)
        seconds = time.perf_counter() - started
        self.ids, self.state = output.sequences, output.past_key_values
        return seconds / self.n_tokens

    def agreement(self) -> dict[str, Any]:
        n_tokens = self.sizes["n_compared"]
        past = {"mems" if IS_OURS else "past_key_values": self.mems}
        output = self.generate(self.first, n_tokens=n_tokens, do_sample=False, output_scores=True, **past)
        scores = self.torch.stack(output.scores, dim=1)
        return {"log-probabilities": scores.float(), "tokens": output.sequences[:, : n_tokens + 1]}


class Evaluate(ModelTask):
    """Losses of consecutive segments after a full memory; on our side as many in a call as `evaluate` reads at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_len, self.n_segments = self.sizes["tgt_len"], self.sizes["n_segments"]
        self.segments = [self.random_ids(self.q_len, seed=3 + i) for i in range(self.n_segments)]
        self.start = self.random_mems()
        self.at_once = self.sizes.get("at_once") or (segments_at_once(self.model, self.q_len) if IS_OURS else 1)
        self.state = self.new_state()
        if IS_OURS:
            self.read(self.state)

    def new_state(self) -> dict[str, Any]:
        """What the first call is given: the memories, and on our side the cache that takes them in."""
        if not self.config.mem_len or not IS_OURS:
            return {"mems": self.start} if self.config.mem_len else {}
        cache_class = models_package().TransfoXLCache
        cache = cache_class(self.config, segment_len=self.q_len, n_segments=self.at_once)
        return {"mems": self.start, "past_key_values": cache}

    def read(self, state: dict[str, Any]) -> list[Any]:
        """The losses of all segments, each `[B, Q - 1]`, in no order; changes the state."""
        losses = []
        for first in range(0, self.n_segments, self.at_once):
            segments = self.segments[first : first + self.at_once]
            if not IS_OURS:
                output = self.model(segments[0], labels=segments[0], **state)
                found = output.losses.view(self.batch_size, self.q_len - 1)
            else:
                targets = [self.torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100) for ids in segments]
                ids, targets = (self.torch.cat(parts, dim=1) for parts in (segments, targets))
                output = self.model(ids, shift_labels=targets, skip_logits=True, **state)
                found = output.losses[targets != -100].view(self.batch_size, -1)
            losses += found.split(self.q_len - 1, dim=1)
            if IS_OURS:
                state.pop("mems", None)  # the cache has taken them in
            elif state:
                state["mems"] = output.mems
        return losses

    def round(self) -> float:
        started = time.perf_counter()
        self.read(self.state)
        return (time.perf_counter() - started) / self.n_segments

    def agreement(self) -> dict[str, Any]:
        # 4.35 gives losses in the order of the clusters.
        return {"losses": self.torch.stack([losses.float().sort().values for losses in self.read(self.new_state())])}


class Read(ModelTask):
    """Losses of a text, with memory or, for a model without, through a window that moves by one token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from transformer_xl.evaluation import start_reading

        self.has_memory = self.config.mem_len > 0
        tgt_len = self.sizes["tgt_len"]
        self.step = tgt_len * segments_at_once(self.model, tgt_len) if self.has_memory else 1
        self.context = self.config.mem_len if self.has_memory else self.sizes["window_len"] - 1
        self.n_steps = self.sizes["n_segments"] if self.has_memory else 1
        length = tgt_len if self.has_memory else self.sizes["window_len"]
        self.start_reading = lambda: start_reading(self.model, tgt_len=length, sliding_window=not self.has_memory)
        self.next = self.start_reading()
        self.fill(self.next)

    def fill(self, read: Any) -> None:
        """Read as much as a token may depend on; a window needs no computation for that."""
        if self.has_memory:
            for ids in self.random_ids(self.context, seed=4).split(self.step, dim=1):
                read(ids, ids, None)
        else:
            ids = self.random_ids(self.context, seed=4)
            # The closure holds the text so far: to give it one without computing windows is to set what it keeps.
            read.__closure__[read.__code__.co_freevars.index("past")].cell_contents = ids

    def round(self) -> float:
        ids = self.random_ids(self.step, seed=5)
        started = time.perf_counter()
        for _ in range(self.n_steps):
            self.next(ids, ids, None)
        return (time.perf_counter() - started) / (self.n_steps * self.step)

    def agreement(self) -> dict[str, Any]:
        """How far the path that is measured is from the literal one, on the same text."""
        ids, losses = self.random_ids(self.step, seed=6), []
        for implementation in ("sdpa", "eager"):
            self.model.set_attn_implementation(implementation)
            read = self.start_reading()
            self.fill(read)
            losses.append(read(ids, ids, None))
        self.model.set_attn_implementation("sdpa")
        return {"difference from the literal path": losses[0] - losses[1]}


class Train(ModelTask):
    """Forward, backward and one step of gradient descent on a segment after a full memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.torch.set_grad_enabled(True)
        self.q_len = self.sizes["tgt_len"]
        self.model.train()
        self.mems = self.random_mems()
        # The plainest step there is: the model is compared here, not the optimiser and its memory.
        self.optimizer = self.torch.optim.SGD(self.model.parameters(), lr=1e-5)

    def step(self, seed: int) -> Any:
        ids = self.random_ids(self.q_len, seed)
        output = self.model(ids, labels=ids, mems=self.mems)
        output.loss.backward()
        return output

    def round(self) -> float:
        started = time.perf_counter()
        self.mems = self.step(seed=7).mems
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def agreement(self) -> dict[str, Any]:
        """Loss and a sample of each gradient, without dropout."""
        rates = {module: module.p for module in self.model.modules() if isinstance(module, self.torch.nn.Dropout)}
        for module in rates:
            module.p = 0.0
        arrays = {"loss": self.step(seed=8).loss.detach()}
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad.flatten()
            arrays[name] = gradient[:: max(1, gradient.numel() // 20_000)].clone()
        for module, rate in rates.items():
            module.p = rate
        self.optimizer.zero_grad()
        return arrays


class Encode(Task):
    """A text file to ids by `encode_file`, nothing remembered from the round before."""

    def __init__(self, vocabulary: str, text: str, mode: str) -> None:
        transfo_xl = models_package()
        if IS_OURS:
            from transformer_xl.moses import moses_rules

            self.forget = moses_rules.cache_clear
            self.tokenizer = transfo_xl.TransfoXLTokenizer(vocab_file=vocabulary, mode=mode)
        else:
            self.forget = list
            self.tokenizer = transfo_xl.TransfoXLTokenizer(vocab_file=vocabulary)
        self.vocabulary, self.text, self.mode = vocabulary, text, mode

    def encode(self) -> Any:
        return self.tokenizer.encode_file(self.text, ordered=True, add_eos=False)

    def round(self) -> float:
        self.forget()
        started = time.perf_counter()
        self.encode()
        return time.perf_counter() - started

    def agreement(self) -> dict[str, Any]:
        if self.mode == "moses":
            return {"ids": self.encode()}
        import torch

        words = [line.strip() for line in Path(self.vocabulary).read_text(encoding="utf-8").splitlines()]
        ids = {word: i for i, word in enumerate(words)}
        text = Path(self.text).read_text(encoding="utf-8")
        looked_up = torch.tensor([ids.get(word, ids["<unk>"]) for word in text.split()])
        return {"ids": self.encode() if IS_OURS else looked_up}


class Load(Task):
    """From `from_pretrained` to the first token, in a process that has imported everything."""

    def __init__(self, folder: str) -> None:
        import torch

        models_package().TransfoXLLMHeadModel  # noqa: B018 - the import is lazy: this is what makes it
        torch.set_grad_enabled(False)
        self.torch, self.folder = torch, folder

    def round(self) -> float:
        started = time.perf_counter()
        model = load_model(self.folder, "float32")
        self.scores = model(self.torch.tensor([[1]])).logits[:, -1]
        self.scores.argmax(-1)
        return time.perf_counter() - started

    def agreement(self) -> dict[str, Any]:
        self.round()
        return {"log-probabilities": self.scores}


class Import(Task):
    """A new process that imports something, or a command, from start to end."""

    def __init__(self, statement: str = "", command: tuple[str, ...] = ()) -> None:
        package = "transformer_xl" if IS_OURS else "transformers"
        self.command = [sys.executable, "-c", statement.format(package=package)]
        if command:
            self.command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]

    def round(self) -> float:
        started = time.perf_counter()
        subprocess.run(self.command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
        return time.perf_counter() - started


class Machine(Task):
    """What the machine can do: bytes read and operations made in a second."""

    def __init__(self) -> None:
        import torch

        torch.set_grad_enabled(False)
        self.many = torch.ones(1 << 28)  # 1 GiB, beyond every cache
        self.matrix = torch.rand(4096, 4096)
        self.measure()

    def measure(self) -> dict[str, float]:
        """The best of some tries: a floor must not be too high because something else was running."""
        from transformer_xl.linear_maps import linear

        matrix = self.matrix
        read = min(_seconds(self.many.sum) for _ in range(5))
        multiply = min(_seconds(form) for form in (lambda: matrix @ matrix, lambda: linear(matrix, matrix, None)))
        return {"bytes_per_s": self.many.numel() * 4 / read, "operations_per_s": 2 * len(matrix) ** 3 / multiply}


class Prepare(Task):
    """Write a model with random weights into a folder."""

    def __init__(self, folder: str, config: dict[str, Any]) -> None:
        import torch

        torch.manual_seed(0)
        transfo_xl = models_package()
        model = transfo_xl.TransfoXLLMHeadModel(transfo_xl.TransfoXLConfig(**config))
        model.save_pretrained(folder)


def _seconds(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def models_package() -> Any:
    """The package that has the classes."""
    if IS_OURS:
        import transformer_xl

        return transformer_xl
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def segments_at_once(model: Any, tgt_len: int) -> int:
    """How many segments `evaluate` reads in one call."""
    from transformer_xl.evaluation import segments_at_once

    return segments_at_once(model, tgt_len, batch_size=1)


def load_model(folder: str, dtype: str) -> Any:
    """The model in a folder, ready for inference."""
    import torch

    model_class = models_package().TransfoXLLMHeadModel
    if not IS_OURS or dtype == "float32":
        return model_class.from_pretrained(folder).eval()
    return model_class.from_pretrained(folder, dtype=torch.bfloat16).eval()


def start_peak() -> None:
    """Forget the highest use of memory so far, where the system can (Linux)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The highest use of memory of this process since `start_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii")).group(1)) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def taken_by_host() -> float:
    """Seconds of all processors together that the host of this machine has given to others; 0 where nobody says."""
    status = Path("/proc/stat")
    if not status.exists():
        return 0.0
    return int(status.read_text(encoding="ascii").split()[8]) / os.sysconf("SC_CLK_TCK")


def profile(task: Task) -> list[dict[str, Any]]:
    """The operations of one round by the time that they take themselves, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    with recording(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        task.round()
    events = sorted(record.key_averages(group_by_input_shape=True), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operation": event.key.removeprefix("aten::"),
            "shapes": " ".join(str(shape).replace(" ", "") for shape in event.input_shapes if shape),
            "calls": event.count,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:12]
    ]


def answer(request: dict[str, Any], task: Task | None) -> tuple[Any, Task | None]:
    """Do what a request says; gives the answer, and the task that the next requests are for."""
    if "task" in request:
        task = globals()[request["task"]](**request["options"])
        return "ready", task
    assert task is not None
    if request["do"] == "round":
        started, processor_s, taken_s = time.perf_counter(), time.process_time(), taken_by_host()
        seconds = task.round()
        processor_s, taken_s = time.process_time() - processor_s, taken_by_host() - taken_s
        taken = taken_s / (time.perf_counter() - started) / (os.cpu_count() or 1)
        return {"seconds": seconds, "processor_s": processor_s, "taken": taken, "peak_mib": peak_mib()}, task
    if request["do"] == "profile":
        return profile(task), task
    if request["do"] == "start peak":
        start_peak()
        return "started", task
    if request["do"] == "measure":
        return task.measure(), task
    import numpy

    arrays = {name: array.cpu().numpy() for name, array in task.agreement().items()}
    numpy.savez(request["path"], **arrays)
    return "written", task


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no answer
    task: Task | None = None
    for line in sys.stdin:
        result, task = answer(json.loads(line), task)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
