"""Kernels compiled ahead of time: what is kept, and for whom."""

import offline
import pytest
from cuda.core import ObjectCode
from numba.cuda import codegen

from numbabn.cuda import compile, cubins
from processes import run_python

VARIANT = compile.element_kernel("gradient", "float16", "rows")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    cubins.folder.cache_clear()
    yield cubins.folder()
    cubins.folder.cache_clear()


def test_the_code_is_that_which_the_other_tests_look_at():
    name, code = compile.build(VARIANT, (9, 0))
    cubin = ObjectCode.from_cubin(code, name=name)
    text = codegen.run_nvdisasm(cubin, ["-c", "-ndf"])
    assert f".text.{name}" in text
    expected = offline.compiled(VARIANT)[9, 0]
    assert offline.instructions_of(text) == expected.instructions


def test_what_was_compiled_is_kept_for_each_architecture(folder, monkeypatch):
    small = compile.word_kernel("copy", 4)
    name, code = compile.kept(small, (8, 0))
    compile.kept(small, (9, 0))
    assert sorted(each.name for each in folder.iterdir()) == [
        "copy_32.sm_80.cubin",
        "copy_32.sm_90.cubin",
    ]
    monkeypatch.setattr(compile, "build", None)  # Nothing is compiled a second time.
    assert compile.kept(small, (8, 0)) == (name, code)


def test_other_sources_or_versions_have_a_folder_of_their_own(folder, monkeypatch):
    monkeypatch.setattr(cubins, "version", lambda package: "99")
    cubins._digest.cache_clear()
    cubins.folder.cache_clear()
    assert cubins.folder().parent == folder.parent
    assert cubins.folder() != folder
    monkeypatch.undo()
    cubins._digest.cache_clear()


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a file"))
    cubins.folder.cache_clear()
    cubins.keep("copy_32", "sm_90", "name", b"code")
    assert cubins.folder() is None
    assert cubins.load("copy_32", "sm_90") is None
    cubins.folder.cache_clear()


WARM = """
from numbabn.__main__ import main
from numbabn.cuda import compile

chosen = [compile.word_kernel("copy", size) for size in (1, 4)]
compile.variants = lambda: iter(chosen)
main(["warmup", "--cuda", "--arch", "sm_75", "--arch", "sm_90"])
"""


def test_warmup_compiles_for_devices_that_are_elsewhere(tmp_path):
    said = run_python(WARM, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_NUM_THREADS="1")
    (folder,) = tmp_path.glob("numbabn-cuda-*")
    assert said.startswith(f"2 CUDA kernels for sm_75 and sm_90 are in {folder}, after ")
    assert sorted(each.name for each in folder.iterdir()) == [
        f"copy_{bits}.{architecture}.cubin"
        for bits in (32, 8)
        for architecture in ("sm_75", "sm_90")
    ]


def test_warmup_refuses_what_is_no_architecture(tmp_path):
    program = WARM.replace("sm_75", "hopper")
    said = run_python(
        f"try:\n    exec({program!r})\nexcept SystemExit as error:\n    print(error)",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert said == "--arch must be like sm_90, got hopper\n"
