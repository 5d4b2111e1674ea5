"""The rules of the house that a program can check: who may import whom, what is never imported, how long a method is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, BASELINES = ROOT / "pfedst", ROOT / "baselines" / "pfedst_baselines"
SOURCES = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}
METHODS = {path.relative_to(BASELINES): path.read_text() for path in BASELINES.rglob("*.py")}


def module_name(path: Path) -> str:
    parts = ["pfedst", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): text for path, text in SOURCES.items()}


def imported(text):
    """All names that a module imports, at its top, within functions, and for types only."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_modules(name):
    """The modules of pfedst that a module imports; of `from package import module` both."""
    return {found for found in imported(MODULES[name]) if found in MODULES}


GRAPH = {name: imported_modules(name) if name != "pfedst" else set() for name in MODULES}
"""Without `pfedst` itself, which names what is public, on whatever floor it is, and imports it on first use."""


def room(name):
    """`pfedst.client.state` -> `client`; `pfedst.simulation` -> `simulation`; `pfedst` itself is ""."""
    return ".".join(name.split(".")[1:2])


ROOMS = {room(name) for name in MODULES}

# -- directions ----------------------------------------------------------------------------------------------------

FLOORS = (
    {"__main__"},
    {"cli", "testing"},
    {"joining", "deployment"},
    {"comparison", "simulation", "inference"},
    {"server", "transport"},
    {"client"},
    {"reporting"},
    {"methods", "data", "tracking"},
    {"adapters", "evaluation", "state"},
    {"encoders", "messages"},
    {"seeds", "options", "configuration"},
    {"errors", "names", "child_processes", "time_left", "torch_threads"},
    {""},
    {"version", "renamed"},
)
"""A package imports from floors below its own, and from no other package of its floor."""
FORBIDDEN = {
    "server": {"client", "transport", "data", "adapters"},
    "client": {"reporting", "options"},
    "reporting": {"data", "tracking", "adapters"},
    "methods": {"state", "data", "tracking", "evaluation"},
    "messages": {"state", "encoders"},
    "comparison": {"server", "transport", "client", "methods", "data", "simulation"},
}
"""What floors do not say."""


def test_every_package_has_a_floor() -> None:
    assert [name for floor in FLOORS for name in floor if name not in ROOMS] == []
    assert sorted(ROOMS) == sorted(name for floor in FLOORS for name in floor)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_imports_lead_down(name) -> None:
    above = next(number for number, floor in enumerate(FLOORS) if name in floor)
    allowed = {name}.union(*FLOORS[above + 1 :]) - FORBIDDEN.get(name, set())
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        if room(module) == name
        for other in sorted(others)
        if room(other) not in allowed
    ]
    assert wrong == []


def strongly_connected(graph):
    """Groups of two nodes or more that all reach each other (Tarjan 1972)."""
    index, low, stack, groups = {}, {}, [], []

    def visit(node) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1 or node in graph[node]:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return groups


def test_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert strongly_connected(graph) == [["b", "c"], ["e"]]


def test_no_modules_import_each_other() -> None:
    assert strongly_connected(GRAPH) == []


def test_no_packages_import_each_other() -> None:
    packages = {name: set() for name in ROOMS}
    for module, others in GRAPH.items():
        packages[room(module)] |= {room(other) for other in others} - {room(module)}
    assert strongly_connected(packages) == []


def test_nothing_imports_the_baselines() -> None:
    for path, text in SOURCES.items():
        assert not [name for name in imported(text) if name.startswith("pfedst_baselines")], path


def test_the_baselines_see_methods_and_what_lies_below() -> None:
    allowed = ("adapters", "encoders", "errors", "messages", "methods", "names", "seeds", "")
    for path, text in METHODS.items():
        found = {name for name in imported(text) if name in MODULES}
        assert [name for name in sorted(found) if room(name) not in allowed] == [], path


# -- Lightning -----------------------------------------------------------------------------------------------------

LIGHTNING = {"client", "tracking", "cli", "simulation", "deployment", "data", "testing"}
"""Packages that may import Lightning."""
WITHOUT_LIGHTNING = ("pfedst.client.model", "pfedst.client.state", "pfedst.client.optimizers")
"""Modules of these packages that hold for any training loop."""


def test_lightning_is_where_training_is() -> None:
    found = {
        name
        for name, text in MODULES.items()
        if any(other.split(".")[0] in ("lightning", "pytorch_lightning") for other in imported(text))
    }
    assert sorted(name for name in found if room(name) not in LIGHTNING or name in WITHOUT_LIGHTNING) == []
    assert {"pfedst.client.module", "pfedst.client.training", "pfedst.tracking.round_hooks"} <= found


def test_messages_methods_and_the_model_of_a_client_come_without_lightning_and_images() -> None:
    """In a process of its own: a module that imports Lightning by way of another is found, too."""
    modules = [name for name in MODULES if room(name) in ("messages", "methods", "state", "options", "errors", "seeds")]
    modules += ["pfedst.client.model", "pfedst.server.server", "pfedst.server.screening"]
    program = "import importlib, sys\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules)
    program += "print([name for name in ('lightning', 'pfedst.data', 'pfedst.client.client') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


# -- Flower --------------------------------------------------------------------------------------------------------


def test_flower_is_imported_by_the_transport_and_the_deployment_alone() -> None:
    found = {name for name, text in MODULES.items() if any(other.split(".")[0] == "flwr" for other in imported(text))}
    assert {name for name in found if room(name) != "deployment"} == {"pfedst.transport.flower"}
    internals = {
        name
        for name in found
        if any(
            other.startswith(("flwr.super", "flwr.common", "flwr.proto", "flwr.cli."))
            for other in imported(MODULES[name])
        )
    }
    assert internals == {f"pfedst.deployment.{name}" for name in ("runtime", "grid", "pieces", "bundle")}


# -- the rest ------------------------------------------------------------------------------------------------------


def test_no_pickle() -> None:
    for path, text in SOURCES.items():
        assert "pickle" not in set(imported(text)), path
        assert "torch.save(" not in text, path
        # the one mention tells users how to convert a file themselves
        assert "torch.load(" not in text or path == Path("encoders/weights.py"), path


def code_lines(text: str) -> int:
    """Lines of a module that hold code: no blank ones, comments or docstrings."""
    tree = ast.parse(text)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    bodies = [node.body[0] for node in documented if ast.get_docstring(node)]
    prose = {line for body in bodies for line in range(body.lineno, body.end_lineno + 1)}
    lines = enumerate(text.split("\n"), 1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in prose)


def test_a_baseline_is_small_and_has_no_loop_over_epochs_no_device_and_no_file() -> None:
    for path, text in METHODS.items():
        assert code_lines(text) <= (25 if path.stem in ("fedavg", "local", "fedper", "fedbn") else 60), path
        names = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        assert not names & {"to", "cuda", "cpu", "device", "open", "DataLoader", "Path", "max_epochs", "backward"}, path
