"""The packages `training` and `serving` beside this one, whose names are those of ordinary files."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("training", "serving")


def require_own_packages() -> None:
    """Raise ImportError, naming the file, where Python finds another `training` or `serving` before ours."""
    for name in PACKAGES:
        found = _location(name)
        if found is not None and not found.resolve().is_relative_to(ROOT / name):
            raise ImportError(
                f"expected overfeat_tf's own package '{name}'; '{found}' comes first and has its name: rename it, or "
                "start Python from another folder"
            )


def _location(name: str) -> Path | None:
    """Return the file or folder that `import name` takes; None where it finds nothing."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a specification, as tests and notebooks make them
        return Path(getattr(sys.modules[name], "__file__", None) or name)
    if spec is None:
        return None
    return Path(spec.origin or next(iter(spec.submodule_search_locations or [name])))
