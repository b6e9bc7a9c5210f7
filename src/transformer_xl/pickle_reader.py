"""Reads pickles as data: nothing that a file names is imported, looked up or called.

A pickle is a program for a small stack machine. This file runs that program with every instruction that would reach
Python code (`GLOBAL`, `REDUCE`, `NEWOBJ`, `BUILD`, ...) replaced by one that writes down what the pickle asked for: a
class becomes a `PickledName`, an instance or the result of a call a `PickledObject`. Containers, texts and numbers come
out as themselves. `docs/security.md` has the threat model.

What is bounded, whatever the bytes say:
    memory   an account is debited for every instruction; `MAX_OBJECT_BYTES` ends the reading
    time     proportional to that account; no key may be a tuple, so that hashing cannot be made slow
    depth    `MAX_DEPTH`; no object contains itself
    extent   `MAX_EXTENT`: a walk through the result that meets shared parts again and again still ends soon
"""

import codecs
import gc
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

codecs.lookup("raw-unicode-escape")  # loaded now, so that nothing at all is imported while a file is read

MAX_OBJECT_BYTES = 1 << 30  # estimated size of all that one pickle builds; 800,000 words need a third of it
MAX_DEPTH = 256
MAX_EXTENT = 1 << 24  # objects met on a walk through the result, long texts counting once per 64 characters
MAX_KEY = 1 << 60  # larger integers can be made to collide in a dictionary
MAX_NAME = 1000  # characters of a class name with its module
MAX_DIGITS = 4300  # of an integer written out; reading one takes the square of its length


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


def read_pickle(data: bytes, *, source: str = "pickle") -> Any:
    """Gives the object that a pickle of protocol 0 to 5 describes.

    Args:
        data: the whole pickle, nothing after it.
        source: what error messages call it, usually the file name.

    Returns:
        Plain Python values; `OrderedDict`, `Counter` and `defaultdict` as plain dictionaries, frozen sets as sets,
        texts of Python 2 as `str` where they are UTF-8; everything else as `PickledObject` or `PickledName`. The
        result contains no cycle and can be walked safely.

    Raises:
        PickleError: the bytes are no pickle, exceed a bound at the top of this file, or ask for what is refused.
    """
    machine = PickleMachine(data, source)
    result = machine.run(0)
    if machine.position != len(data):
        raise machine.damaged(f"{len(data) - machine.position} bytes follow the end of the pickle")
    return result


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Gives the object in a file of `torch.save`, with tensors; see `torch_file.py`, which imports torch."""
    from .torch_file import read_torch_file as read  # noqa: PLC0415 - reading a bare pickle needs no torch

    return read(path)


# Calls whose result a plain value can replace. Modules that Python 3 renamed are known by both names.
_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MAPPINGS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict", "builtins.dict"}
_BYTES: dict[str, type[bytes | bytearray]] = {
    "_codecs.encode": bytes,
    "builtins.bytes": bytes,
    "builtins.bytearray": bytearray,
}
_SETS = {"builtins.set", "builtins.frozenset"}
_ENTRY_COST = 100  # bytes of a dictionary or set entry, roughly
_TEXT, _NUMBER = {str}, {int, float, bool, type(None)}
_KEY_TYPES = _TEXT | _NUMBER | {bytes, PickledName, PickledObject}


def _known_name(class_name: str) -> str:
    module, _, name = class_name.partition(".")
    return f"{_RENAMED_MODULES.get(module, module)}.{name}"


class PickleMachine:
    """One run through one pickle; the stack is cut at marks, the cut-off parts lie in `below`."""

    def __init__(self, data: bytes, source: str) -> None:
        self.data = data
        self.source = source
        self.position = 0
        self.opcode_at = 0
        self.spent = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent_load: Callable[[Any], Any] | None = None
        # Calls that are replaced by a value of our own making.
        self.calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {}

    def error(self, text: str) -> PickleError:
        return PickleError(f"{self.source}, byte {self.opcode_at}: {text}")

    def damaged(self, text: str) -> PickleError:
        return self.error(f"{text}; the file is damaged")

    def refused(self, text: str) -> PickleError:
        return self.error(f"{text}; refused")

    def run(self, position: int) -> Any:
        """Gives the object that the pickle at `position` describes; `self.position` is then the byte after it."""
        self.position, self.stack, self.below, self.memo = position, [], [], {}
        collects = gc.isenabled()
        gc.disable()  # it would search millions of new objects for garbage again and again, and find none
        try:
            self.run_instructions()
            result = self.stack.pop()
        except IndexError:
            is_cut = self.opcode_at >= len(self.data) or self.position > len(self.data)
            problem = "ends too early" if is_cut else "takes more from the stack than is there"
            raise self.damaged(f"the pickle {problem}") from None
        finally:
            if collects:
                gc.enable()
        if self.stack or self.below:
            raise self.damaged("objects are left on the stack at the end")
        _check_extent(result, self)
        return result

    def run_instructions(self) -> None:
        data, handlers, costs = self.data, _HANDLERS, _COSTS
        spent = 0
        while True:
            self.opcode_at = position = self.position
            opcode = data[position]
            self.position = position + 1
            if opcode == _STOP:
                return
            spent += costs[opcode]
            if spent > MAX_OBJECT_BYTES:
                self.spend(spent)
            handlers[opcode](self)

    def spend(self, cost: int) -> None:
        self.spent += cost
        if self.spent > MAX_OBJECT_BYTES:
            raise self.refused(f"builds more than {MAX_OBJECT_BYTES} bytes of objects")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if not 0 <= count <= len(self.data) - self.position:
            raise self.damaged(f"announces {count} bytes where {len(self.data) - self.position} are left")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def take_number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take_line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise self.damaged("a line has no end")
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    def decode(self, raw: bytes, encoding: str = "utf-8") -> str:
        try:
            return raw.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")
        except UnicodeDecodeError:
            raise self.damaged(f"text that is not valid {encoding}") from None

    def python2_text(self, raw: bytes) -> str | bytes:
        """Python 2 wrote texts and bytes alike: text where it is UTF-8, else the bytes."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw

    def take_integer(self) -> int:
        line = self.take_line()
        try:
            if len(line) > MAX_DIGITS:
                raise ValueError
            return int(line.removesuffix(b"L"))
        except ValueError:
            raise self.damaged(f"{line[:40]!r} is no integer of at most {MAX_DIGITS} digits") from None

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            raise self.damaged("takes items down to a mark that was never set")
        items = self.stack
        self.stack = self.below.pop()
        return items

    def check_keys(self, keys: Iterable[Any]) -> None:
        keys = list(keys)
        types = set(map(type, keys))
        if types <= _TEXT:
            return
        for refused in types - _KEY_TYPES:
            raise self.error(
                f"a {refused.__name__} as dictionary key or set element; only texts, bytes and numbers are read"
            )
        if any(type(key) is int and not -MAX_KEY < key < MAX_KEY for key in keys):
            raise self.refused("an integer beyond 2**60 as dictionary key or set element")

    def add_entries(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if len(keys) != len(values):
            raise self.damaged("a dictionary entry without a value")
        self.spend(_ENTRY_COST * len(keys))
        if type(target) is dict:
            self.check_keys(keys)
            target.update(zip(keys, values, strict=True))
        elif type(target) is PickledObject:
            target.dict_items.extend(zip(keys, values, strict=True))
        else:
            raise self.damaged(f"stores entries in a {type(target).__name__}")

    def add_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is PickledObject:
            target.list_items.extend(items)
        else:
            raise self.damaged(f"appends to a {type(target).__name__}")

    def add_elements(self, target: Any, items: list[Any]) -> None:
        self.spend(_ENTRY_COST * len(items))
        if type(target) is set:
            self.check_keys(items)
            target.update(items)
        else:
            self.add_items(target, items)

    def remember(self, index: int) -> None:
        if index >= 1 << 32:
            raise self.refused(f"memo place {index} is beyond 2**32")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged(f"asks for memo place {index}, which was never filled")
        self.stack.append(self.memo[index])

    def make(self, called: Any, arguments: Any, keywords: Any = None) -> None:
        """Pushes what stands for `called(*arguments, **keywords)`."""
        if type(called) is not PickledName:
            is_result = type(called) is PickledObject
            what = f"the result of {called.class_name!r}" if is_result else f"a {type(called).__name__}"
            raise self.error(f"calls {what}; only names are written down, and nothing is ever called")
        keywords = {} if keywords is None else keywords
        if type(arguments) is not tuple or type(keywords) is not dict:
            raise self.damaged(f"calls {called.class_name!r} with a {type(arguments).__name__} of arguments")
        known = _known_name(called.class_name)
        if known in _MAPPINGS:
            self.stack.append(self.make_dict(arguments))
        elif known in _SETS:
            self.stack.append(self.make_set(arguments))
        elif known in _BYTES:
            self.stack.append(self.make_bytes(arguments, _BYTES[known]))
        elif known == "copyreg._reconstructor" and len(arguments) == 3 and type(arguments[0]) is PickledName:
            state_of_base = () if arguments[2] is None else arguments[2:]
            self.stack.append(PickledObject(arguments[0].class_name, self.opcode_at, state_of_base))
        elif known in self.calls:
            self.stack.append(self.calls[known](arguments))
        else:
            self.stack.append(PickledObject(called.class_name, self.opcode_at, arguments, keywords))

    def make_bytes(self, arguments: tuple[Any, ...], kind: type[bytes | bytearray]) -> bytes | bytearray:
        """Gives bytes, which protocols that have none write as a call with text in latin1, or without arguments."""
        raw = arguments[0] if arguments else b""
        encoding = arguments[1] if len(arguments) == 2 else None
        if type(raw) is str and type(encoding) is str and encoding in ("latin1", "latin-1"):
            try:
                raw = raw.encode("latin1")
            except UnicodeEncodeError:
                raise self.damaged("bytes that are written as text beyond latin1") from None
        if type(raw) is not bytes:
            raise self.refused(f"bytes that are made of a {type(raw).__name__}")
        self.spend(len(raw))
        return kind(raw)

    def make_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for argument in arguments:
            if type(argument) is dict:
                self.spend(_ENTRY_COST * len(argument))
                made.update(argument)
            elif type(argument) is list:
                pairs = [tuple(pair) for pair in argument if type(pair) in (list, tuple) and len(pair) == 2]
                if len(pairs) != len(argument):
                    raise self.damaged("a dictionary is made of something else than pairs")
                self.add_entries(made, [key for key, _ in pairs], [value for _, value in pairs])
            elif type(argument) not in (PickledName, type(None)):  # those are a defaultdict's factory
                raise self.damaged(f"a dictionary is made of a {type(argument).__name__}")
        return made

    def make_set(self, arguments: tuple[Any, ...]) -> set[Any]:
        made: set[Any] = set()
        for argument in arguments:
            if type(argument) not in (list, tuple, set):
                raise self.damaged(f"a set is made of a {type(argument).__name__}")
            self.add_elements(made, list(argument))
        return made

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.damaged("names a class by something that is not text")
        if len(module) + len(name) > MAX_NAME:
            raise self.refused(f"a name of {len(module) + len(name)} characters")
        self.stack.append(PickledName(f"{module}.{name}", self.opcode_at))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is PickledObject:
            if target.state is not None:
                raise self.refused(f"gives {target.class_name!r} a state twice")
            target.state = state
        # Attributes of an OrderedDict (`_metadata` of a state dict) are no entries, and dropped.
        elif type(target) is not dict:
            raise self.refused(f"gives a {type(target).__name__} a state")

    def load_persistent(self, identifier: Any) -> None:
        if self.persistent_load is None:
            raise self.refused("a persistent id, which stands for something outside the pickle")
        self.stack.append(self.persistent_load(identifier))

    def refuse(self, what: str) -> None:
        raise self.refused(what)


def _children(value: Any) -> Iterable[Any]:
    if type(value) is dict:
        return chain(value, value.values())
    if type(value) is PickledObject:
        return (value.arguments, value.keywords, value.state, value.list_items, value.dict_items)
    return value if type(value) in (list, tuple, set) else ()


def _leaf_extent(values: list[Any]) -> int | None:
    """The extent of a flat container's items, or None if one of them is a container itself."""
    types = set(map(type, values))
    if types <= _NUMBER:
        return len(values)
    if types <= _TEXT:
        return len(values) + sum(map(len, values)) // 64
    if types & {dict, list, tuple, set, PickledObject}:
        return None
    return len(values) + sum(len(value) // 64 for value in values if type(value) in (str, bytes, bytearray))


def _check_extent(root: Any, machine: PickleMachine) -> None:
    """Refuses a result that is too deep, contains itself, or is too large to walk, in time linear in what was built."""
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
                raise machine.refused(f"shared objects unfold to more than {MAX_EXTENT}")
            if not path:
                return
            open_ids.discard(own_id)
            extents[own_id] = extent
            totals[-1] += extent
        elif child_id in open_ids:
            raise machine.refused("an object contains itself")
        elif child_id in extents:
            totals[-1] += extents[child_id]
        else:
            items = list(_children(child))
            extent_of_items = _leaf_extent(items)
            if extent_of_items is not None:
                own = _leaf_extent([child]) if not items else 1
                extents[child_id] = extent = extent_of_items + (own or 1)
                totals[-1] += extent
            elif len(path) > MAX_DEPTH:
                raise machine.refused(f"objects are nested more than {MAX_DEPTH} deep")
            else:
                open_ids.add(child_id)
                path.append((child_id, iter(items)))
                totals.append(0)


_ESCAPES = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}  # what repr of Python 2 writes


def _quoted(machine: PickleMachine) -> bytes:
    line = machine.take_line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise machine.damaged("a text without quotes")

    def unescape(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 3:
            return bytes([int(code[1:], 16)])
        raise machine.damaged("a text with an unknown escape")

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.|$)", unescape, line[1:-1], flags=re.DOTALL)


def _float_line(machine: PickleMachine) -> float:
    line = machine.take_line()
    try:
        return float(line)
    except ValueError:
        raise machine.damaged(f"{line[:40]!r} is no number") from None


def _int_line(machine: PickleMachine) -> int | bool:
    start = machine.position
    number = machine.take_integer()
    written = machine.data[start : machine.position - 1]
    return number == 1 if written in (b"00", b"01") else number


def _mark(machine: PickleMachine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: PickleMachine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_to_mark()


def _pop_mark(machine: PickleMachine) -> None:
    machine.pop_to_mark()


def _append(machine: PickleMachine) -> None:
    item = machine.stack.pop()
    machine.add_items(machine.stack[-1], [item])


def _set_item(machine: PickleMachine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.add_entries(machine.stack[-1], [key], [value])


def _appends(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.add_items(machine.stack[-1], items)


def _set_items(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.add_entries(machine.stack[-1], items[::2], items[1::2])


def _add_elements(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.add_elements(machine.stack[-1], items)


def _dict(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.add_entries(machine.stack[-1], items[::2], items[1::2])


def _frozenset(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append(set())
    machine.add_elements(machine.stack[-1], items)


def _tuple_of(count: int) -> Callable[[PickleMachine], None]:
    def handler(machine: PickleMachine) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) < count:
            raise IndexError
        machine.stack[-count:] = [items]

    return handler


def _proto(machine: PickleMachine) -> None:
    version = machine.take_number(1)
    if version > 5:
        raise machine.error(f"pickle protocol {version}; 0 to 5 are known")


def _frame(machine: PickleMachine) -> None:
    length = machine.take_number(8)
    if length > len(machine.data) - machine.position:
        raise machine.damaged(f"a frame of {length} bytes where {len(machine.data) - machine.position} are left")


def _global(machine: PickleMachine) -> None:
    module, name = machine.decode(machine.take_line()), machine.decode(machine.take_line())
    machine.name(module, name)


def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _reduce(machine: PickleMachine) -> None:
    arguments, called = machine.stack.pop(), machine.stack.pop()
    machine.make(called, arguments)


def _new_object_with_keywords(machine: PickleMachine) -> None:
    keywords, arguments, called = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.make(called, arguments, keywords)


def _instance(machine: PickleMachine) -> None:
    _global(machine)
    called = machine.stack.pop()
    machine.make(called, tuple(machine.pop_to_mark()))


def _object(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.make(items[0], tuple(items[1:]))


def _push(read: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    def handler(machine: PickleMachine) -> None:
        value = read(machine)  # may exchange `machine.stack`
        machine.stack.append(value)

    return handler


def _refuse(what: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.refuse(what)


# The commonest instructions of a vocabulary are written out for speed. A number or text that the end of the data cuts
# off needs no check of its own: the position is then beyond the end, where the next instruction is missed.


def _short_text(machine: PickleMachine) -> None:
    start = machine.position = machine.position + 1
    end = machine.position = start + machine.data[start - 1]
    try:
        machine.stack.append(str(machine.data[start:end], "utf-8"))
    except UnicodeDecodeError:
        machine.stack.append(machine.decode(machine.data[start:end]))


def _text(machine: PickleMachine) -> None:
    start = machine.position + 4
    end = machine.position = start + int.from_bytes(machine.data[start - 4 : start], "little")
    machine.stack.append(machine.decode(machine.data[start:end]))


def _byte(machine: PickleMachine) -> None:
    position = machine.position
    machine.position = position + 1
    machine.stack.append(machine.data[position])


def _two_bytes(machine: PickleMachine) -> None:
    position = machine.position
    machine.position = position + 2
    machine.stack.append(int.from_bytes(machine.data[position : position + 2], "little"))


def _four_bytes(machine: PickleMachine) -> None:
    position = machine.position
    machine.position = position + 4
    machine.stack.append(int.from_bytes(machine.data[position : position + 4], "little", signed=True))


def _memoize(machine: PickleMachine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(machine: PickleMachine) -> None:
    position = machine.position
    machine.position = position + 4
    machine.memo[int.from_bytes(machine.data[position : position + 4], "little")] = machine.stack[-1]


def _get(machine: PickleMachine) -> None:
    position = machine.position
    machine.position = position + 4
    try:
        machine.stack.append(machine.memo[int.from_bytes(machine.data[position : position + 4], "little")])
    except KeyError:
        raise machine.damaged("asks for a memo place that was never filled") from None


# The instructions: byte, action, and between them the estimated bytes of memory that one leaves behind, never 0, so
# that the account bounds time as well.
_STOP = ord(".")
_INSTRUCTIONS: list[tuple[bytes, int, Callable[[PickleMachine], None]]] = [
    (b"(", 72, _mark),
    (b"0", 16, _pop),
    (b"1", 16, _pop_mark),
    (b"2", 16, lambda m: m.stack.append(m.stack[-1])),
    (b"\x80", 16, _proto),
    (b"\x95", 16, _frame),
    (b"N", 16, lambda m: m.stack.append(None)),
    (b"\x88", 16, lambda m: m.stack.append(True)),
    (b"\x89", 16, lambda m: m.stack.append(False)),
    (b"I", 40, _push(_int_line)),
    (b"L", 40, _push(PickleMachine.take_integer)),
    (b"J", 40, _four_bytes),
    (b"K", 40, _byte),
    (b"M", 40, _two_bytes),
    (b"\x8a", 40, _push(lambda m: int.from_bytes(m.take(m.take_number(1)), "little", signed=True))),
    (b"\x8b", 40, _push(lambda m: int.from_bytes(m.take(m.take_number(4)), "little", signed=True))),
    (b"F", 40, _push(_float_line)),
    (b"G", 40, _push(lambda m: struct.unpack(">d", m.take(8))[0])),
    (b"S", 72, _push(lambda m: m.python2_text(_quoted(m)))),
    (b"T", 72, _push(lambda m: m.python2_text(m.take(m.take_number(4))))),
    (b"U", 72, _push(lambda m: m.python2_text(m.take(m.take_number(1))))),
    (b"V", 72, _push(lambda m: m.decode(m.take_line(), "raw-unicode-escape"))),
    (b"X", 72, _text),
    (b"\x8c", 72, _short_text),
    (b"\x8d", 72, _push(lambda m: m.decode(m.take(m.take_number(8))))),
    (b"B", 72, _push(lambda m: m.take(m.take_number(4)))),
    (b"C", 72, _push(lambda m: m.take(m.take_number(1)))),
    (b"\x8e", 72, _push(lambda m: m.take(m.take_number(8)))),
    (b"\x96", 72, _push(lambda m: bytearray(m.take(m.take_number(8))))),
    (b"]", 72, lambda m: m.stack.append([])),
    (b"}", 72, lambda m: m.stack.append({})),
    (b"\x8f", 224, lambda m: m.stack.append(set())),
    (b")", 16, lambda m: m.stack.append(())),
    (b"l", 72, _push(PickleMachine.pop_to_mark)),
    (b"t", 64, _push(lambda m: tuple(m.pop_to_mark()))),
    (b"d", 72, _dict),
    (b"\x91", 224, _frozenset),
    (b"\x85", 64, _tuple_of(1)),
    (b"\x86", 64, _tuple_of(2)),
    (b"\x87", 72, _tuple_of(3)),
    (b"a", 16, _append),
    (b"e", 16, _appends),
    (b"s", 16, _set_item),
    (b"u", 16, _set_items),
    (b"\x90", 16, _add_elements),
    (b"p", 100, lambda m: m.remember(m.take_integer())),
    (b"q", 100, lambda m: m.remember(m.take_number(1))),
    (b"r", 100, _put),
    (b"\x94", 100, _memoize),
    (b"g", 16, lambda m: m.recall(m.take_integer())),
    (b"h", 16, lambda m: m.recall(m.take_number(1))),
    (b"j", 16, _get),
    (b"c", 200, _global),
    (b"\x93", 200, _stack_global),
    (b"R", 400, _reduce),
    (b"\x81", 400, _reduce),  # NEWOBJ: same operands as REDUCE
    (b"\x92", 400, _new_object_with_keywords),
    (b"i", 400, _instance),
    (b"o", 400, _object),
    (b"b", 16, PickleMachine.build),
    (b"P", 200, lambda m: m.load_persistent(m.decode(m.take_line()))),
    (b"Q", 200, lambda m: m.load_persistent(m.stack.pop())),
    *(
        (code, 16, _refuse("a copyreg extension code, which stands for a registered class"))
        for code in (b"\x82", b"\x83", b"\x84")
    ),
    *((code, 16, _refuse("an out-of-band buffer, which is not in the file")) for code in (b"\x97", b"\x98")),
]
_HANDLERS: list[Callable[[PickleMachine], None]] = [_refuse("an unknown instruction: no pickle, or damaged")] * 256
_COSTS = [16] * 256
for _code, _cost, _handler in _INSTRUCTIONS:
    _HANDLERS[_code[0]], _COSTS[_code[0]] = _handler, _cost


__all__ = ["PickleError", "PickleMachine", "PickledName", "PickledObject", "read_pickle", "read_torch_file"]
