"""Which models to serve, and which of their versions: TF Serving's ModelServerConfig, from a file or a request."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from serving.embedded.servables import Labels
from serving.refusal import invalid

if TYPE_CHECKING:
    VersionPolicy = Any  # a message inside a message, which a type checker does not know
else:
    VersionPolicy = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy


@dataclass(frozen=True)
class ServedModel:
    """Says what to serve of one model.

    Attributes:
        name: the name by which requests ask for it.
        base: the directory that holds a directory for each version.
        policy: which versions; the newest one if it does not say.
        labels: version numbers by label.
    """

    name: str
    base: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, versions: Collection[int]) -> set[int]:
        """Chooses the versions to serve among those that there are."""
        match self.policy.WhichOneof("policy_choice"):
            case "all":
                return set(versions)
            case "specific":
                return set(versions) & set(self.policy.specific.versions)
        return set(sorted(versions)[-(self.policy.latest.num_versions or 1) :])


class ConfigFile:
    """Notices when a file is saved.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        """Takes the file, whose present content is known."""
        self.path = path
        self._known = self._seen = self._stamp()

    def was_saved(self) -> bool:
        """Tells, once, that the file is another, and the same as at the last look: whole, not half written."""
        before, self._seen = self._seen, self._stamp()
        if self._seen in (self._known, None) or self._seen != before:
            return False
        self._known = self._seen
        return True

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def from_directories(
    bases: Sequence[Path], all_versions: bool = False, labels: Labels | None = None
) -> list[ServedModel]:
    """Describes model directories; a model's name is its directory's last component.

    Raises:
        ValueError: two directories have the same name, or none was given.
    """
    if not bases:
        raise ValueError("expected at least one model directory, got none: give the path of saved_models/NAME")
    policy = VersionPolicy(all=VersionPolicy.All()) if all_versions else VersionPolicy()
    models: dict[str, ServedModel] = {}
    for base in (Path(base).resolve() for base in bases):
        if base.name in models:
            raise ValueError(f"two model directories are called {base.name}: rename one, the name is how clients ask")
        models[base.name] = ServedModel(base.name, base, policy, (labels or {}).get(base.name, {}))
    return list(models.values())


def from_file(file: Path) -> list[ServedModel]:
    """Reads a models.config, the text form of ModelServerConfig; relative paths begin at its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a ModelServerConfig, or not one that can be served.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected a ModelServerConfig in {file}: there is no such file; check the path")
    try:
        config = text_format.Parse(file.read_text(), model_server_config_pb2.ModelServerConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a ModelServerConfig in text form: {error}") from error
    for model in config.model_config_list.config:
        if model.base_path:
            model.base_path = str(file.parent.resolve() / model.base_path)
    try:
        return from_config(config)
    except Exception as error:
        raise ValueError(f"{file}: {error}") from error


def from_config(config: model_server_config_pb2.ModelServerConfig) -> list[ServedModel]:
    """Reads a ModelServerConfig, by TF Serving's rules.

    Raises:
        Refusal: INVALID_ARGUMENT where it is none of those that can be served.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    models: dict[str, ServedModel] = {}
    for model in config.model_config_list.config:
        if not model.name:
            raise invalid(f"Expected every model of the list to have a name; the one at {model.base_path} has none")
        if model.name in models:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(f"Expected model {model.name} to be of platform tensorflow; got {model.model_platform}")
        models[model.name] = ServedModel(
            model.name, Path(model.base_path), model.model_version_policy, dict(model.version_labels)
        )
    return list(models.values())
