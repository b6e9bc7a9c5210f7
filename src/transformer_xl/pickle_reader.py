"""Reads pickles as data: nothing that a file names is imported, looked up or called.

A pickle is a program for a small stack machine. This file runs that program on a machine (`pickle_machine.py`) in which
every instruction that would reach Python code (`GLOBAL`, `REDUCE`, `NEWOBJ`, `BUILD`, ...) is replaced by one that
writes down what the pickle asked for: a class becomes a `PickledName`, an instance or the result of a call a
`PickledObject`. Containers, texts and numbers come out as themselves. `docs/security.md` has the threat model.

What is bounded, whatever the bytes say:
    memory   an account is debited for every instruction; `MAX_OBJECT_BYTES` ends the reading
    time     proportional to that account; keys are such that hashing cannot be made slow
    depth    no object contains itself, and a walk through the result soon ends: `check_extent` of `pickle_values.py`
"""

import codecs
import gc
import os
import re
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from .pickle_machine import PickleMachine
from .pickle_values import PickledName, PickledObject, PickleError, check_extent

codecs.lookup("raw-unicode-escape")  # loaded now, so that nothing at all is imported while a file is read


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
        PickleError: the bytes are no pickle, exceed a bound, or ask for what is refused.
    """
    machine = PickleMachine(data, source)
    result = run(machine, 0)
    if machine.position != len(data):
        raise machine.damaged(f"{len(data) - machine.position} bytes follow the end of the pickle")
    return result


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Gives the object in a file of `torch.save`, with tensors; see `torch_file.py`, which imports torch."""
    from .torch_file import read_torch_file as read  # noqa: PLC0415 - reading a bare pickle needs no torch

    return read(path)


def run(machine: PickleMachine, position: int) -> Any:
    """Gives the object that the pickle at `position` describes; `machine.position` is then the byte after it."""
    machine.position, machine.stack, machine.below, machine.memo = position, [], [], {}
    collects = gc.isenabled()
    gc.disable()  # it would search millions of new objects for garbage again and again, and find none
    try:
        _run_instructions(machine)
    except (IndexError, struct.error) as error:
        is_cut = isinstance(error, struct.error) or machine.opcode_at >= len(machine.data) - 1
        problem = "ends too early" if is_cut else "takes more from the stack than is there"
        raise machine.damaged(f"the pickle {problem}") from None
    finally:
        if collects:
            gc.enable()
    if not machine.stack:
        raise machine.damaged("the pickle takes more from the stack than is there")
    result = machine.stack.pop()
    if machine.stack or machine.below:
        raise machine.damaged("objects are left on the stack at the end")
    check_extent(result, machine.refused)
    return result


_STOP, _SHORT_TEXT, _TEXT, _MEMOIZE, _PUT, _GET = b".\x8cX\x94rj"
_ONE_BYTE, _TWO_BYTES, _FOUR_BYTES = b"KMJ"
_short_at, _signed_at, _unsigned_at = (struct.Struct(layout).unpack_from for layout in ("<H", "<i", "<I"))


def _run_instructions(machine: PickleMachine) -> None:  # noqa: PLR0912, PLR0915 - the branches are what makes it fast
    """Runs to the end. The instructions of which a vocabulary is made are written out: calls would double its time.

    A number or text that the end of the data cuts off needs no check of its own: the position is then beyond the end,
    where the next instruction is missed.
    """
    data, size, memo, costs = machine.data, len(machine.data), machine.memo, _COSTS
    stack, position, bytes_left = machine.stack, machine.position, machine.bytes_left
    while True:
        machine.opcode_at = position
        opcode = data[position]
        position += 1
        bytes_left -= costs[opcode]
        if bytes_left < 0:
            machine.spend(machine.bytes_left - bytes_left)
        if opcode == _TEXT:
            (length,) = _unsigned_at(data, position)
            start = position + 4
            position = start + length
            try:
                text = data[start:position].decode()
            except UnicodeDecodeError:
                text = machine.decode(data[start:position])
            stack.append(text)
            if position < size and data[position] == _PUT:  # almost always
                (place,) = _unsigned_at(data, position + 1)
                memo[place] = text
                bytes_left -= costs[_PUT]
                position += 5
        elif opcode == _GET and (found := _known_words_and_numbers(data, position - 1, memo)):
            stack += found
            position = position - 1 + len(found) // 2 * _LAYOUTS[data[position + 4]].size
            bytes_left -= (costs[_GET] + costs[_FOUR_BYTES]) * len(found) // 2
        elif opcode == _FOUR_BYTES:
            stack += _signed_at(data, position)
            position += 4
        elif opcode == _TWO_BYTES:
            stack += _short_at(data, position)
            position += 2
        elif opcode == _SHORT_TEXT:
            start = position + 1
            position = start + data[position]
            try:
                stack.append(data[start:position].decode())
            except UnicodeDecodeError:
                stack.append(machine.decode(data[start:position]))
        elif opcode == _MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif opcode == _ONE_BYTE:
            stack.append(data[position])
            position += 1
        else:
            machine.position, machine.bytes_left = position, bytes_left
            if opcode == _STOP:
                return
            _HANDLERS[opcode](machine)
            stack, position, bytes_left = machine.stack, machine.position, machine.bytes_left


# Runs of one layout: a memo place, then a number of four, two or one bytes, as in the dictionary from words to ids.
_ENTRIES = re.compile(rb"(?:j....J....){2,1000}+|(?:j....M..){2,1000}+|(?:j....K.){2,1000}+", re.DOTALL)
_LAYOUTS = {_FOUR_BYTES: struct.Struct("<xIxi"), _TWO_BYTES: struct.Struct("<xIxH"), _ONE_BYTE: struct.Struct("<xIxB")}


def _known_words_and_numbers(data: bytes, position: int, memo: dict[int, Any]) -> list[Any]:
    """What a run at `position` pushes; nothing if there is none, or if one of its memo places was never filled."""
    entries = _ENTRIES.match(data, position)
    if entries is None:
        return []
    places, numbers = zip(*_LAYOUTS[data[position + 5]].iter_unpack(entries[0]), strict=True)
    pushed: list[Any] = [None] * (2 * len(places))
    try:
        pushed[::2] = map(memo.__getitem__, places)
    except KeyError:
        return []
    pushed[1::2] = numbers
    return pushed


_Handler: TypeAlias = Callable[[PickleMachine], None]
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


def _tuple_of(count: int) -> _Handler:
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


def _push(read: Callable[[PickleMachine], Any]) -> _Handler:
    def handler(machine: PickleMachine) -> None:
        value = read(machine)  # may exchange `machine.stack`
        machine.stack.append(value)

    return handler


def _refuse(what: str) -> _Handler:
    return lambda machine: machine.refuse(what)


# The instructions: byte, action, and between them the estimated bytes of memory that one leaves behind, never 0, so
# that the account bounds time as well.
_INSTRUCTIONS: list[tuple[bytes, int, _Handler]] = [
    (b"(", 72, PickleMachine.mark),
    (b"0", 16, PickleMachine.pop),
    (b"1", 16, _pop_mark),
    (b"2", 16, lambda m: m.stack.append(m.stack[-1])),
    (b"\x80", 16, _proto),
    (b"\x95", 16, _frame),
    (b"N", 16, lambda m: m.stack.append(None)),
    (b"\x88", 16, lambda m: m.stack.append(True)),
    (b"\x89", 16, lambda m: m.stack.append(False)),
    (b"I", 40, _push(_int_line)),
    (b"L", 40, _push(PickleMachine.take_integer)),
    (b"\x8a", 40, _push(lambda m: m.take_signed(m.take_number(1)))),
    (b"\x8b", 40, _push(lambda m: m.take_signed(m.take_number(4)))),
    (b"F", 40, _push(_float_line)),
    (b"G", 40, _push(lambda m: struct.unpack(">d", m.take(8))[0])),
    (b"S", 72, _push(lambda m: m.python2_text(_quoted(m)))),
    (b"T", 72, _push(lambda m: m.python2_text(m.take(m.take_number(4))))),
    (b"U", 72, _push(lambda m: m.python2_text(m.take(m.take_number(1))))),
    (b"V", 72, _push(lambda m: m.decode(m.take_line(), "raw-unicode-escape"))),
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
    (b"r", 100, lambda m: m.remember(m.take_number(4))),
    (b"g", 16, lambda m: m.recall(m.take_integer())),
    (b"h", 16, lambda m: m.recall(m.take_number(1))),
    (b"j", 16, lambda m: m.recall(m.take_number(4))),
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
_HANDLERS: list[_Handler] = [_refuse("an unknown instruction: no pickle, or damaged")] * 256
_COSTS = [16] * 256
for _code, _cost, _handler in _INSTRUCTIONS:
    _HANDLERS[_code[0]], _COSTS[_code[0]] = _handler, _cost
for _opcode, _cost in (  # those that `_run_instructions` executes itself
    *((_SHORT_TEXT, 72), (_TEXT, 72), (_MEMOIZE, 100), (_STOP, 16)),
    *((_ONE_BYTE, 40), (_TWO_BYTES, 40), (_FOUR_BYTES, 40)),
):
    _COSTS[_opcode] = _cost


__all__ = ["PickleError", "PickleMachine", "PickledName", "PickledObject", "read_pickle", "read_torch_file", "run"]
