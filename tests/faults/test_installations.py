"""Where the package lies: in a zip file, under odd names, where nothing can be written."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import numbabn

pytestmark = [pytest.mark.jit, pytest.mark.timeout(600)]
AS_ROOT = hasattr(os, "getuid") and os.getuid() == 0
SOURCE = Path(numbabn.__file__).parent

CALL = """
import numpy as np
import numbabn
y = numbabn.normalize(np.float32([[1.0], [3.0]]), [2.0], [1.0], epsilon=1e-6)
np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-5)
from numbabn.cpu.compile import cache_folder
print(numbabn.__file__, cache_folder(), sep="|", end="")
"""


def call(path, home, run=(sys.executable,)):
    """Call the package that lies at `path`: where it is from, and where its kernels are kept."""
    environment = {name: each for name, each in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {
        "PYTHONPATH": str(path),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [*run, "-c", CALL],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    package, folder = done.stdout.split("|")
    return Path(package), Path(folder)


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return home


def copied(folder):
    return shutil.copytree(
        SOURCE, folder / "numbabn", ignore=shutil.ignore_patterns("__pycache__")
    ).parent


def test_in_a_zip_file(tmp_path, home):
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in SOURCE.rglob("*.py"):
            file.write(each, Path("numbabn") / each.relative_to(SOURCE))
    package, folder = call(path, home)
    assert package == path / "numbabn" / "__init__.py"
    assert home in folder.parents
    assert list(folder.glob("*.nbc"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others change such names")
def test_under_a_path_with_spaces_and_letters_of_other_scripts(tmp_path, home):
    site = copied(tmp_path / "bn 正規化 ü'\"$HOME")
    package, folder = call(site, home)
    assert package == site / "numbabn" / "__init__.py"
    assert folder == site / "numbabn" / "cpu" / "__pycache__"
    assert list(folder.glob("*.nbc"))


@pytest.mark.skipif(
    not AS_ROOT or shutil.which("setpriv") is None, reason="only root gives files away"
)
@pytest.mark.parametrize("home_is_writable", [True, False])
def test_by_another_user_than_the_installer(tmp_path, home, home_is_writable):
    """Who cannot write to the package; kernels go to the user's own folder, or nowhere."""
    site = copied(tmp_path / "site")
    for each in (site, *site.rglob("*"), *([] if home_is_writable else [home])):
        os.chown(each, 12345, 12345)
    # Root without the right to write where only others may is a user like any other.
    run = ["setpriv", "--bounding-set", "-dac_override", sys.executable]
    package, folder = call(site, home, run)
    assert package.parent == site / "numbabn"
    assert not list(site.rglob("*.nbc"))
    if home_is_writable:
        assert home in folder.parents
        assert list(folder.glob("*.nbc"))
    else:
        assert folder == Path("None")


@pytest.mark.skipif(not AS_ROOT, reason="only root can mount")
def test_read_only(tmp_path, home):
    """As in an image of a container, which even root cannot write to."""
    site = copied(tmp_path / "site")
    commands = [["mount", "--bind", site, site], ["mount", "-o", "remount,bind,ro", site]]
    for command in commands:
        done = subprocess.run([*map(str, command)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    try:
        _, folder = call(site, home)
    finally:
        subprocess.run(["umount", str(site)], check=True)
    assert home in folder.parents
    assert list(folder.glob("*.nbc"))
