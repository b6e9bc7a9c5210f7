"""A training as a thing that makes steps and can be put away and taken up again.

`Training` knows nothing of files, evaluation or pictures: run.py does those, between steps. On several processes each
has its own rows of the batch, with their own text and memories, and all have the same weights (DDP) or a part of them
(FSDP2).

Shapes: B rows in all processes together, R rows of a process, P rows of a part, Q tokens of a segment, C of context
before it, M memory, D model size.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from transformer_xl.data.streams import IGNORED, Segment, Stream
from transformer_xl.memory import reset_mems
from transformer_xl.modeling import TransfoXLLMHeadModel

from .averaging import WeightAverage
from .optimisation import LearningRate, clip_gradients, make_optimizers, set_lr
from .processes import mesh_to_shard_on
from .recipe import Precision, Recipe
from .regularisation import PenaltyMeter, regularise

ACCELERATE_PRECISION: Mapping[Precision, str] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Step(NamedTuple):
    """One training step that was made.

    Attributes:
        number: steps made, this one included.
        progress: share of the training that is done, 0 to 1; 1 at the last step.
        loss: its mean over the processes is the mean loss of a target in nats, a scalar tensor without history.
        n_tokens: tokens that were read, on all processes.
        lr: learning rate of the step.
        gradient_norm: before clipping, a scalar tensor; None if nothing is clipped.
    """

    number: int
    progress: float
    loss: Tensor
    n_tokens: int
    lr: float
    gradient_norm: Tensor | None


@dataclass
class PartMemory:
    """What the rows of a part remember.

    Attributes:
        mems: the model's memories, `n_layer` tensors `[M, P, D]`; None before the first segment.
        n_held: how many tokens of it are each row's own, `[P]` on the CPU; None if all are.
    """

    mems: list[Tensor] | None = None
    n_held: Tensor | None = None

    def begin(self, reset: Tensor | None, *, has_empty_start: bool) -> None:
        """Forget the rows where `reset [P]` is True."""
        if self.mems is None or reset is None or not bool(reset.any()):
            return
        self.mems = reset_mems(self.mems, reset)
        if has_empty_start:  # zero vectors are then not "nothing" yet
            held = torch.full(reset.shape, len(self.mems[0])) if self.n_held is None else self.n_held
            self.n_held = held.masked_fill(reset, 0)

    def mask(self, inputs: Tensor) -> Tensor | None:
        """The mask that hides what is not a row's own, `[P, M + C + Q]`; None if everything is."""
        if self.mems is None or self.n_held is None:
            return None
        memory_len = len(self.mems[0])
        own = torch.arange(memory_len) >= memory_len - self.n_held[:, None]
        return torch.cat([own, torch.ones(inputs.shape, dtype=torch.bool)], dim=1).long().to(inputs.device)

    def end(self, mems: list[Tensor] | None, n_new: int) -> None:
        """Take the model's memories, which end `n_new` tokens after the last ones."""
        self.mems = mems
        if mems is not None and self.n_held is not None:
            self.n_held = (self.n_held + n_new).clamp(max=len(mems[0]))
            if bool((self.n_held == len(mems[0])).all()):
                self.n_held = None


class SegmentLoss(nn.Module):
    """What is made small: the mean loss of a segment's targets, and the penalties.

    Args:
        model: the model.
        recipe: with the penalties.
    """

    def __init__(self, model: TransfoXLLMHeadModel, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self._meter = PenaltyMeter(model, recipe.regularisation)
        self._n_parts = recipe.train.accumulation

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        n_targets: Tensor,
        mems: list[Tensor] | None,
        attention_mask: Tensor | None,
        context_len: int,
        ext_len: int,
    ) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """The part's share of the objective, its sum of losses without history, and the memories.

        Args:
            inputs, targets: `[P, C + Q]`.
            n_targets: what the sum of losses is divided by, a scalar.
            mems, attention_mask, ext_len: see `TransfoXLLMHeadModel.forward`.
            context_len: C.
        """
        output = self.model(
            inputs, mems=mems, shift_labels=targets, attention_mask=attention_mask, ext_len=ext_len, skip_logits=True
        )
        total = output.losses.sum()
        objective = total / n_targets
        penalty = self._meter.penalty(inputs.shape[1] - context_len)
        if penalty is not None:
            objective = objective + penalty / self._n_parts
        return objective, total.detach(), output.mems


class Training:
    """The state of a training: weights, optimisers, memories, place in the text, learning rate, random numbers.

    Args:
        recipe: how to train.
        model: the model, with initial weights that are the same on every process; changed in place.
        stream: the text, for this process.
        accelerator: the processes and the device.

    Attributes:
        number: steps made.
        model: the model, with this process's share of the weights.
        rate: the learning rate.
        average: the mean weights; None if the recipe asks for none.
    """

    def __init__(self, recipe: Recipe, model: TransfoXLLMHeadModel, stream: Stream, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.stream = stream
        self.accelerator = accelerator
        self.number = 0
        self._earlier_minutes, self._started = 0.0, time.monotonic()
        model.transformer.gradient_checkpointing = recipe.train.gradient_checkpointing
        regularise(model, recipe.regularisation)
        self.model = model.to(accelerator.device)
        self.is_sharded = recipe.train.parallel == "fsdp" and accelerator.num_processes > 1
        module = SegmentLoss(self.model, recipe)
        if self.is_sharded:
            shard(module, mesh_to_shard_on(accelerator.device.type, accelerator.num_processes))
        else:
            module = accelerator.prepare_model(module)
        self._module: Any = module
        if accelerator.num_processes > 1 and not self.is_sharded:
            self._settle_order()
        self._loss: Any = torch.compile(module) if recipe.train.compile else module
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.rate = LearningRate(recipe.schedule, recipe.optimizer.lr, recipe.averaging)
        self.average = None if recipe.averaging.name == "none" else WeightAverage(self.model, recipe.averaging)
        self._parts = [PartMemory() for _ in range(recipe.train.accumulation)]
        torch.manual_seed(recipe.train.seed + accelerator.process_index)  # each process drops out for itself

    def _settle_order(self) -> None:
        """Let DDP choose the order in which it adds gradients up, which it does after its first pass.

        With more than two processes the order decides about the last digit of the sums: it must not be another one in
        the first step of a training that is resumed.
        """
        token = torch.zeros(1, 1, dtype=torch.long, device=self.accelerator.device)
        n_targets = torch.ones((), device=token.device)
        self._module(token, token, n_targets, None, None, 0, 0)[0].backward()
        self.model.zero_grad()

    @property
    def minutes(self) -> float:
        """Time of the training so far, that of earlier sessions included."""
        return self._earlier_minutes + (time.monotonic() - self._started) / 60

    @property
    def uses_average(self) -> bool:
        """Whether the mean weights are what is evaluated and saved as the model."""
        return self.average is not None and self.average.n_averaged > 0

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        done = self.number / self.recipe.train.max_steps
        if self.recipe.train.max_minutes is not None:
            minutes = torch.tensor(self.minutes, device=self.accelerator.device)
            if self.accelerator.num_processes > 1:  # no two clocks are alike, but all must end together
                minutes = self.accelerator.reduce(minutes, "mean")
            done = max(done, float(minutes) / self.recipe.train.max_minutes)
        return min(1.0, done)

    def step(self) -> Step:
        """Make a step."""
        segment = self.stream.next_segment()
        segment_len = segment.inputs.shape[1] - segment.context_len
        lr = self.rate.at(self.number, self.progress)
        if self.recipe.data.varied_lengths:  # longer segments give steadier gradients
            lr *= segment_len / self.model.config.tgt_len
        set_lr(self.optimizers, lr)
        self.model.train()
        loss = self._backward(segment)
        norm = self._update()
        self.number += 1
        if self.average is not None and self.number > self.recipe.averaging.start_step:
            self.average.update()
        n_tokens = segment_len * self.recipe.train.batch_size
        return Step(self.number, self.progress, loss, n_tokens, lr, norm)

    def _backward(self, segment: Segment) -> Tensor:
        """Add the segment's gradients up; gives this process's part of the loss."""
        n_parts, device = len(self._parts), self.accelerator.device
        count = (segment.targets != IGNORED).sum().to(device)
        world = self.accelerator.num_processes
        # The mean is over the targets of all processes, which may have different numbers of them.
        n_targets: Tensor = (self.accelerator.reduce(count, "sum") if world > 1 else count).clamp(min=1) / world
        total: Tensor = torch.zeros((), device=device)
        resets = [None] * n_parts if segment.reset is None else segment.reset.chunk(n_parts)
        texts = (text.to(device).chunk(n_parts) for text in (segment.inputs, segment.targets))
        rows = zip(self._parts, *texts, resets, strict=True)
        next_context_len = min(self.model.config.ext_len, segment.inputs.shape[1])
        for i, (part, inputs, targets, reset) in enumerate(rows):
            part.begin(reset, has_empty_start=self.model.config.initial_memory == "empty")
            with self._synchronised(is_last=i == n_parts - 1), self.accelerator.autocast():
                objective, loss, mems = self._loss(
                    inputs, targets, n_targets, part.mems, part.mask(inputs), segment.context_len, next_context_len
                )
                self.accelerator.backward(objective)
            part.end(mems, inputs.shape[1] - next_context_len)
            total += loss
        return total / n_targets

    @contextmanager
    def _synchronised(self, *, is_last: bool) -> Iterator[None]:
        """Gradients of all processes meet in the last part only."""
        if self.is_sharded:
            self._module.set_requires_gradient_sync(is_last)
            yield
        else:
            with nullcontext() if is_last else self.accelerator.no_sync(self._module):
                yield

    def _update(self) -> Tensor | None:
        """Change the weights; gives the norm of the gradients."""
        scaler, norm = self.accelerator.scaler, None
        if scaler is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
        if self.recipe.optimizer.clip_norm:
            norm = clip_gradients(self.model.parameters(), self.recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        return norm

    @contextmanager
    def weights_for_use(self) -> Iterator[TransfoXLLMHeadModel]:
        """The model as it is evaluated and saved within the block: whole, and with the mean weights if there are any.

        It is in evaluation mode; all processes must enter.
        """
        with self.average.in_use() if self.average is not None else nullcontext(), gathered(self._module):
            was_training = self.model.training
            self.model.eval()
            yield self.model
            self.model.train(was_training)

    # What is put away.

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that changes and is a tensor, by group and name, on the CPU; all processes must call.

        It is whole on the first process; the others lack what would be a copy of the first one's.
        """
        groups = {"weights": self._whole(self.model.named_parameters())}
        groups["optimizer"] = self._whole(
            (f"{i}/{name}/{key}", value)
            for i, name, state in self._optimizer_states()
            for key, value in state.items()
            if isinstance(value, Tensor)
        )
        if self.average is not None:
            groups["average"] = self._whole(self.average.means.items())
        groups["memories"] = self._gathered_memories()
        groups["random"] = self._gathered_random()
        return groups

    def state(self) -> dict[str, Any]:
        """Everything else that changes, for JSON."""
        scaler = self.accelerator.scaler
        return {
            "step": self.number,
            "minutes": self.minutes,
            "processes": self.accelerator.num_processes,
            "stream": self.stream.state(),
            "rate": self.rate.state(),
            "n_averaged": 0 if self.average is None else self.average.n_averaged,
            "scaler": None if scaler is None else scaler.state_dict(),
            "optimizer": {
                f"{i}/{name}/{key}": value
                for i, name, state in self._optimizer_states()
                for key, value in state.items()
                if not isinstance(value, Tensor)
            },
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `state` gave, with as many processes as there are now.

        With another number of processes, rows and their memories are dealt anew, and dropout differs.

        Raises:
            ValueError: the place is one in another text.
        """
        self.stream.restore(state["stream"])
        self.number = state["step"]
        self._earlier_minutes, self._started = state["minutes"], time.monotonic()
        self.rate.restore(state["rate"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(_like(tensors["weights"][name], parameter))
            if self.average is not None:
                self.average.n_averaged = state["n_averaged"]
                for name, mean in self.average.means.items():
                    mean.copy_(_like(tensors["average"][name], mean))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._restore_optimizers(tensors["optimizer"], state["optimizer"])
        self._deal_memories(tensors["memories"])
        if state["processes"] == self.accelerator.num_processes:
            self._restore_random(tensors["random"])
        else:
            torch.manual_seed(self.recipe.train.seed + self.number + self.accelerator.process_index)

    def _optimizer_states(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """The number of an optimiser, the name of a parameter, and what is kept of it."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in optimizer.state:
                        yield i, names[id(parameter)], optimizer.state[parameter]

    def _restore_optimizers(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        parameters = dict(self.model.named_parameters())
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for key, value in [*tensors.items(), *numbers.items()]:
            number, name, kind = key.split("/")
            parameter, optimizer = parameters[name], self.optimizers[int(number)]
            optimizer.state[parameter][kind] = _placed(
                value, parameter, is_fused=optimizer.defaults.get("fused", False)
            )

    def _whole(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the CPU, put together from all processes; empty on all but the first."""
        copies = {}
        for name, tensor in named:
            whole = tensor.detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            if self.accelerator.is_main_process:
                copies[name] = whole.cpu().clone()
        return copies

    def _gathered_memories(self) -> dict[str, Tensor]:
        """The memories of all rows, `[M, B, D]`, and how much of it is theirs."""
        if self._parts[0].mems is None:
            return {}
        length = len(self._parts[0].mems[0])
        held = [torch.full((p.mems[0].shape[1],), length) if p.n_held is None else p.n_held for p in self._parts]  # type: ignore[index]
        memories = {"n_held": self._gather(torch.cat(held).to(self.accelerator.device))}
        for i in range(len(self._parts[0].mems)):
            own = torch.cat([part.mems[i] for part in self._parts], dim=1)  # type: ignore[index]
            memories[f"layer.{i:03d}"] = self._gather(own.transpose(0, 1).contiguous()).transpose(0, 1).contiguous()
        return memories

    def _deal_memories(self, memories: Mapping[str, Tensor]) -> None:
        """Give each row of this process its memory."""
        self._parts = [PartMemory() for _ in self._parts]
        if not memories:
            return
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        layers = [memories[name].chunk(world, dim=1)[rank] for name in sorted(memories) if name != "n_held"]
        held = memories["n_held"].chunk(world)[rank].chunk(len(self._parts))
        for i, part in enumerate(self._parts):
            part.mems = [layer.chunk(len(self._parts), dim=1)[i].to(self.accelerator.device) for layer in layers]
            part.n_held = None if bool((held[i] == len(layers[0])).all()) else held[i].clone()

    def _gathered_random(self) -> dict[str, Tensor]:
        """The state of torch's random numbers on every process, `[processes, bytes]`."""
        device = self.accelerator.device
        states = {"cpu": self._gather(torch.get_rng_state()[None].to(device))}
        if device.type == "cuda":
            states["cuda"] = self._gather(torch.cuda.get_rng_state(device)[None].to(device))
        return states

    def _restore_random(self, states: Mapping[str, Tensor]) -> None:
        rank = self.accelerator.process_index
        # A copy: torch 2.13 takes a row of a tensor for the first one, and crashes.
        torch.set_rng_state(states["cpu"][rank].clone())
        if "cuda" in states and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"][rank].clone(), self.accelerator.device)

    def _gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes one after the other (dim 0), on the CPU."""
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered.cpu()


def shard(module: SegmentLoss, mesh: DeviceMesh) -> None:
    """Give each process of the mesh a part of every layer, and of what is outside the layers (FSDP2)."""
    for layer in module.model.transformer.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """All processes have the whole model within the block."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(part is not module, recurse=False)  # the outermost is needed again at once
        part.reshard()


def _like(whole: Tensor, example: Tensor) -> Tensor:
    """A whole tensor on the device of `example`, or this process's part of it."""
    if isinstance(example, DTensor):
        return distribute_tensor(whole.to(example.device), example.device_mesh, example.placements)
    return whole.to(example.device)


def _placed(value: Any, parameter: Tensor, *, is_fused: bool | None) -> Any:
    """Something that an optimiser keeps of a parameter, where the optimiser wants it."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return _like(value, parameter)
    # What is left are counters: fused optimisers have them beside the parameter, the others on the CPU.
    return value.to(parameter.device) if isinstance(value, Tensor) and is_fused else value


__all__ = ["PartMemory", "SegmentLoss", "Step", "Training"]
