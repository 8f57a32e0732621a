"""The examples in public docstrings give what they show, and those in README.md and docs/ run."""

import doctest

import pytest

import numbabn
from pages import pages, run


@pytest.mark.parametrize("name", sorted(numbabn.__all__))
def test_examples(name):
    found = doctest.DocTestFinder().find(
        getattr(numbabn, name),
        name,
        globs={each: getattr(numbabn, each) for each in numbabn.__all__},
    )
    assert any(test.examples for test in found)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in found:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


# What needs Keras or a device is run where they are, by the tests of those.
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_code_in_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_pages_are_found():
    assert [page.name for page in pages()] == ["README.md", "guide.md"]
    assert "gpu.md" in [page.name for page in pages(frozenset({"cuda"}))]
