"""The code in README.md and docs/, run as a reader would: a page from top to bottom."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# A block that has one of these words needs what it names.
NEEDS = frozenset({"keras", "cuda", "numbabn.torch"})


def blocks(page: Path, having: frozenset[str] = frozenset()) -> list[str]:
    """The blocks of Python that run where there is what `having` names, of `NEEDS`."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if all(word in having for word in NEEDS if word in block)]


def pages(having: frozenset[str] = frozenset()) -> list[Path]:
    """The pages that have such blocks."""
    return [
        page
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        if blocks(page, having)
    ]


def run(page: Path, having: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Run them; gives the names that they leave."""
    names: dict[str, Any] = {}
    for block in blocks(page, having):
        exec(compile(block, page.name, "exec"), names)
    return names
