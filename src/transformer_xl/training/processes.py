"""Several processes that train together: how they find each other, agree, and come to an end.

An error that only one process has would leave the others waiting for it, and one that all have would be told by each.
So what may fail is done in `agreed` blocks: there an error on one process is the end of all, and is told once.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather
from torch.distributed import (
    DistError,
    destroy_process_group,
    get_default_backend_for_device,
    init_process_group,
    is_initialized,
    new_group,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(minutes=30)  # one process prepares a corpus or writes a checkpoint, and the others wait for it
PLAIN = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU"}  # accelerate's other kinds wrap models in their own ways
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")  # says gloo


class Elsewhere(Exception):  # noqa: N818 - another process has the error
    """The run ends because of an error that another process tells."""


def join_processes(precision: str) -> Accelerator:
    """The processes that a launcher started (torchrun, accelerate launch), or this one alone; and their devices.

    Without GPUs they work on the CPU, and speak by gloo.

    Args:
        precision: of matrix products, as accelerate calls it.

    Raises:
        ValueError: the launcher wants accelerate to shard the model.
    """
    n_started = int(os.environ.get("WORLD_SIZE", "1"))
    device = _device_that_speaks()
    if n_started > 1 and not is_initialized():
        store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        init_process_group(
            get_default_backend_for_device(device),
            store=_part_of_this_start(store, rank, n_started),
            rank=rank,
            world_size=n_started,
            timeout=PATIENCE,
        )
    cpu = n_started > 1 and device == "cpu"  # accelerate must be told, else each process trains alone
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    except ValueError:
        AcceleratorState._reset_state()  # an earlier training of this process had another precision
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    kind = str(accelerator.distributed_type.value)
    if kind not in PLAIN or accelerator.num_processes != n_started:
        raise ValueError(
            f"The launcher started {n_started} processes of accelerate's kind {kind} (of which this one sees "
            f"{accelerator.num_processes}), but the kind must be MULTI_GPU or MULTI_CPU: start them with torchrun, and "
            "shard the model with train.parallel='fsdp'."
        )
    return accelerator


def _device_that_speaks() -> str:
    """The kind of device on which processes can add tensors up."""
    device = torch.accelerator.current_accelerator()
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    is_usable = torch.accelerator.is_available() and device is not None and device.type != "mps" and not wants_cpu
    return device.type if is_usable and device is not None else "cpu"


def _part_of_this_start(store: Store, rank: int, n_processes: int) -> Store:
    """A part of the store that no process of an earlier start has written to.

    When torchrun starts processes again it keeps the store, with the addresses of those that are lost
    (pytorch/pytorch#135712). So the first process gives the part a new name, and another one believes a name when the
    first answers it.
    """
    name, mark = uuid4().hex, uuid4().hex
    if rank == 0:
        store.set("transformer-xl", name)
        for other in range(1, n_processes):
            store.set(f"{name}/answer/{store.get(f'{name}/mark/{other}').decode()}", "")
        return PrefixStore(name, store)
    deadline = monotonic() + PATIENCE.total_seconds()
    while monotonic() < deadline:
        name = store.get("transformer-xl").decode()
        store.set(f"{name}/mark/{rank}", mark)
        sleep(0.05)
        if store.check([f"{name}/answer/{mark}"]):
            return PrefixStore(name, store)
    raise TimeoutError(f"Process 0 did not answer process {rank} within {PATIENCE}: start all processes again.")


@cache
def mesh_to_shard_on(device_type: str, n_processes: int) -> DeviceMesh:
    """All processes, to be given to FSDP.

    torch's caches keep a mesh, and its group, to the end of the process. Where that is gloo it is not the group that
    `leave_processes` must be able to end.
    """
    if device_type == "cpu":
        return DeviceMesh.from_group(new_group(timeout=PATIENCE), device_type)
    return init_device_mesh(device_type, (n_processes,))


@contextmanager
def agreed() -> Iterator[None]:
    """All processes leave the block well, or none does. They must not wait for each other in it.

    Raises:
        OSError, TypeError, ValueError: this process had it in the block, and none before it did.
        Elsewhere: another one had.
    """
    state, error = PartialState(), None
    try:
        yield
    except (OSError, TypeError, ValueError) as caught:
        if state.num_processes == 1:
            raise
        error = caught
    if state.num_processes == 1:
        return
    failed = [rank for rank, has_error in enumerate(_gathered(int(error is not None))) if has_error]
    if error is not None and failed[0] == state.process_index:
        raise error
    if failed:
        raise Elsewhere from error


def check_same(**facts: Any) -> None:
    """Refuse to go on where processes disagree about something that must be the same on all.

    Args:
        facts: what can be written as JSON, by what a user knows it as.

    Raises:
        ValueError: the processes have different values.
    """
    for name, value in facts.items():
        digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
        seen = _gathered(int.from_bytes(digest[:7], "big"))
        with agreed():
            if len(set(seen)) > 1:
                other = next(rank for rank, one in enumerate(seen) if one != seen[0])
                raise ValueError(
                    f"{name} is not the same for process {other} as for process 0: all machines must have the same "
                    "recipe and text, and --output-dir must be on a disk that they share."
                )


def _gathered(value: int) -> list[int]:
    """A number of each process."""
    values: list[int] = gather(torch.tensor([value], device=PartialState().device)).tolist()
    return values


def leave_processes() -> None:
    """Close what `join_processes` opened, where all processes come to their end.

    A thread of gloo that still lets go of a tensor while the interpreter ends aborts the process
    (pytorch/pytorch#190489). These threads end with their group, and that when nothing holds it.
    """
    if is_initialized():
        destroy_process_group()


def loss_of_process(error: BaseException) -> str | None:
    """How an error shows that another process has ended, or cannot be reached; None if it shows nothing of the kind."""
    if not isinstance(error, RuntimeError):
        return None
    first_line = str(error).partition("\n")[0]
    sign = next((sign for sign in LOST if sign in first_line), None)
    return sign.lower() if sign else first_line if isinstance(error, DistError) else None


__all__ = [
    "Elsewhere",
    "agreed",
    "check_same",
    "join_processes",
    "leave_processes",
    "loss_of_process",
    "mesh_to_shard_on",
]
