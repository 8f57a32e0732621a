"""Files and configurations that anyone may have written: nothing in them is executed."""

import io
import json
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest

import numbabn
from numbabn.__main__ import main

pytestmark = pytest.mark.only_on("cpu", reason="no device plays a part")

NAMES = ("gamma", "beta", "moving_mean", "moving_variance")
EXECUTED = []


class Executes:
    """What executes something where it is unpickled."""

    def __reduce__(self):
        return EXECUTED.append, (1,)


@pytest.fixture(autouse=True)
def nothing_executed():
    EXECUTED.clear()
    yield
    assert not EXECUTED


def member(array, **changes):
    """The bytes of an npy file, with changes in what it says of itself."""
    array = np.asarray(array)
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    text = repr(said).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def npz(compression=zipfile.ZIP_STORED, **members):
    """The bytes of an npz file of weights with 3 channels, some of them replaced."""
    whole = {f"{name}.npy": member(np.ones(3, np.float32)) for name in NAMES} | members
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in whole.items():
            if content is not None:
                file.writestr(name, content)
    return stream.getvalue()


def of(name, content):
    return npz(**{name: content})


def pickled_member():
    stream = io.BytesIO()
    np.save(stream, np.array([Executes()], dtype=object), allow_pickle=True)
    return stream.getvalue()


GOOD = npz()
HUGE = (1 << 40,)
REFUSED = {
    "nothing": (b"", "is not a file of weights that can be read: File is not a zip file"),
    "no file of ours": (b"\x89PNG" * 99, "is not a file of weights that can be read: File is not"),
    "a pickle": (
        pickle.dumps(Executes()),
        "is not a file of weights that can be read: File is not a zip file",
    ),
    "a pickle in it": (
        of("gamma.npy", pickled_member()),
        "is not a file of weights that can be read: gamma is of dtype object, not float32 or",
    ),
    "a pickle beside it": (
        of("evil.pkl", pickle.dumps(Executes())),
        "holds the weights ['beta', 'evil.pkl', 'gamma', 'moving_mean', 'moving_variance'], this",
    ),
    "cut off": (GOOD[: len(GOOD) // 2], "is not a file of weights that can be read: File is not"),
    "an unknown name": (of("evil.npy", member(np.ones(3, np.float32))), "holds the weights ['bet"),
    "a name outside": (of("../evil.npy", member(np.ones(3, np.float32))), "holds the weights ['.."),
    "a missing name": (of("beta.npy", None), "holds the weights ['gamma', 'moving_mean', 'moving"),
    "another shape": (
        of("beta.npy", member(np.ones(4, np.float32))),
        "holds beta of shape (4,), this layer has (3,)",
    ),
    "another dtype": (
        of("beta.npy", member(np.ones(3, np.int64))),
        "is not a file of weights that can be read: beta is of dtype int64, not float32 or",
    ),
    "more than there is": (
        of("beta.npy", member(np.ones(3, np.float32), shape=HUGE)),
        "is not a file of weights that can be read: beta has 140 bytes where its shape needs "
        "4398046511232",
    ),
    "a negative size": (
        of("beta.npy", member(np.ones(3, np.float32), shape=(-3, -1))),
        "is not a file of weights that can be read: beta has 140 bytes where its shape needs 140",
    ),
    "more than it says": (
        of("beta.npy", member(np.ones(3, np.float32)) + b"more"),
        "is not a file of weights that can be read: beta has 144 bytes where its shape needs 140",
    ),
    "compressed": (
        npz(zipfile.ZIP_DEFLATED),
        "is not a file of weights that can be read: gamma is compressed",
    ),
    "changed on its way": (
        GOOD.replace(np.ones(3, np.float32).tobytes(), np.full(3, 2, np.float32).tobytes(), 1),
        "is not a file of weights that can be read: Bad CRC-32 for file 'gamma.npy'",
    ),
    "an expression": (
        of("gamma.npy", member(np.ones(3, np.float32)).replace(b"(3,)", b"f()\t")),
        # What follows differs from one version of NumPy to the next.
        "is not a file of weights that can be read: ",
    ),
}


@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
@pytest.mark.parametrize("content", REFUSED)
def test_a_file_that_is_refused(tmp_path, content, built):
    written, message = REFUSED[content]
    path = tmp_path / "layer.npz"
    path.write_bytes(written)
    layer = numbabn.BatchNormalization()
    if built:
        layer(np.arange(6, dtype=np.float32).reshape(2, 3), training=True)
    before = {name: each.tobytes() for name, each in layer.weights.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {message}')}"):
        layer.load(path)
    assert {name: each.tobytes() for name, each in layer.weights.items()} == before


def test_the_file_that_is_not_refused(tmp_path):
    """What the files above differ from."""
    path = tmp_path / "layer.npz"
    path.write_bytes(GOOD)
    layer = numbabn.BatchNormalization().load(path)
    assert sorted(layer.weights) == sorted(NAMES)


def test_a_file_of_another_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("numbabn.files._array", lambda file, name: read.append(name))
    path = tmp_path / "layer.npz"
    path.write_bytes(of("moving_variance.npy", member(np.ones(1 << 20, np.float32))))
    layer = numbabn.BatchNormalization()
    layer.build(3)
    with pytest.raises(ValueError, match="holds moving_variance of shape"):
        layer.load(path)
    assert not read


def test_a_save_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "layer.npz"
    layer = numbabn.BatchNormalization()
    layer.build(3)
    layer.save(path)
    before = path.read_bytes()
    layer.build(4)

    def full(file, **arrays):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left on device"):
            layer.save(path)
    assert [path.read_bytes(), os.listdir(tmp_path)] == [before, ["layer.npz"]]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"axis": "__import__('os')"}, TypeError, "axis must be an int or a list of ints"),
        ({"momentum": "0.9"}, TypeError, "momentum must be a number"),
        ({"epsilon": [1e-3]}, TypeError, "epsilon must be a number of at least 0, got list"),
        ({"renorm_clipping": {"rmax": {"class_name": "Lambda"}}}, TypeError, "renorm clipping"),
        ({"renorm_clipping": {"eval": 1}}, ValueError, "renorm clipping"),
        ({"dtype": "object"}, TypeError, "dtype must be float32 or float64, got object"),
        ({"class_name": "os.system"}, TypeError, "unexpected keyword argument 'class_name'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_refused(config, error, message):
    whole = {**numbabn.BatchNormalization().get_config(), **config}
    with pytest.raises(error, match=message):
        numbabn.BatchNormalization.from_config(json.loads(json.dumps(whole)))


@pytest.mark.parametrize(
    "arguments",
    [["../info"], ["os.path"], ["extras"], ["table"], ["info", "--extra"], ["__main__"], [""]],
    ids=" ".join,
)
def test_a_command_line_that_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
