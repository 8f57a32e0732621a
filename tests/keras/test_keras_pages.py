"""The code in README.md and docs/ that shows Keras runs."""

import keras
import pytest

from pages import pages, run

KERAS = frozenset({"keras"})


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the same on every backend")
@pytest.mark.parametrize("page", pages(KERAS), ids=lambda page: page.name)
def test_the_code_in_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(page, KERAS)
    assert isinstance(names["model"], keras.Model)
