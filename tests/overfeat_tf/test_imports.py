"""Imports run one way: a package imports only itself and the packages that its line names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {f"overfeat_tf.{package}" for package in ("arguments", "boxes", "network", "options")}
MODELS = BASE | {f"overfeat_tf.{package}" for package in ("compute", "scan", "merge", "images", "models")}
LIBRARY = MODELS | {"overfeat_tf", "overfeat_tf.draw"}  # overfeat_tf itself: gives the public names
ALLOWED = {
    "overfeat_tf.arguments": set(),
    "overfeat_tf.boxes": set(),
    "overfeat_tf.network": {"overfeat_tf.arguments", "overfeat_tf.boxes"},
    "overfeat_tf.options": {"overfeat_tf.arguments", "overfeat_tf.network"},
    "overfeat_tf.compute": BASE,
    "overfeat_tf.scan": BASE | {"overfeat_tf.compute"},
    "overfeat_tf.merge": BASE,
    "overfeat_tf.images": set(),
    "overfeat_tf.models": MODELS | {"overfeat_tf.draw"},  # a prediction draws itself
    "overfeat_tf.draw": MODELS,
    "overfeat_tf": MODELS | {"training"},  # of.train and of.datasets, when first used
    # training and serving never import each other; the command line may import everything.
    "training": LIBRARY,
    "serving": LIBRARY,
    "overfeat_tf.cli": LIBRARY | {"training", "serving"},
}
PACKAGES = ("overfeat_tf", "training", "serving")


def modules(root):
    """Return the path of every module of the packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    dotted = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()}


def imports(name, path, known):
    """Yield the dotted names of the modules among `known` that a module imports, at its top or inside a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package import module` means the module; any other name comes from the package itself.
                inner = f"{source}.{alias.name}"
                yield from (found for found in [inner if inner in known else source] if found in known)


def package(name):
    """Return the package of a module: its package, and in overfeat_tf the folder or the module at the root."""
    return ".".join(name.split(".")[: 2 if name.startswith("overfeat_tf.") else 1])


def violations(root):
    """List imports upward or sideways, unknown packages, and import cycles, one line each."""
    known = modules(root)
    found = [f"{name} is in no package of ALLOWED: add it" for name in known if package(name) not in ALLOWED]
    edges = {name: set(imports(name, path, known)) for name, path in known.items()}
    for name, others in edges.items():
        allowed = ALLOWED.get(package(name), set()) | {package(name)}
        found += [f"{name} imports {other}" for other in sorted(others) if package(other) not in allowed]
    return found + [f"{name} is in a circle of imports" for name in edges if name in reached(edges, name)]


def reached(edges, name):
    """Return the modules that a module imports, directly or not."""
    seen, waiting = set(), list(edges[name])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += edges[other]
    return seen


def test_imports_run_one_way():
    assert len(modules(ROOT)) > 20
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("overfeat_tf.boxes", "from overfeat_tf.scan import dense_scan as s", "imports overfeat_tf.scan.dense_scan"),
        ("overfeat_tf.scan.dense_scan", "import overfeat_tf.models.model", "imports overfeat_tf.models.model"),
        ("overfeat_tf.scan.dense_scan", "from ..models.model import Model", "imports overfeat_tf.models.model"),
        ("overfeat_tf.models.model", "from overfeat_tf import detect", "imports overfeat_tf"),
        ("overfeat_tf.network.convnet", "def f():\n    import training.fit.train", "imports training.fit.train"),
        ("overfeat_tf.models.model", "from overfeat_tf.cli import main", "imports overfeat_tf.cli"),
        ("serving.server", "from training.fit import train", "imports training.fit.train"),
        ("training.fit.train", "if True:\n    from serving import server", "imports serving.server"),
        ("training.fit.train", "from overfeat_tf.cli import main", "imports overfeat_tf.cli"),
        ("overfeat_tf.shed", "", "is in no package of ALLOWED: add it"),
        ("overfeat_tf.models.model", "from . import model", "is in a circle of imports"),
        # Allowed: a package below, the same package, and from the command line anything.
        ("overfeat_tf.models.model", "import tensorflow\nfrom overfeat_tf import boxes", None),
        ("overfeat_tf.scan.dense_scan", "from overfeat_tf.network import convnet", None),
        ("overfeat_tf.cli", "from training.fit import train\nfrom serving import server", None),
        ("training.fit.train", "from overfeat_tf.models.model import Model", None),
    ],
)
def test_the_checker_catches_what_it_is_for(tmp_path, module, line, expected):
    for name in (
        *("overfeat_tf/__init__", "overfeat_tf/boxes", "overfeat_tf/scan/dense_scan", "overfeat_tf/models/model"),
        *("overfeat_tf/network/convnet", "overfeat_tf/cli/__init__", "training/fit/train", "serving/server"),
    ):
        (tmp_path / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    assert violations(tmp_path) == []
    path = tmp_path / module.replace(".", "/")
    (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).write_text(line)
    assert violations(tmp_path) == ([f"{module} {expected}"] if expected else [])


def test_the_package_and_its_tables_import_without_tensorflow():
    quick = "overfeat_tf, overfeat_tf.cli.main, overfeat_tf.options, overfeat_tf.network.presets, training.sources"
    code = f"import sys, {quick}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
