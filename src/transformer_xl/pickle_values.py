"""What comes out of a pickle that is read as data: inert stand-ins for what it asked for, and the bounds of a result.

Used by `pickle_reader.py`; `docs/security.md` has the threat model.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

MAX_DEPTH = 256
MAX_EXTENT = 1 << 24  # objects met on a walk through the result, long texts counting once per 64 characters
_TEXTS = {str, bytes, bytearray}


class PickleError(ValueError):
    """A file is damaged or asks for what is never done: one line with the file, the byte, what was refused and why."""


@dataclass(frozen=True, slots=True)
class PickledName:
    """A class or function that a pickle mentions by name; it was not looked up."""

    class_name: str
    offset: int  # byte of the instruction in the pickle


@dataclass(eq=False, repr=False, slots=True)
class PickledObject:
    """What a pickle says about one instance, or about the result of one call; nothing was constructed or called.

    `class_name` is `"module.name"` as the file says. `state` is what would be handed to `__setstate__`, or None. Items
    that would be appended or stored under keys are in `list_items` and `dict_items`.
    """

    class_name: str
    offset: int
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    list_items: list[Any] = field(default_factory=list)
    dict_items: list[tuple[Any, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        """Short, because the parts of an object from a hostile file can fill the memory when they are written out."""
        return f"<{type(self).__name__} {self.class_name!r}>"


_CONTAINERS = {dict, list, tuple, set, PickledObject}


def check_extent(root: Any, refused: Callable[[str], PickleError]) -> None:
    """Refuses a result that is too deep, contains itself, or is too large to walk.

    Takes time linear in what was built, however often a part is shared.

    Args:
        root: the result.
        refused: makes the error of a sentence.
    """
    extents: dict[int, int] = {}
    open_ids: set[int] = set()
    path: list[tuple[int, Iterator[Any]]] = [(id(root), iter((root,)))]
    totals = [0]
    while True:
        own_id, remaining = path[-1]
        child = next(remaining, path)
        child_id = id(child)
        if child is path:  # nothing remains
            path.pop()
            extent = totals.pop() + 1
            if extent > MAX_EXTENT:
                raise refused(f"shared objects unfold to more than {MAX_EXTENT}")
            if not path:
                return
            open_ids.discard(own_id)
            extents[own_id] = extent
            totals[-1] += extent
        elif child_id in open_ids:
            raise refused("an object contains itself")
        elif child_id in extents:
            totals[-1] += extents[child_id]
        else:
            parts = _parts(child)
            extent_if_flat = _flat_extent(parts or ([child],))
            if extent_if_flat is not None:
                extents[child_id] = extent = extent_if_flat + 1
                totals[-1] += extent
            elif len(path) > MAX_DEPTH:
                raise refused(f"objects are nested more than {MAX_DEPTH} deep")
            else:
                open_ids.add(child_id)
                path.append((child_id, chain.from_iterable(parts)))
                totals.append(0)


def _parts(value: Any) -> tuple[Collection[Any], ...]:
    """The collections of objects that an object holds."""
    if type(value) is dict:
        return value.keys(), value.values()
    if type(value) is PickledObject:
        return ((value.arguments, value.keywords, value.state, value.list_items, value.dict_items),)
    return (value,) if type(value) in (list, tuple, set) else ()


def _flat_extent(parts: Collection[Collection[Any]]) -> int | None:
    """The extent of collections of objects, or None if one of these is a container itself."""
    total = 0
    for values in parts:
        types = set(map(type, values))
        if types & _CONTAINERS:
            return None
        total += len(values)
        if types == {str}:
            total += sum(map(len, values)) // 64
        elif types & _TEXTS:
            total += sum(len(value) // 64 for value in values if type(value) in _TEXTS)
    return total


__all__ = ["PickleError", "PickledName", "PickledObject", "check_extent"]
