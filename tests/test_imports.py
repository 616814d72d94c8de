"""Who imports whom: nothing heavy before it is needed, never both backends, and arrows that go one way."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.small_runs import BACKENDS, small_arguments

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ppl_tvae"
HEAVY = ("torch", "jax", "pyro", "numpyro")
OTHER = {"numpyro": ("torch", "pyro"), "pyro": ("jax", "numpyro", "optax")}


def loaded_after(code: str, *arguments: str) -> set[str]:
    """The modules that are loaded after some Python code has run in another process.

    Those that a library has put down to be loaded when they are first used (as arviz-base 1.3 does) are not.
    """
    loaded = "(name for name, module in sys.modules.items() if type(module).__name__ != '_LazyModule')"
    listing = f"\nimport sys; print('modules:', *{loaded})"
    command = [sys.executable, "-c", code + listing, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import ppl_tvae, ppl_tvae.cli, ppl_tvae.config, ppl_tvae.runs, ppl_tvae.catalogue",
        "import ppl_tvae.training, ppl_tvae.evaluation, ppl_tvae.models.lattice, ppl_tvae.inference.bounds",
        "from ppl_tvae.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from ppl_tvae.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from ppl_tvae.cli import main; main(['models'])",
    ],
)
def test_neither_backend_is_loaded_before_it_is_needed(code):
    assert not loaded_after(code) & set(HEAVY)


@pytest.mark.parametrize("code", ["import ppl_tvae.cli", "from ppl_tvae.cli import main; main(['models'])"])
def test_the_command_line_starts_without_numpy(code):
    assert "numpy" not in loaded_after(code)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_run_loads_one_backend(backend, tmp_path):
    run = tmp_path / "run"
    # Figures first: where arviz-base has put JAX down to be loaded, matplotlib uses it, to see if arrays are JAX's.
    code = (
        "import sys; from ppl_tvae.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        f"assert main(['figures', {str(run)!r}]) == 0\n"
        f"assert main(['evaluate', {str(run)!r}, '--particles=2', '--max-sequences=2']) == 0\n"
    )
    loaded = loaded_after(code, *small_arguments(tmp_path, backend, run, steps=2))
    assert backend in loaded
    assert not loaded & set(OTHER[backend])


def modules() -> dict[str, Path]:
    paths = {path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): ROOT / path.with_suffix(".py") for path in paths}


MODULES = modules()


def statements(path: Path, everywhere: bool) -> list[ast.AST]:
    """Import statements: all of them, or those that run when the module is imported."""
    tree = ast.parse(path.read_text())
    found: list[ast.AST] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        later = isinstance(node, ast.FunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif everywhere or not (later or typing):
            pending += ast.iter_child_nodes(node)
    return found


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Full names of what a file imports; `from a import b` counts as a.b where that is a module."""
    names: set[str] = set()
    for node in statements(path, everywhere):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {path}"
            assert node.module
            names |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return names


def parts_of(names: set[str]) -> set[str]:
    """The parts of the package among imported names: models, inference, data, config, ..."""
    return {name.split(".")[1] for name in names if name.startswith("ppl_tvae.")}


# What each part may know. The parts that are not here lie above these and may know them all.
MAY_KNOW = {
    "errors": set(),
    "program": set(),
    "progress": set(),
    "data": {"data", "progress", "errors"},
    "inference": {"inference", "catalogue", "program", "errors"},
    "models": {"models", "program", "errors"},
    "catalogue": set(),
    "config": {"catalogue", "errors"},
    "own_program": {"config", "program", "errors"},
    "assembly": {"catalogue", "config", "data", "files", "models", "own_program", "program", "errors"},
    "files": {"errors"},
    "plain": set(),
    "records": set(),
    "runs": {"config", "files", "plain", "records", "errors"},
    "diagnostics": {"diagnostics", "data", "inference", "program", "progress", "errors"},
    "loop": {"runs", "data", "inference", "progress", "errors"},
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_go_one_way(module):
    names = imported(MODULES[module])
    part = module.split(".")[1] if "." in module else ""
    if part in MAY_KNOW:
        assert parts_of(names) <= MAY_KNOW[part]
    assert "ppl_tvae.cli" not in names
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"models", "inference", "tests", "benchmarks"}, "through the links at the top level"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_twins_know_their_host(module):
    roots = {name.split(".")[0] for name in imported(MODULES[module])}
    folder = MODULES[module].parent.name
    allowed = {"numpyro": {"jax", "numpyro"}, "pyro": {"torch", "pyro"}}.get(folder, set())
    assert not roots & set(HEAVY) - allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_twins_do_not_import_each_other(backend):
    (other,) = set(BACKENDS) - {backend}
    for name, path in MODULES.items():
        if backend in name.split("."):
            assert not any(other in each.split(".") for each in imported(path)), name


@pytest.mark.parametrize("part", ["models", "inference"])
def test_twins_have_the_same_file_names(part):
    files = {backend: {path.name for path in (PACKAGE / part / backend).glob("*.py")} for backend in BACKENDS}
    # JAX compiles its steps, their rendering too, and needs no recording; under its vmap what depends on no draw is
    # computed once, whatever the program. torch has bfloat16 products on a CPU, which XLA has to be told of; of oneDNN
    # it has to be told.
    own: dict[str, set[str]] = {}
    if part == "inference":
        own = {"pyro": {"batches.py", "graphs.py", "onednn.py", "particles.py"}, "numpyro": {"products.py"}}
    assert files["pyro"] - files["numpyro"] == own.get("pyro", set())
    assert files["numpyro"] - files["pyro"] == own.get("numpyro", set())


def test_no_module_imports_itself_through_others():
    graph = {name: imported(path, everywhere=False) & set(MODULES) for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_links_at_the_top_lead_into_the_package():
    for name in ("models", "inference"):
        assert (ROOT / name).resolve() == PACKAGE / name
