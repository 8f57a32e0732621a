"""Fail unless each lower bound in pyproject.toml is the version that is installed.

tox's py311-min pins the lowest versions that numbabn promises to work with. This keeps the
promise and the pins the same: a bound that moves in one of them alone stops the environment.
"""

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement

EXTRAS = {"", "bench", "demo", "test"}

wrong = []
for line in requires("numbabn") or []:
    requirement = Requirement(line)
    if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in EXTRAS):
        continue
    if requirement.name == "numbabn":
        continue
    installed = version(requirement.name)
    bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if bounds != [installed]:
        wrong.append(f"{requirement.name}: {requirement.specifier} promised, {installed} tested")

if wrong:
    sys.exit("\n".join(wrong))
