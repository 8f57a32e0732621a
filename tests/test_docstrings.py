"""The examples in public docstrings give what they show."""

import doctest

import pytest

import numbabn


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
