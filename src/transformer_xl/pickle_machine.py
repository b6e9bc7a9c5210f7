"""The stack machine of pickles, with everything that would reach Python code taken out of it.

`pickle_reader.py` knows the instructions; here is what they do: take bytes, fill containers, write down names and
calls, and pay for all of it out of one account.
"""

from collections.abc import Callable, Iterable
from typing import Any

from .pickle_values import PickledName, PickledObject, PickleError

MAX_OBJECT_BYTES = 1 << 30  # estimated size of all that one pickle builds; 800,000 words need a third of it
MAX_KEY = 1 << 60  # larger integers can be made to have one hash
MAX_NUMBER_KEYS = 1 << 16  # numbers can be chosen so that the way of each through a dictionary leads past all others
MAX_NAME = 1000  # characters of a class name with its module
MAX_DIGITS = 4300  # of an integer written out; reading one takes the square of its length
MAX_INTEGER_BYTES = 1024  # of any other integer; Python does not print what is much longer

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
_TEXT = {str}
_KEY_TYPES = {str, int, float, bool, type(None), bytes, PickledName, PickledObject}


class PickleMachine:
    """One run through one pickle; the stack is cut at marks, the cut-off parts lie in `below`."""

    def __init__(self, data: bytes, source: str) -> None:
        self.data = data
        self.source = source
        self.position = 0
        self.opcode_at = 0
        self.bytes_left = MAX_OBJECT_BYTES
        self.number_keys_left = MAX_NUMBER_KEYS
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent_load: Callable[[Any], Any] | None = None
        # Calls that are replaced by a value of our own making.
        self.calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {}

    # Errors and the account.

    def error(self, text: str) -> PickleError:
        return PickleError(f"{self.source}, byte {self.opcode_at}: {text}")

    def damaged(self, text: str) -> PickleError:
        return self.error(f"{text}; the file is damaged")

    def refused(self, text: str) -> PickleError:
        return self.error(f"{text}; refused")

    def refuse(self, what: str) -> None:
        raise self.refused(what)

    def spend(self, cost: int) -> None:
        self.bytes_left -= cost
        if self.bytes_left < 0:
            raise self.refused(f"builds more than {MAX_OBJECT_BYTES} bytes of objects")

    # Bytes to values.

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

    def take_signed(self, length: int) -> int:
        """Gives an integer of any length, written in bytes."""
        raw = self.take(length)
        if length > MAX_INTEGER_BYTES:
            raise self.refused(f"an integer of {length} bytes")
        return int.from_bytes(raw, "little", signed=True)

    def take_integer(self) -> int:
        """Gives an integer of any length, written out in a line."""
        line = self.take_line()
        try:
            if len(line) > MAX_DIGITS:
                raise ValueError
            return int(line.removesuffix(b"L"))
        except ValueError:
            raise self.damaged(f"{line[:40]!r} is no integer of at most {MAX_DIGITS} digits") from None

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

    # Stack and memo.

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            raise self.damaged("takes items down to a mark that was never set")
        items = self.stack
        self.stack = self.below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def remember(self, place: int) -> None:
        if place >= 1 << 32:
            raise self.refused(f"memo place {place} is beyond 2**32")
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise self.damaged(f"asks for memo place {place}, which was never filled")
        self.stack.append(self.memo[place])

    # Containers.

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
        self.number_keys_left -= sum(type(key) in (int, float) for key in keys)
        if self.number_keys_left < 0:
            raise self.refused(f"more than {MAX_NUMBER_KEYS} numbers as dictionary keys or set elements")

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

    # Names and calls.

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.damaged("names a class by something that is not text")
        if len(module) + len(name) > MAX_NAME:
            raise self.refused(f"a name of {len(module) + len(name)} characters")
        self.stack.append(PickledName(f"{module}.{name}", self.opcode_at))

    def make(self, called: Any, arguments: Any, keywords: Any = None) -> None:
        """Pushes what stands for `called(*arguments, **keywords)`."""
        if type(called) is not PickledName:
            is_result = type(called) is PickledObject
            what = f"the result of {called.class_name!r}" if is_result else f"a {type(called).__name__}"
            raise self.error(f"calls {what}; only names are written down, and nothing is ever called")
        keywords = {} if keywords is None else keywords
        if type(arguments) is not tuple or type(keywords) is not dict:
            raise self.damaged(f"calls {called.class_name!r} with a {type(arguments).__name__} of arguments")
        module, _, name = called.class_name.partition(".")
        known = f"{_RENAMED_MODULES.get(module, module)}.{name}"
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
                self.add_entries(made, list(argument), list(argument.values()))
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


__all__ = ["PickleMachine"]
