"""The plan of the house (docs/architecture.md): which module may import which, and the one page
that both launchers stand by. Read from the sources, so that nothing has to be there to import.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "numbabn"
MODULES = {
    ".".join(("numbabn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the top to the bottom. What stands on one floor knows nothing of what stands beside it.
FLOORS = [
    ["numbabn.__main__"],
    ["numbabn.commands"],
    ["numbabn.keras", "numbabn.torch"],
    ["numbabn"],
    ["numbabn.layer", "numbabn.tensors"],
    ["numbabn.functional", "numbabn.outputs"],
    ["numbabn.statistics"],
    ["numbabn.operands", "numbabn.embedded"],
    ["numbabn.targets"],
    ["numbabn.cpu", "numbabn.cuda"],
    ["numbabn.layout"],
    ["numbabn.arrays"],
    # The door to numba-cuda, by which a library without memory of its own allocates too.
    ["numbabn.cuda.runtime"],
    ["numbabn.checks"],
    [
        "numbabn.channels",
        "numbabn.files",
        "numbabn.formulas",
        "numbabn.interrupts",
        "numbabn.renorm",
    ],
]
# What is imported within a function, and why it waits.
LATE = {
    "numbabn.targets": "CUDA's launchers and libraries, when a first array on a device comes",
    "numbabn.cuda.availability": "numba-cuda, to say why nothing can run on a device",
    "numbabn.commands.warmup": "CUDA's kernels, when they are to be compiled ahead of time",
}
# Who may import what others have made, by the longest of these names. Commands print versions and
# set threads; what is typed is typed alike for both targets.
KNOWN_BY = {
    "numba": ["numbabn.cpu", "numbabn.embedded", "numbabn.commands"],
    "numba.types": ["numbabn.cpu", "numbabn.embedded", "numbabn.cuda"],
    "numba.cuda": ["numbabn.cuda"],
    "llvmlite": ["numbabn.cpu", "numbabn.embedded", "numbabn.commands"],
    "llvmlite.ir": ["numbabn.cpu", "numbabn.embedded", "numbabn.cuda.elements"],
    "keras": ["numbabn.keras"],
    "jax": ["numbabn.keras.bridges.jax", "numbabn.embedded.xla"],
    "tensorflow": [
        "numbabn.keras.layer",
        "numbabn.keras.bridges.tensorflow",
        "numbabn.embedded.tensorflow",
    ],
    "torch": ["numbabn.torch", "numbabn.keras.bridges.torch", "numbabn.tensors"],
    "cupy": [],
}
LAUNCHERS = [
    "mask_of",
    "statistics",
    "forward",
    "normalize",
    "constants",
    "backward",
    "renorm_correction",
    "merge_statistics",
    "copy",
    "mark",
]


@cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module):
    """What a module imports, in full: at once, and within functions."""
    parts = module.split(".")
    package = parts if MODULES[module].name == "__init__.py" else parts[:-1]
    at_once, late = set(), set()

    def visit(node, found):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) + 1 - child.level] if child.level else []
                base = ".".join([*above, *filter(None, [child.module])])
                for alias in child.names:
                    name = f"{base}.{alias.name}"
                    found.add(base if base in MODULES and name not in MODULES else name)
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            visit(child, late if is_function else found)

    visit(tree_of(module), at_once)
    return at_once, late


def is_within(name, package):
    """Whether a name is the package's, or of a module in it."""
    return name == package or name.startswith(f"{package}.")


def room_of(module):
    """The floor that a module stands on, counted from the bottom, and the room there."""
    rooms = [
        (len(room), len(FLOORS) - floor, room)
        for floor, names in enumerate(FLOORS)
        for room in names
        if module == room or (room != "numbabn" and is_within(module, room))
    ]
    assert rooms, f"{module} stands on no floor"
    _, floor, room = max(rooms)
    return floor, room


def ours(names):
    return sorted(name for name in names if name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    floor, room = room_of(module)
    at_once, late = imports(module)
    for name in ours(at_once | late):
        other_floor, other_room = room_of(name)
        assert other_room == room or other_floor < floor, f"{module} imports {name}"
    assert not ours(late) or module in LATE, f"{module} imports {ours(late)} late"


def test_no_module_imports_itself_by_way_of_others():
    """Within a room too, where the floors say nothing."""
    done = set()

    def visit(module, way):
        assert module not in way, f"a circle: {' -> '.join((*way, module))}"
        if module not in done:
            for name in ours(imports(module)[0]):
                visit(name, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_who_knows_a_library(module):
    for name in set.union(*imports(module)):
        known = [library for library in KNOWN_BY if is_within(name, library)]
        if known:
            rooms = KNOWN_BY[max(known, key=len)]
            assert any(is_within(module, room) for room in rooms), f"{module} imports {name}"


def parameters_of(module, name):
    """The names of a public function's parameters; it may come from a module beside it."""
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            given = node.args
            return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return parameters_of(f"{module.rpartition('.')[0]}.{node.module}", name)
    return None


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launchers_of_both_targets_take_the_same(name):
    cpu, cuda = (parameters_of(f"numbabn.{target}.launch", name) for target in ("cpu", "cuda"))
    assert cuda is not None
    # What a mask is expanded to is a matter of the CPU's vectors.
    assert [each for each in cpu if (name, each) != ("mask_of", "expand")] == cuda


def interface(target):
    """The page of the launchers' interface, at the top of the module."""
    text = ast.get_docstring(tree_of(f"numbabn.{target}.launch"))
    return re.search(r"^INTERFACE$\n(.*)^END OF INTERFACE$", text, re.DOTALL | re.MULTILINE)[1]


def test_both_launchers_have_the_same_page():
    assert interface("cpu") == interface("cuda")


def test_the_page_names_every_launcher():
    for name in LAUNCHERS:
        parameters = ", ".join(parameters_of("numbabn.cuda.launch", name))
        assert re.search(
            rf"^    {name}\({re.escape(parameters)}\)", interface("cuda"), re.MULTILINE
        )
