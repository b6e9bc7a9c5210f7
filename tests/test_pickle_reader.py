"""The pickle reader: real values come out right, hostile ones come out inert or not at all, and nothing ever runs.

`pickle` is imported here to write pickles, never to read one.
"""

import collections
import copyreg
import io
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_xl import pickle_machine
from transformer_xl.pickle_reader import PickledName, PickledObject, PickleError, read_pickle

_watched: list[str] = []
_watching = False


def _note_event(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event not in {"builtins.id", "gc.get_objects"}:
        _watched.append(f"{event} {arguments!r:.100}")


sys.addaudithook(_note_event)


def watched_read(data: bytes) -> object:
    """Reads a pickle and fails if the interpreter opened, imported, compiled or started anything meanwhile."""
    global _watching  # noqa: PLW0603 - an audit hook can never be taken away again
    _watched.clear()
    _watching = True
    try:
        return read_pickle(data)
    finally:
        _watching = False
        assert not _watched


class Reducing:
    """Pickles as a call of `function(*arguments)`, with whatever else `__reduce__` may hand over."""

    def __init__(self, function, *arguments, **others):
        self.reduced = (function, arguments, *others.values())

    def __reduce__(self):
        return self.reduced


def call(module: str, name: str, arguments: bytes, protocol: int = 4) -> bytes:
    """A pickle that calls `module.name` with a tuple that is already pickled (opcodes that leave it on the stack)."""
    if protocol >= 4:
        names = (
            b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
        )
        return b"\x80" + bytes([protocol]) + names + arguments + b"R."
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R."


PLAIN_VALUES = [
    None, True, False, 0, 1, -1, 255, 256, 65_535, 65_536, -(2**31), 2**31, 2**63, -(2**200), 10**300,
    0.0, -1.5, 1e308, float("inf"), "", "word", "ünïcödé 漢字 🙂", "line\nbreak", "back\\slash", "a" * 300, "\ud800",
    b"", b"bytes\x00\xff", b"b" * 300, bytearray(), bytearray(b"array\xff"), [], [1, [2, [3]]], (), (1,), (1, 2),
    (1, 2, 3), (1, 2, 3, 4), {}, {"a": 1, 2: "b", None: [], 1.5: ()}, set(), {1, "a", None}, list(range(3000)),
    {str(i): i for i in range(3000)}, set(range(3000)),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_out_equal_in_every_protocol(protocol):
    for value in PLAIN_VALUES:
        read = watched_read(pickle.dumps(value, protocol))
        assert read == value
        assert type(read) is type(value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(-(2**60) + 1, 2**60 - 1), inner)
        | st.tuples(inner, inner)
    ),
)


@given(json_like, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_any_plain_value_comes_out_equal(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_repeated_parts_are_the_same_object(protocol):
    part = ["word"]
    first, second = read_pickle(pickle.dumps([part, part], protocol))
    assert first is second


@pytest.mark.parametrize("protocol", range(6))
def test_dictionaries_of_the_collections_module_become_plain_ones(protocol):
    for value in (
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("banana"),
        collections.defaultdict(list, {"a": [1]}),
    ):
        read = watched_read(pickle.dumps(value, protocol))
        assert type(read) is dict
        assert list(read.items()) == list(value.items())


def test_attributes_of_a_state_dict_are_dropped():
    state = collections.OrderedDict(weight=1)
    state._metadata = {"version": 1}
    assert read_pickle(pickle.dumps(state)) == {"weight": 1}


@pytest.mark.parametrize("protocol", range(6))
def test_instances_stay_inert_and_keep_their_state(protocol):
    read = watched_read(pickle.dumps(SimpleNamespace(word="a", count=2), protocol))
    assert type(read) is PickledObject
    assert read.class_name == "types.SimpleNamespace"
    assert read.state == {"word": "a", "count": 2}


def test_python_2_texts_are_read():
    assert read_pickle(b"S'it\\'s \\xc3\\xbc\\n'\np0\n.") == "it's ü\n"
    assert read_pickle(b'S"it\'s"\n.') == "it's"
    assert read_pickle(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert read_pickle(b"T\x02\x00\x00\x00ok.") == "ok"
    assert read_pickle(b"c__builtin__\nset\n((lI1\naI2\natR.") == {1, 2}
    assert read_pickle(b"I01\n.") is True
    assert read_pickle(b"(lp0\nL12L\naF1.5\na.") == [12, 1.5]


def test_old_style_instances_are_inert():
    for data in (b"(imodule\nClass\n.", b"(cmodule\nClass\no."):
        read = watched_read(data)
        assert (read.class_name, read.arguments) == ("module.Class", ())


HOSTILE_CALLS = [
    ("os", "system", b"\x8c\x02id\x85"),
    ("posix", "system", b"\x8c\x02id\x85"),
    ("builtins", "eval", b"\x8c\x0fprint('running')\x85".replace(b"\x0f", b"\x10")),
    ("builtins", "exec", b"\x8c\x04pass\x85"),
    ("builtins", "__import__", b"\x8c\x06socket\x85"),
    ("subprocess", "Popen", b"\x8c\x02id\x85"),
    ("builtins", "open", b"\x8c\x0b/etc/passwd\x85"),
    ("operator", "attrgetter", b"\x8c\x06system\x85"),
    ("importlib", "import_module", b"\x8c\x02os\x85"),
    ("pickle", "loads", b"C\x02N.\x85"),
    ("torch", "load", b"\x8c\x01x\x85"),
    ("runpy", "run_path", b"\x8c\x01x\x85"),
    ("transformer_xl.pickle_reader", "PickledObject", b")"),
]


@pytest.mark.parametrize("protocol", [0, 4, 5])
@pytest.mark.parametrize(("module", "name", "arguments"), HOSTILE_CALLS, ids=lambda value: str(value)[:20])
def test_a_call_in_a_file_is_noted_and_not_made(module, name, arguments, protocol):
    read = watched_read(call(module, name, arguments, protocol))
    assert type(read) is PickledObject
    assert read.class_name == f"{module}.{name}"
    assert type(read.arguments) is tuple


@pytest.mark.parametrize("protocol", range(6))
def test_reduce_tricks_of_a_class_have_no_effect(protocol):
    tricks = Reducing(eval, "1/0", state={"a": 1}, items=iter(["item"]), entries=iter([("key", "value")]))
    read = watched_read(pickle.dumps(tricks, protocol))
    assert read.class_name.endswith(".eval")
    assert read.arguments == ("1/0",)
    assert read.state == {"a": 1}
    assert read.list_items == ["item"]
    assert read.dict_items == [("key", "value")]


def test_setstate_of_a_class_is_not_called():
    data = b"\x80\x02cos\nenviron\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    read = watched_read(data)
    assert (read.class_name, read.state) == ("os.environ", {"a": 1})


def test_keyword_arguments_are_kept_inert():
    read = watched_read(b"\x80\x04cos\nsystem\n)}\x8c\x07commandC\x02ids\x92.")
    assert (read.class_name, read.arguments, read.keywords) == ("os.system", (), {"command": b"id"})


def test_inert_objects_are_written_out_in_short():
    """An error message that shows one must not unfold what a file put into it."""
    read = read_pickle(b"cos\nsystem\n(" + b"X\x00\x00\x10\x00" + b"a" * 0x100000 + b"tR.")
    assert repr(read) == "<PickledObject 'os.system'>"


def test_a_chain_of_calls_is_refused():
    """getattr(os, 'system')('id'): the thing called is the result of a call."""
    inner = b"cbuiltins\ngetattr\n(cos\n__dict__\nX\x06\x00\x00\x00systemtR"
    with pytest.raises(PickleError, match=r"pickle, byte 54: calls the result of 'builtins.getattr'; only names are"):
        watched_read(inner + b"(X\x02\x00\x00\x00idtR.")
    assert watched_read(inner + b".").class_name == "builtins.getattr"


def test_a_call_of_something_that_is_no_name_is_refused():
    with pytest.raises(PickleError, match="calls a str; only names are written down"):
        watched_read(b"X\x02\x00\x00\x00os)R.")


def test_nested_pickles_stay_bytes():
    inner = pickle.dumps(Reducing(eval, "1/0"))
    assert watched_read(pickle.dumps({"inner": inner})) == {"inner": inner}


@pytest.mark.parametrize("data", [b"Pstorage\n.", b"X\x01\x00\x00\x00aQ."])
def test_persistent_ids_are_refused(data):
    with pytest.raises(PickleError, match="a persistent id, which stands for something outside the pickle; refused"):
        watched_read(data)


def test_every_instruction_of_every_protocol_is_known_and_no_other():
    """Python's own list of them; what is unknown is refused as such."""
    known = {ord(instruction.code) for instruction in pickletools.opcodes}
    assert len(known) == 68
    for opcode in range(256):
        try:
            read_pickle(bytes([opcode]))
        except PickleError as error:
            assert ("an unknown instruction" in str(error)) == (opcode not in known)  # noqa: PT017


@pytest.mark.parametrize("data", [b"\x80\x02\x82\xf0.", b"\x80\x02\x83\xf0\x00.", b"\x80\x02\x84\xf0\x00\x00\x00."])
def test_extension_codes_are_refused(data):
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(PickleError, match=r"byte 2: a copyreg extension code.*; refused"):
            watched_read(data)
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_out_of_band_buffers_are_refused():
    with pytest.raises(PickleError, match="an out-of-band buffer, which is not in the file; refused"):
        watched_read(b"\x80\x05\x97.")


def peak_bytes_of_refusal(data: bytes, match: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(PickleError, match=match):
            read_pickle(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"X\xff\xff\xff\x7fshort.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fshort.",
        b"T\xff\xff\xff\x7fshort.",
        b"B\xff\xff\xff\xffshort.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffshort.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fshort.",
        b"\x8b\xff\xff\xff\x7fshort.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_announced_lengths_cost_nothing_until_the_bytes_are_there(data):
    assert peak_bytes_of_refusal(data, "file is damaged|left") < 1_000_000


def test_memo_places_cost_nothing_until_they_are_used():
    assert read_pickle(b"Nr\xff\xff\xff\xff.") is None  # the interpreter's own reader would allocate 32 GiB
    with pytest.raises(PickleError, match=r"memo place 4294967296 is beyond 2\*\*32; refused"):
        read_pickle(b"Np4294967296\n.")
    with pytest.raises(PickleError, match="byte 0: asks for memo place 7, which was never filled"):
        read_pickle(b"g7\n.")


@pytest.mark.parametrize(
    "opcode", [b"]", b"}", b"\x8f", b")\x85", b"K\x00", b"(", b"N", b"2", b"q\x00", b"\x94", b"0N"]
)
def test_building_stops_at_a_limit(opcode, monkeypatch):
    """Every instruction has a price, so the limit ends any program; the real limit takes a minute to reach."""
    monkeypatch.setattr(pickle_machine, "MAX_OBJECT_BYTES", 1_000_000)
    data = b"N" + opcode * 200_000
    assert peak_bytes_of_refusal(data, "builds more than 1000000 bytes of objects; refused") < 3_000_000


@pytest.mark.parametrize("protocol", [2, 4])
def test_copies_of_large_parts_count_towards_the_limit(protocol, monkeypatch):
    """A dictionary that is copied again and again by reference costs four bytes a copy in the file."""
    monkeypatch.setattr(pickle_machine, "MAX_OBJECT_BYTES", 10_000_000)
    entries = pickle.dumps({str(i): i for i in range(1000)}, protocol)[:-1] + b"r\x00\x10\x00\x000"
    copies = b"ccollections\nCounter\nr\x01\x10\x00\x000" + b"j\x01\x10\x00\x00j\x00\x10\x00\x00\x85R0" * 1000 + b"N."
    assert peak_bytes_of_refusal(entries + copies, "builds more than 10000000 bytes") < 20_000_000


def test_deep_nesting_is_refused_and_does_not_crash():
    for data in (
        b")" + b"\x85" * 1_000_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"(" * 100_000 + b"l" * 99_999 + b"l.",
    ):
        with pytest.raises(PickleError, match="objects are nested more than 256 deep; refused"):
            read_pickle(data)


@pytest.mark.parametrize("pair", [b"2\x86", b"q\x01h\x01\x86", b"q\x010]h\x01ah\x01a"], ids=["tuples", "memo", "lists"])
def test_bombs_of_shared_parts_are_refused_in_short_time(pair):
    """60 doublings in 120 bytes: harmless to build, endless to walk, so consumers never see it."""
    data = b"X\x01\x00\x00\x00a" + pair * 60 + b"."
    start = time.process_time()
    with pytest.raises(PickleError, match="unfold to more than 16777216; refused"):
        read_pickle(data)
    assert time.process_time() - start < 2


def test_repeated_long_texts_count_by_their_length():
    text = b"X\x00\x00\x10\x00" + b"a" * 0x100000 + b"q\x010"
    with pytest.raises(PickleError, match="unfold to more than"):
        read_pickle(text + b"(" + b"h\x01" * 10_000 + b"l.")


@pytest.mark.parametrize("data", [b"]q\x00h\x00a.", b"}q\x00K\x01h\x00s.", b"cm\nC\n)Rq\x00h\x00b."])
def test_objects_that_contain_themselves_are_refused(data):
    with pytest.raises(PickleError, match="an object contains itself; refused"):
        read_pickle(data)


@pytest.mark.parametrize(
    ("key", "kind"),
    [(b"K\x01K\x02\x86", "tuple"), (b"]", "list"), (b"}", "dict"), (b"\x8f", "set"), (b"\x96" + bytes(8), "bytearray")],
)
def test_keys_are_texts_bytes_and_numbers(key, kind):
    """Hashing tuples takes as long as a file wants; the other kinds have no hash."""
    for data in (b"}" + key + b"Ns.", b"\x8f(" + key + b"\x90."):
        with pytest.raises(PickleError, match=f"a {kind} as dictionary key or set element"):
            read_pickle(data)


def test_keys_that_collide_by_design_are_refused():
    key = (2**61 - 1) * 3
    with pytest.raises(PickleError, match=r"an integer beyond 2\*\*60 as dictionary key"):
        read_pickle(pickle.dumps({key: 1}))


def test_numbers_as_keys_are_few(monkeypatch):
    """Chosen well, each of them takes its way through the dictionary past all others; a copy takes it again."""
    with pytest.raises(PickleError, match="more than 65536 numbers as dictionary keys or set elements; refused"):
        read_pickle(pickle.dumps(dict.fromkeys(range(70_000))))
    monkeypatch.setattr(pickle_machine, "MAX_NUMBER_KEYS", 100)
    for value in (dict.fromkeys(range(101)), set(range(101)), dict.fromkeys(i / 2 for i in range(101))):
        with pytest.raises(PickleError, match="more than 100 numbers as dictionary keys"):
            read_pickle(pickle.dumps(value))
    assert read_pickle(pickle.dumps(dict.fromkeys(range(60)))) == dict.fromkeys(range(60))
    with pytest.raises(PickleError, match="more than 100 numbers as dictionary keys"):
        read_pickle(pickle.dumps(collections.Counter(range(60))))  # a call with a dictionary, which is copied


def test_integers_that_take_the_square_of_their_length_are_refused():
    with pytest.raises(PickleError, match="is no integer of at most 4300 digits"):
        read_pickle(b"L" + b"9" * 5000 + b"L\n.")


def test_integers_too_long_to_be_printed_are_refused():
    """Python refuses to write them out, which would end in an error of its own where a message shows one."""
    assert read_pickle(pickle.dumps(2**8184)) == 2**8184
    with pytest.raises(PickleError, match="an integer of 1025 bytes; refused"):
        read_pickle(pickle.dumps(2**8192))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle, byte 0: the pickle ends too early; the file is damaged"),
        (b".", "pickle, byte 0: the pickle takes more from the stack than is there"),
        (b"NN.", "pickle, byte 2: objects are left on the stack at the end"),
        (b"(N.", "pickle, byte 2: objects are left on the stack at the end"),
        (b"N.rest", "pickle, byte 1: 4 bytes follow the end of the pickle"),
        (b"\x80\x06N.", "pickle, byte 0: pickle protocol 6; 0 to 5 are known"),
        (b"\xffN.", "pickle, byte 0: an unknown instruction: no pickle, or damaged; refused"),
        (b"X\x01\x00\x00\x00\xff.", "text that is not valid utf-8"),
        (b"I12", "a line has no end"),
        (b"Ione\n.", "b'one' is no integer of at most"),
        (b"Fone\n.", "b'one' is no number"),
        (b"Sone\n.", "a text without quotes"),
        (b"S'\\q'\n.", "a text with an unknown escape"),
        (b"S'\\'\n.", "a text with an unknown escape"),
        (b"}K\x01u.", "takes items down to a mark that was never set"),
        (b"}(K\x01u.", "a dictionary entry without a value"),
        (b"N(K\x01e.", "appends to a NoneType"),
        (b"]K\x01K\x02s.", "stores entries in a list"),
        (b"]}b.", "gives a list a state; refused"),
        (b"cm\nC\n)R}b}b.", "gives 'm.C' a state twice; refused"),
        (b"cm\nC\nNR.", "calls 'm.C' with a NoneType of arguments"),
        (b"K\x01K\x02\x93.", "names a class by something that is not text"),
        (b"c" + b"m" * 1000 + b"\nC\n.", "a name of 1001 characters; refused"),
        (b"ccollections\nOrderedDict\n(K\x01tR.", "a dictionary is made of a int"),
        (b"ccollections\nOrderedDict\n((lK\x01atR.", "a dictionary is made of something else than pairs"),
        (b"c__builtin__\nset\n(K\x01tR.", "a set is made of a int"),
        (b"c_codecs\nencode\n(V\\u20ac\nVlatin1\ntR.", "bytes that are written as text beyond latin1"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "bytes that are made of a str; refused"),
    ],
)  # fmt: skip
def test_damaged_pickles_give_one_line(data, message):
    with pytest.raises(PickleError) as caught:
        read_pickle(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_name_the_source_and_the_byte():
    with pytest.raises(PickleError, match=r"^vocab\.pkl, byte 2: a persistent id"):
        read_pickle(b"\x80\x02Px\n.", source="vocab.pkl")


def test_names_and_offsets_are_kept():
    assert read_pickle(b"\x80\x02ctorch\nFloatStorage\n.") == PickledName("torch.FloatStorage", 2)


@pytest.mark.parametrize("protocol", range(6))
def test_every_truncation_gives_the_same_kind_of_error(protocol):
    data = pickle.dumps({"a": [1, 2.5, "text", b"bytes", (None, True)], "b": collections.Counter("aab")}, protocol)
    for end in range(len(data)):
        with pytest.raises(PickleError):
            read_pickle(data[:end])


def test_random_bytes_give_an_error_or_a_value_and_nothing_else():
    generator = random.Random(0)
    for _ in range(5000):
        data = generator.randbytes(generator.randrange(1, 60)) + b"."
        try:
            watched_read(data)
        except PickleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most random bytes are no pickle


@given(
    st.lists(
        st.sampled_from([bytes([opcode]) for opcode in range(256)] + [b"\x00\x00\x00\x00", b"a\n", b"1\n"]), max_size=40
    )
)
@settings(max_examples=500, deadline=None)
def test_random_programs_give_an_error_or_a_value_and_nothing_else(pieces):
    try:
        watched_read(b"".join(pieces) + b".")
    except PickleError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("protocol", range(6))
def test_a_vocabulary_comes_out_as_it_went_in(protocol):
    """Its instructions have code of their own: texts, memo places, and numbers of one, two and four bytes in runs."""
    words = ["<eos>", "", "naïve", "\ud800", "x" * 300, *(f"word{i}" for i in range(3000))]
    vocabulary = {
        "counter": collections.Counter({word: n for n, word in enumerate(words, -3)}),
        "sym2idx": collections.OrderedDict((word, index) for index, word in enumerate(words)),
        "large": {word: 65_000 + 300 * n for n, word in enumerate(words)},
        "mixed": {word: (1, 1000, 2**20, -5, None, "a")[n % 6] for n, word in enumerate(words)},
        "idx2sym": list(words),
    }
    data = pickle.dumps(vocabulary, protocol)
    read = watched_read(data)
    assert read == vocabulary
    assert [list(value) for value in read.values()] == [list(value) for value in vocabulary.values()]
    generator = random.Random(protocol)
    for end in [len(data) - 1, *(generator.randrange(len(data)) for _ in range(50))]:
        with pytest.raises(PickleError, match="the file is damaged"):
            read_pickle(data[:end])


def test_a_run_of_entries_that_names_an_empty_place_is_told_by_its_byte():
    data = b"\x80\x02Nr\x07\x01\x00\x000}(" + b"j\x07\x01\x00\x00K\x05" * 3 + b"j\x08\x01\x00\x00K\x05u."
    with pytest.raises(PickleError, match="byte 32: asks for memo place 264, which was never filled"):
        read_pickle(data)


def test_a_vocabulary_is_read_in_linear_time():
    """Twice the words, about twice the time: nothing in the reader is quadratic."""

    def seconds(n_words: int) -> float:
        words = [f"word{i}" for i in range(n_words)]
        data = pickle.dumps({"idx2sym": words, "sym2idx": {word: i for i, word in enumerate(words)}})
        start = time.process_time()
        read_pickle(data)
        return time.process_time() - start

    seconds(1000)
    assert min(seconds(40_000) for _ in range(3)) < 5 * min(seconds(20_000) for _ in range(3))


def test_garbage_collection_is_on_again_after_reading_and_after_an_error():
    import gc  # noqa: PLC0415

    read_pickle(b"N.")
    assert gc.isenabled()
    with pytest.raises(PickleError):
        read_pickle(b"")
    assert gc.isenabled()


def test_little_endian_numbers_are_read_as_written():
    out = io.BytesIO()
    out.write(
        b"(J" + struct.pack("<i", -5) + b"M" + struct.pack("<H", 40_000) + b"K\xc8G" + struct.pack(">d", 0.1) + b"t."
    )
    assert read_pickle(out.getvalue()) == (-5, 40_000, 200, 0.1)
