"""Bad input that once crashed, gave wrong numbers or lost files: integer models, their files,
names, threads, full disks, empty loaders."""

import copy
import io
import itertools
import json
import math
import os
import pathlib
import pickle
import shutil
import stat
import subprocess
import sys
import threading

import bitpare as bp
import pytest
import torch
from bitpare import _build_info, files
from ops import call, programs
from test_errors import run_python
from test_integer import LeNet, images, prepared
from torch import Tensor, nn

PACKAGE = pathlib.Path(bp.__file__).parent
encode = torch.ops.bitpare._encode_integer


# -- impossible specs


def spec_file(spec: dict, tensors: dict[str, Tensor], path: pathlib.Path) -> pathlib.Path:
    """Write a file with a valid checksum, whatever the spec contains."""
    text = json.dumps({"arguments": ["x"], "single": True, **spec})
    path.write_bytes(encode(text, list(tensors.values()), list(tensors)).numpy().tobytes())
    return path


def pooled(**fields) -> tuple[dict, dict[str, Tensor]]:
    """Return a model of one pool, with some fields replaced."""
    pool = {
        "op": "pool", "name": "pool", "inputs": [0], "output": 1, "maximum": False,
        "adaptive": "size" in fields, "kernel": [2, 2], "stride": [2, 2], "dilation": [1, 1],
        "padding": [0, 0, 0, 0], "ceil": False, "size": [1, 1], "least": 0, "count_padding": True,
        "divisor": 0, "scale": 0.1, "new_scale": 0.1, "zero": 0, "range": [0, 255, 0], **fields,
    }  # fmt: skip
    spec = {
        "version": 1, "values": 2,
        "inputs": [{"value": 0, "channels": 3, "rows": False, "scale": 0.1, "range": [0, 255, 0]}],
        "nodes": [pool],
        "outputs": [{"value": 1, "rows": False, "floats": False, "scale": 0.1, "zero": 0}],
    }  # fmt: skip
    return spec, {}


WRONG_POOLS = [
    ({"size": [2**31, 2**31]}, "size must be from 0 to"),
    ({"padding": [2**31 - 4] * 4}, "padding must be from 0 to"),
    ({"padding": [-1, 0, 0, 0]}, "padding must be from 0 to"),
    ({"padding": [2, 0, 0, 0]}, "padding must be at most half of the kernel"),
    ({"kernel": [2**40, 2]}, "kernel must be from 1 to"),
    ({"stride": [0, 1]}, "stride must be from 1 to"),
    ({"dilation": [2**63, 1]}, "dilation must be a whole number"),
    ({"zero": 2**32}, "zero must be from 0 to 255, got 4294967296"),
    ({"maximum": True, "least": 511}, "least must be from 0 to 255, got 511"),
    ({"scale": 0}, "scale must be above 0"),
    ({"new_scale": 0.0}, "new_scale must be above 0"),
    ({"new_scale": 1e300}, "new_scale must be above 0 and finite in float32"),
    ({"divisor": -1}, "divisor must be from 0 to"),
    ({"range": [-9e15, 9e15, 9e15]}, "range must be from -255 to 255"),
    ({"range": [0, 255]}, "range must have 3 numbers"),
    ({"maximum": "yes"}, "maximum must be true or false"),
    ({"kernel": 3}, "kernel must be a list"),
    ({"name": 7}, "name must be text"),
    ({"inputs": [1]}, "value 1 is used before it is made"),
    ({"output": 2**40}, "value 1099511627776 must be below values, which is 2"),
    ({"output": 0}, "value 0 is made twice"),
]


@pytest.mark.parametrize("fields, message", WRONG_POOLS, ids=lambda v: str(v)[:40])
def test_a_spec_is_refused_with_file_node_and_field(fields, message, tmp_path):
    spec, tensors = pooled(**fields)
    path = spec_file(spec, tensors, tmp_path / "model.bp")
    named = "" if message.startswith("name") else " (pool)"
    with pytest.raises(ValueError) as caught:
        bp.deploy.load(path)
    where = f"{path}: spec: node 0{named or ' (?)'}: "
    assert str(caught.value).startswith(where) and message in str(caught.value)


def places(value, path=()):
    """Yield the path of every value inside JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(spec, path, value):
    made = copy.deepcopy(spec)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return made


STRANGE = [
    None, True, "x", "", [], [1], {}, 0.5, -1, 0, 1, 300, 2**31 - 4, 2**31, 2**32, 2**40, 2**62,
    9e15, 1e-320, 1e300, -1e300,
]  # fmt: skip


def test_any_value_anywhere_in_a_spec_is_refused_or_runs(tmp_path):
    """Replace each value of two specs by each strange value. The result must be an error that names
    the file, or a model that can be called."""
    refused = ran = 0
    for spec, tensors in (pooled(), programs.parts()):
        full = {"arguments": ["x"], "single": True, **spec}
        for path, value in itertools.product(list(places(full))[1:], STRANGE):
            file = spec_file(replaced(full, path, value), tensors, tmp_path / "m.bp")
            try:
                model = bp.deploy.load(file)
            except ValueError as error:
                assert str(error).startswith(f"{file}: ")
                refused += 1
                continue
            try:
                model(torch.rand(2, 3, 6, 8))
                ran += 1
            except (RuntimeError, ValueError, TypeError, bp.Unsupported):
                refused += 1
    assert refused > 1000 and ran > 100


SMALL_FILE = """
import json, resource, sys, torch, bitpare as bp
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    bp.deploy.load(sys.argv[1])
except ValueError as error:
    print(error)
print("grew", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    "entry, encoding",
    [
        ({"dtype": "I8", "shape": [2**31]}, None),
        ({"dtype": "F32", "shape": [2**60]}, None),
        ({"dtype": "U8", "shape": [8]}, {"bits": 8, "shift": 0, "sparse": True, "shape": [2**31]}),
        ({"dtype": "U8", "shape": [8]}, {"bits": 4, "shift": 0, "sparse": False, "shape": [2**31]}),
        ({"dtype": "U8", "shape": [8]}, {"bits": 1, "shift": 0, "sparse": False, "shape": [-8]}),
        ({"dtype": "U8", "shape": [8]}, {"bits": 3, "shift": 0, "sparse": True, "shape": [8]}),
        ({"dtype": "U8", "shape": [2**32, 2**32]}, {"bits": 4, "shift": 9, "sparse": False,
                                                     "shape": [16]}),
    ],
)  # fmt: skip
def test_memory_is_taken_for_what_is_there(entry, encoding, tmp_path):
    import zlib

    encodings = json.dumps({} if encoding is None else {"w": encoding})
    spec, data = "{}", bytes(8)
    checksum = zlib.crc32(data, zlib.crc32(encodings.encode(), zlib.crc32(spec.encode())))
    metadata = {
        "format": "bitpare-integer", "version": "1", "checksum": str(checksum),
        "encodings": encodings, "spec": spec,
    }  # fmt: skip
    header = json.dumps({"__metadata__": metadata, "w": {**entry, "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "claims.bp"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    ran = subprocess.run(
        [sys.executable, "-c", SMALL_FILE, path], capture_output=True, text=True, check=True
    )
    message, grew = ran.stdout.splitlines()
    assert message.startswith(f"{path}: tensor w: ") and int(grew.split()[1]) < 50_000  # KiB


def test_values_that_are_not_counted_take_no_memory():
    spec, tensors = pooled()
    with pytest.raises(ValueError, match="values must be from 0 to"):
        torch.ops.bitpare._new_program(json.dumps({**spec, "values": 1 << 24}), [], [])
    assert not tensors


def test_an_output_is_memory_of_its_own():
    entry = {"value": 0, "channels": 3, "rows": True, "floats": True}
    output = {"value": 0, "rows": True, "floats": True}
    spec = {"version": 1, "values": 1, "inputs": [entry], "nodes": [], "outputs": [output, output]}
    program = bp.deploy.integer.IntegerProgram(spec, {})
    x = torch.randn(4, 3)
    first, second = program(x)
    assert torch.equal(first, x) and torch.equal(second, x)
    assert len({t.data_ptr() for t in (x, first, second)}) == 3


def test_what_is_added_has_the_channels_of_the_result():
    spec, tensors = programs.parts()
    add = {"zeros": [20, 10], "scales": [0.1, 0.1, 10.0], "range": [-20, 200, 20]}
    spec["nodes"][0] |= {"inputs": [0, 0], "add": add}  # 3 channels to 5
    with pytest.raises(RuntimeError, match=r"first: 5 channels, but what is added has 3"):
        torch.ops.bitpare._new_program(json.dumps(spec), list(tensors.values()), list(tensors))


def test_rows_that_are_given_out_as_an_image():
    entry = {"value": 0, "channels": 3, "rows": True, "floats": True}
    output = {"value": 0, "rows": False, "floats": True}
    spec = {"version": 1, "values": 1, "inputs": [entry], "nodes": [], "outputs": [output]}
    x = torch.randn(4, 3)
    (got,) = bp.deploy.integer.IntegerProgram(spec, {})(x)
    assert torch.equal(got, x[:, :, None, None])


WRONG_FILES = [
    ({"arguments": ["self"]}, {}, "arguments must be Python identifiers"),
    ({"arguments": ["a b"]}, {}, "arguments must be Python identifiers"),
    ({"arguments": ["x", "x"]}, {}, "arguments must be 1 names"),
    ({"arguments": "x"}, {}, "arguments must be 1 names"),
    ({"single": 1}, {}, "single must be true"),
    ({"outputs": [{"value": 1, "rows": False, "floats": False}] * 2}, {}, "single must be true"),
    ({}, {"": torch.zeros(1)}, "tensor '' must have a name without empty parts"),
    ({}, {"a..b": torch.zeros(1)}, "tensor 'a..b' must have a name"),
]  # fmt: skip


@pytest.mark.parametrize("fields, more, message", WRONG_FILES, ids=lambda v: str(v)[:30])
def test_what_python_reads_of_a_file(fields, more, message, tmp_path):
    spec, tensors = pooled()
    path = spec_file({**spec, **fields}, {**tensors, **more}, tmp_path / "m.bp")
    with pytest.raises(ValueError, match=rf"{path}: spec: {message}"):
        bp.deploy.load(path)


def test_tensors_do_not_share_bytes(tmp_path):
    """Else a few bytes could be many tensors."""
    path = spec_file(*programs.parts(), tmp_path / "m.bp")
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["last.multiplier"]["data_offsets"] = header["first.multiplier"]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(ValueError, match="data_offsets overlap or leave a gap"):
        bp.deploy.load(path)


class Wrapped(torch.Tensor):
    """A tensor without memory of its own."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def test_tensors_without_memory_are_not_saved():
    given = programs.program()
    for index in range(len(given["tensors"])):
        spoilt = {**given, "tensors": list(given["tensors"])}
        spoilt["tensors"][index] = Wrapped(given["tensors"][index])
        for op in ("_encode_integer", "_new_program"):
            with pytest.raises(RuntimeError, match="must be a plain tensor that holds values"):
                call(op, spoilt)


# -- images that are too small, or empty

WINDOWS = [
    *(lambda k=k, s=s, p=p: nn.Conv2d(3, 4, k, stride=s, padding=p)
      for k, s, p in itertools.product((1, 3, 5), (1, 2, 3), (0, 1))),
    *(lambda k=k, s=s, c=c: nn.MaxPool2d(k, s, ceil_mode=c)
      for k, s, c in itertools.product((2, 3), (1, 2, 4), (False, True))),
    *(lambda k=k, s=s, c=c: nn.AvgPool2d(k, s, ceil_mode=c)
      for k, s, c in itertools.product((2, 3), (2, 3), (False, True))),
    lambda: nn.AdaptiveAvgPool2d(1),
    lambda: nn.Conv2d(3, 4, 3, stride=2, dilation=2),
]  # fmt: skip


@pytest.mark.parametrize("make", WINDOWS, ids=lambda m: str(m()))
def test_small_images_give_what_torch_gives_or_an_error(make):
    torch.manual_seed(0)
    layer = make()
    last = nn.Conv2d(4 if isinstance(layer, nn.Conv2d) else 3, 2, 1)
    plain, example = nn.Sequential(layer, last).eval(), torch.rand(2, 3, 16, 16)
    model = bp.prepare(plain, example_inputs=(example,))
    bp.calibrate(model, data=[example])
    integer = bp.convert(model.eval())
    assert len(integer.programs[0].spec["nodes"]) == 2 and not integer.floating
    for batch, height, width in itertools.product((0, 1), (0, 1, 2, 3, 16), (2, 16)):
        x = torch.rand(batch, 3, height, width)
        try:
            expected = plain(x)
        except RuntimeError:
            expected = None
        if height == 0:  # torch mostly refuses; the mean of nothing has no integer
            expected = None
        if expected is None:
            with pytest.raises(RuntimeError, match=r"smaller than the kernel|has no pixels"):
                integer(x)
            continue
        got = integer(x)
        assert got.shape == expected.shape
        assert torch.allclose(got, model(x), atol=0.02)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


@pytest.mark.parametrize("config", ["int8", "dynamic", "weight_only"])
def test_one_of_two_inputs_is_empty(config):
    x, y = torch.randn(2, 5, 4)
    model = bp.prepare(Two().eval(), getattr(bp.QConfig, config)(), example_inputs=(x, y))
    bp.calibrate(model, data=[(x, y)], forward=lambda m, batch: m(*batch))
    integer = bp.convert(model)
    whole = integer(x, y)
    for _ in range(3):
        torch.rand(1000)  # changes the contents of freed memory
        first, second = integer(x, y[:0])
        assert torch.equal(first, whole[0]) and second.shape == (0, 2)
        first, second = integer(x[:0], y)
        assert torch.equal(second, whole[1]) and first.shape == (0, 3)


# -- files


def test_concurrent_saves_leave_a_whole_file(tmp_path):
    models = [bp.convert(prepared("lenet")), bp.convert(prepared("branches"))]
    path = tmp_path / "model.bp"
    stop = threading.Event()
    errors = []

    def save(model):
        try:
            while not stop.is_set():
                bp.deploy.save(model, path)
        except Exception as error:
            errors.append(error)

    bp.deploy.save(models[0], path)
    threads = [threading.Thread(target=save, args=(m,)) for m in models for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            bp.deploy.load(path)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and os.listdir(tmp_path) == ["model.bp"]


WRITERS = {
    "save": lambda path: bp.deploy.save(bp.convert(prepared("lenet")), path),
    "bytes": lambda path: files.write_whole(path, b"content"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_modes_links_and_neighbours_are_respected(write, tmp_path):
    path, other = tmp_path / "model.bp", tmp_path / "model.bp.part"
    other.write_text("mine")
    before = os.umask(0o027)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and other.read_text() == "mine"
    path.chmod(0o600)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(path)
    dangling.symlink_to(tmp_path / "made")
    path.write_bytes(b"old")
    write(link)
    write(dangling)
    assert link.is_symlink() and dangling.is_symlink()
    assert path.read_bytes() != b"old" and (tmp_path / "made").stat().st_size > 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["dangling", "link", "made", "model.bp", "model.bp.part"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.bp"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"model\.bp: cannot be written: No space left") as caught:
        files.write_whole(path, b"new")
    assert caught.value.errno == 28 and isinstance(caught.value, ValueError)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.bp"]


def test_what_is_no_regular_file(tmp_path):
    files.write_whole("/dev/null", b"content")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    for act in (bp.deploy.load, lambda path: files.write_whole(path, b"")):
        with pytest.raises(
            IsADirectoryError, match=f"{tmp_path}: cannot be opened: Is a directory"
        ):
            act(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", b"a\0b", pathlib.Path("a\0b")])
def test_a_path_with_nul_behaves_as_open_does(path):
    with pytest.raises(ValueError, match="null byte"):
        bp.deploy.load(path)
    with pytest.raises(ValueError, match="null byte"):
        files.write_whole(path, b"")


@pytest.mark.parametrize("name", [b"caf\xe9.bp", "caf\udce9.bp", "größe 🙂.bp"])
def test_paths_of_any_bytes(name, tmp_path):
    folder = os.fsencode(tmp_path) if isinstance(name, bytes) else str(tmp_path)
    path = os.path.join(folder, name)
    integer = bp.convert(prepared("lenet"))
    bp.deploy.save(integer, path)
    assert os.path.exists(path)
    assert torch.equal(bp.deploy.load(path)(images(1, 16)), integer(images(1, 16)))
    with open(path, "wb") as file:
        file.write(b"no model")
    with pytest.raises(ValueError, match="header"):
        bp.deploy.load(path)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        bp.deploy.load(path)


def test_pipes_and_names_of_descriptors(tmp_path):
    read, write = os.pipe()
    files.write_whole(f"/dev/fd/{write}", b"content")
    assert os.read(read, 100) == b"content"
    os.close(read)
    os.close(write)
    with open(tmp_path / "gone", "w+b") as file:
        (tmp_path / "gone").unlink()
        files.write_whole(f"/proc/self/fd/{file.fileno()}", b"content")
        assert file.read() == b"content" and os.listdir(tmp_path) == []


def test_paths_that_open_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    for path in ("new/", "file/", "nowhere/../x", "file/../x", "", "."):
        with pytest.raises(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))  # as open() does
        with pytest.raises(OSError):
            files.write_whole(path, b"new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"
    files.write_whole("plain", b"new")
    assert (tmp_path / "plain").read_bytes() == b"new"


# -- threads


def in_threads(*actions) -> list[Exception]:
    """Run each action repeatedly until the first one has run 25 times."""
    errors: list[Exception] = []
    stop = threading.Event()

    def again(action):
        try:
            while not stop.is_set():
                action()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=again, args=(a,)) for a in actions[1:]]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            actions[0]()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return errors


@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_unpickling_leaves_calls_in_other_threads_alone(name):
    integer = bp.convert(prepared(name))
    plain, size = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), 16 if name == "lenet" else 32
    x, content = images(1, size), pickle.dumps(integer)
    expected = integer(x)
    calls = [lambda: integer(x), lambda: plain(torch.ones(2, 4))]
    assert in_threads(lambda: pickle.loads(content), *calls) == []
    assert torch.equal(pickle.loads(content)(x), expected)


def test_unpickling_patches_nothing(monkeypatch):
    content = pickle.dumps(bp.convert(prepared("branches")))
    call, attribute = nn.Module.__call__, nn.Module.__getattr__

    def no_trace(*args, **kwargs):
        raise AssertionError("unpickling traced")

    monkeypatch.setattr(torch.fx.Tracer, "trace", no_trace)
    restored = pickle.loads(content)
    assert nn.Module.__call__ is call and nn.Module.__getattr__ is attribute
    assert len(restored.programs) == 1


class Between(nn.Module):
    """Float functions of several modules between integer parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.one(x), -1).roll(1, dims=-1)
        x = nn.functional.normalize(x, dim=-1) * math.pi
        x = x.contiguous(memory_format=torch.contiguous_format).to(torch.float32)
        return torch.ops.aten.cumsum.default(self.two(x), 1)


def test_functions_in_float_pickle():
    x = torch.randn(5, 8)
    model = bp.prepare(Between().eval(), example_inputs=(x,))
    bp.calibrate(model, data=[x])
    integer = bp.convert(model)
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        restored = pickle.loads(pickle.dumps(integer, protocol))
        assert torch.equal(restored(x), integer(x))
        assert torch.equal(copy.deepcopy(restored)(x), integer(x))
        assert str(restored.body.graph) == str(integer.body.graph)
    file = io.BytesIO()
    torch.save(integer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), integer(x))


def test_moving_and_loading_during_calls():
    integer = bp.convert(prepared("branches"))
    x, state = images(1), copy.deepcopy(integer.state_dict())
    expected = integer(x)
    results = []
    calls = [lambda: results.append(torch.equal(integer(x), expected))] * 2
    assert in_threads(lambda: integer.to("cpu"), *calls) == []
    assert in_threads(lambda: integer.load_state_dict(state), *calls) == []
    assert in_threads(lambda: integer.programs[0].rebuild(), *calls) == []
    assert results and all(results)


def test_a_compiled_model_takes_weights_that_are_loaded_later():
    integer = bp.convert(prepared("lenet"))
    x = images(1, 16)
    compiled = torch.compile(integer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), integer(x))
    state = copy.deepcopy(integer.state_dict())
    name = next(n for n in state if n.endswith("two.bias"))
    state[name] += 1000
    before = integer(x)
    integer.load_state_dict(state)
    assert not torch.equal(integer(x), before) and torch.equal(compiled(x), integer(x))


# -- names


class Names(nn.Module):
    """Names in several scripts, and one outside the basic multilingual plane."""

    def __init__(self) -> None:
        super().__init__()
        self.größe, self.слой = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.add_module("層 🙂", nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.слой(self.größe(x))).mean((2, 3))
        return self._modules["層 🙂"](x)


def test_names_that_are_not_ascii(tmp_path):
    x = images(4)
    model = bp.prepare(Names().eval(), example_inputs=(x,))
    bp.calibrate(model, data=[x])
    integer = bp.convert(model)
    bp.verify(model, integer, data=[x], min_agreement=0.5)
    assert "größe.weight" in integer.programs[0].state_dict()
    bp.deploy.save(integer, tmp_path / "m.bp")
    loaded = bp.deploy.load(tmp_path / "m.bp")
    assert torch.equal(loaded(x), integer(x))
    assert loaded.programs[0].state_dict().keys() == integer.programs[0].state_dict().keys()
    if shutil.which("python3"):
        safetensors = pytest.importorskip("safetensors.torch")
        assert "größe.weight" in safetensors.load_file(tmp_path / "m.bp")
    pytest.importorskip("onnx")
    bp.deploy.export_onnx(integer, tmp_path / "ü.onnx", example_inputs=(x,))
    assert (tmp_path / "ü.onnx").stat().st_size > 0


class Attributes(nn.Module):
    """Layers called as attributes of the modules that hold their integers."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.weighted, self._number = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._number(torch.relu(self.weighted(torch.relu(self.spec(x)))))


def test_layers_called_as_attributes(tmp_path):
    x = torch.randn(6, 4)
    model = bp.prepare(Attributes().eval(), example_inputs=(x,))
    bp.calibrate(model, data=[x])
    integer = bp.convert(model)
    bp.verify(model, integer, data=[x], min_agreement=0.5)
    bp.deploy.save(integer, tmp_path / "m.bp")
    loaded = bp.deploy.load(tmp_path / "m.bp")
    assert torch.equal(loaded(x), integer(x))
    for made in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), loaded.to("cpu")):
        assert torch.equal(made(x), integer(x)) and len(made.programs[0].weighted()) == 3
    loaded.load_state_dict(integer.state_dict())


# -- disks that are full

FULL_DISK = """
import resource, sys, torch, bitpare as bp
if sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
teacher = torch.nn.Linear(4, 1000)
cache = bp.distill.TeacherCache(sys.argv[1], 100000)
cache.open(teacher)
try:
    cache.write(torch.arange(100000), torch.zeros(100000, 1000))
except OSError as error:
    print(error)
"""


def fill(folder: pathlib.Path, how: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, folder, how], capture_output=True, text=True
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    assert f"{folder}/0.values: cannot be given 200000000 bytes: " in ran.stdout
    assert sorted(os.listdir(folder)) == ["cache.json"]


def test_a_teacher_cache_says_that_the_disk_is_full(tmp_path):
    fill(tmp_path / "cache", "limited")


def test_a_teacher_cache_on_a_small_disk(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path])
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        fill(tmp_path / "cache", "as it is")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_teacher_cache_has_its_space(tmp_path):
    cache = bp.distill.TeacherCache(tmp_path, 1000)
    cache.open(nn.Linear(4, 50))
    cache.write(torch.arange(3), torch.randn(3, 50))
    for name, size in (("0.values", 1000 * 50 * 2), ("0.checksum", 8000)):
        found = os.stat(tmp_path / name)
        assert found.st_size == size and found.st_blocks * 512 >= size


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b'{"classes": 5}', b'{"classes": -5}', b"null", b""]
)
def test_a_damaged_teacher_cache(content, tmp_path):
    cache = bp.distill.TeacherCache(tmp_path, 10)
    teacher = nn.Linear(4, 5)
    cache.open(teacher)
    good = json.loads((tmp_path / "cache.json").read_text())
    if content.startswith(b'{"classes": -'):
        content = json.dumps({**good, "classes": -5}).encode()
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"TeacherCache: .*(is damaged|was made with)"):
        bp.distill.TeacherCache(tmp_path, 10).open(teacher)


# -- errors that were once silent


def test_verify_of_nothing():
    model = prepared("lenet")
    integer = bp.convert(model)
    for nothing in ([], [images(0, 16)], [(images(0, 16), torch.zeros(0))]):
        with pytest.raises(
            ValueError, match=r"verify: (data gave no batch|the data hold no sample)"
        ):
            bp.verify(model, integer, data=nothing)
    for empty in ([], (), {}):
        with pytest.raises(ValueError, match="a batch must hold an input, got an empty"):
            bp.verify(model, integer, data=[empty])


def attachable(model):
    yield "QatSchedule", bp.QatSchedule(model, steps=10)
    yield "Oscillations", bp.Oscillations(model)
    yield "Recorder", bp.report.Recorder(model)
    yield "Distiller", bp.distill.Distiller(model, LeNet(), bp.distill.SoftTarget())


def test_an_optimizer_of_another_model_is_refused():
    model = prepared("lenet")
    other = torch.optim.SGD(LeNet().parameters(), lr=0.1)
    own = torch.optim.SGD(model.one.parameters(), lr=0.1)  # part of the model is enough
    for name, made in attachable(model):
        with pytest.raises(ValueError, match=rf"{name}\.attach: the optimizer holds no parameter"):
            made.attach(other)
        made.attach(own)
    with pytest.raises(ValueError, match="the optimizer does not own"):
        bp.prune.Pruner(model, bp.prune.Schedule.one_shot(0.5)).attach(other)


def copied_package(tmp_path: pathlib.Path, **facts: str) -> pathlib.Path:
    """Copy the package with other facts about its build."""
    shutil.copytree(
        PACKAGE, tmp_path / "bitpare", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    info = tmp_path / "bitpare" / "_build_info.py"
    lines = info.read_text() + "".join(f"{k} = {v!r}\n" for k, v in facts.items())
    info.write_text(lines)
    return tmp_path


@pytest.mark.parametrize("what", ["another torch", "no library", "not built"])
def test_doctor_answers_where_the_ops_cannot_be_loaded(what, tmp_path):
    folder = copied_package(tmp_path, **({"torch": "1.2.3"} if what == "another torch" else {}))
    if what == "no library":
        (folder / "bitpare" / "libbitpare.so").write_bytes(b"\x7fELF nonsense")
    if what == "not built":
        (folder / "bitpare" / "_build_info.py").unlink()
    ran = run_python(
        "import subprocess, sys\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'bitpare', 'doctor']).returncode)",
        PYTHONPATH=str(folder),
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    release = torch.__version__.split("+")[0]
    for line in (f"torch      {release}", "cpu ops    cannot be loaded", "why  ", "pip"):
        assert line in ran.stdout
    by_name = run_python(
        "import sys, bitpare_cli; sys.exit(bitpare_cli.main(['doctor']))", PYTHONPATH=str(folder)
    )
    assert by_name.returncode == 1 and by_name.stdout == ran.stdout
    ran = run_python("import bitpare", PYTHONPATH=str(folder))
    assert ran.returncode == 1 and "ImportError" in ran.stderr
    assert _build_info.torch  # the package in use is unchanged


# -- numbers

COUNTS = torch.zeros(2, 64, dtype=torch.int64)


def test_counts_that_are_none():
    spoilt = COUNTS.clone()
    spoilt[0, 3], spoilt[0, 4] = -5, 5
    for method in ("percentile", "mse", "entropy"):
        with pytest.raises(RuntimeError, match=r"counts must be from 0 to .*, got -5 in bin 3"):
            bp.functional.histogram_range(
                spoilt, torch.ones(2), method=method, quant_min=-8, quant_max=7, symmetric=True
            )


def test_no_channels():
    for x in (torch.empty(4, 0), torch.empty(0, 0)):
        low, high, counts = bp.functional.minmax_histogram(
            x, torch.empty(0), torch.empty(0), bins=2, axis=1
        )
        assert low.shape == high.shape == (0,) and counts.shape == (0, 2)


def test_shapes_that_overflow():
    words = torch.zeros(1, dtype=torch.int64)
    for shape in ([2**62, 4], [2**32, 2**32, 2**10], [-1, 3], [2**63 - 1]):
        with pytest.raises(RuntimeError, match="unpack_mask: "):
            bp.functional.unpack_mask(words, shape)
        with pytest.raises(RuntimeError, match="unpack_bits: "):
            bp.functional.unpack_bits(words.byte(), shape, bits=2)


def test_complex_weights_of_rows_are_refused():
    student, teacher = torch.randn(2, 5, 7)
    complex_weight = torch.ones(5, dtype=torch.complex64)
    for loss in (bp.functional.distill_loss, bp.functional.dist_loss):
        with pytest.raises(RuntimeError, match="row_weight must be real"):
            loss(student, teacher, row_weight=complex_weight)


def test_masked_weights_check_their_masks():
    make = torch.classes.bitpare.MaskedWeights
    weight = torch.randn(100)
    with pytest.raises(
        RuntimeError, match="MaskedWeights: mask must be an int64 tensor of 2 words"
    ):
        make([weight], [torch.zeros(1, dtype=torch.int64)], True)
    held = make([weight], [torch.zeros(2, dtype=torch.int64)], True)
    for index in (-1, 1, 2**40):
        with pytest.raises(IndexError, match="MaskedWeights: 1 weights, got index"):
            held.set(index, torch.zeros(2, dtype=torch.int64))
