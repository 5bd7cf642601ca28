"""Which models and versions to serve: TF Serving's ModelServerConfig, from a file, a request or directories."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import FileSystemStoragePathSourceConfig

from serving.errors import invalid

VersionPolicy: Any = FileSystemStoragePathSourceConfig.ServableVersionPolicy


@dataclass(frozen=True)
class ServedModel:
    """One model of the configuration.

    Attributes:
        name: the name by which requests ask for it.
        base: the directory that holds a directory for each version.
        policy: which versions to serve; by default the newest.
        labels: version numbers by label.
    """

    name: str
    base: Path
    policy: Any = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, versions: Collection[int]) -> set[int]:
        """Select the versions to serve from those on disk."""
        match self.policy.WhichOneof("policy_choice"):
            case "all":
                return set(versions)
            case "specific":
                return set(versions) & set(self.policy.specific.versions)
        return set(sorted(versions)[-(self.policy.latest.num_versions or 1) :])


def from_directories(bases: Sequence[Path], all_versions: bool = False) -> list[ServedModel]:
    """Return the configuration of model directories, `saved_models/NAME`.

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
        models[base.name] = ServedModel(base.name, base, policy)
    return list(models.values())


def from_file(file: Path) -> list[ServedModel]:
    """Read a models.config, the text form of ModelServerConfig; relative paths start at its folder.

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
    """Read a ModelServerConfig by TF Serving's rules.

    Raises:
        StatusError: INVALID_ARGUMENT if it cannot be served.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    models: dict[str, ServedModel] = {}
    for model in config.model_config_list.config:
        name, base = model.name, model.base_path
        if not name:
            raise invalid(f"Expected every model of the list to have a name; the one at {base} has none")
        if name in models:
            raise invalid(f"Illegal to list model {name} multiple times in config list")
        if not Path(base).is_absolute():
            raise invalid(f"Expected model {name} to have an absolute path or URI; got base_path()={base}")
        if not model.model_platform and not model.model_type:
            fields = "model_type (deprecated) nor ModelServerConfig::model_platform"
            raise invalid(
                f"Illegal setting neither ModelServerConfig::{fields} of model {name}; set the latter to tensorflow"
            )
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(f"Expected model {name} to be of platform tensorflow; got {model.model_platform}")
        models[name] = ServedModel(name, Path(base), model.model_version_policy, dict(model.version_labels))
    return list(models.values())
