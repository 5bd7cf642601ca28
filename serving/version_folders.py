"""Version folders of SavedModels as TF Serving lays them out, `BASE/VERSION/`: finding them, reading their files."""

import json
from pathlib import Path

from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

# TF Serving's file names.
GRAPH_FILE = "saved_model.pb"
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
CONFIG_FILE = "config.json"  # our exports have it; other models do not
_SERVE_TAG = "serve"
MAX_VERSION = 2**63 - 1


class LoadError(Exception):
    """A version cannot be served; the message is one line."""


def find_versions(base: Path) -> dict[int, Path]:
    """Find a model's version directories, by number; other names are ignored, as TF Serving does.

    Raises:
        FileNotFoundError: there is none.
    """
    children = sorted(base.iterdir()) if base.is_dir() else []
    versions = {int(path.name): path for path in children if is_version(path.name) and path.is_dir()}
    if versions:
        return versions
    if not base.is_dir():
        got = "there is no such directory; check the path"
    elif (base / GRAPH_FILE).is_file():
        got = f"it is a SavedModel itself; give its parent, {base.parent}"
    else:
        names = ", ".join(path.name for path in children[:5]) or "nothing"
        got = f"it holds {names}; export a model there first"
    raise FileNotFoundError(f"expected version directories ({base}/1/{GRAPH_FILE}): {got}")


def fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the names, times and sizes of a file or a directory's files, which change whenever the content does."""
    found = []
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        try:
            stat = file.stat()
        except OSError:  # deleted since it was listed
            continue
        found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def read_signature_defs(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Read a SavedModel's signatures from its file, without loading it.

    Raises:
        LoadError: there is no such file, or it is not a SavedModel for serving.
    """
    file = path / GRAPH_FILE
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except OSError as error:
        raise LoadError(f"expected {file}, got: {error.strerror}; export the model again or remove {path}") from error
    except Exception as error:  # protobuf's DecodeError, whose module differs between its implementations
        raise LoadError(f"{file} is not a SavedModel: {error}; export the model again or remove {path}") from error
    for graph in saved_model.meta_graphs:
        if _SERVE_TAG in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise LoadError(f"{file} has no graph with the tag {_SERVE_TAG!r}; export it with tf.saved_model.save")


def read_display_threshold(path: Path) -> float | None:
    """Read the display threshold from an export's config.json; None if it has none."""
    try:
        threshold = float(json.loads((path / CONFIG_FILE).read_text())["display_threshold"])
    except (OSError, ValueError, TypeError, KeyError):  # another program's model
        return None
    return threshold if 0.0 <= threshold <= 1.0 else None


def is_version(name: str) -> bool:
    """Return whether a folder's name is a version's number, an int64."""
    # str.isdecimal alone accepts other scripts' digits, and int() thousands of digits takes long.
    return name.isascii() and name.isdecimal() and len(name) < 30 and int(name) <= MAX_VERSION
