"""Model directories: which version is loaded, and a clear line for each that cannot be."""

import logging
import re
import shutil

import pytest
from small_model import png
from stock_requests import classify_request, predict_request, write_warmup

from serving.embedded.config import from_directories
from serving.embedded.servables import Models, Servable
from serving.embedded.version_manager import VersionManager, load_version, warm_up
from serving.version_folders import LoadError

MAX_BYTES = 1 << 20


def _load(*bases) -> list[Servable]:
    """Loads the newest versions once."""
    models, wanted = Models(), from_directories(bases)
    manager = VersionManager(models, MAX_BYTES)
    try:
        manager.start(wanted)
    finally:
        manager.close()
    return [servable for name in sorted(models.names) for servable in models.served(name).values()]


def _copy(model_dir, tmp_path, version="1"):
    shutil.copytree(model_dir / version, tmp_path / "m" / version)
    return tmp_path / "m"


def test_the_newest_version_is_loaded_by_number(model_dir, tmp_path):
    base = _copy(model_dir, tmp_path)
    shutil.copytree(model_dir / "2", base / "00010")
    (base / "11.partial").mkdir()
    (servable,) = _load(base)
    assert (servable.name, servable.version) == ("m", 10)
    assert {"detect", "serving_default"} <= servable.signatures.keys() & servable.signature_defs.keys()


def test_a_path_without_versions_says_what_is_wrong(model_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in [
        (tmp_path / "absent", "there is no such directory; check the path"),
        (tmp_path / "empty", "it holds nothing; export a model there first"),
        (model_dir / "1", f"it is a SavedModel itself; give its parent, {model_dir}"),
    ]:
        with pytest.raises(FileNotFoundError) as caught:
            _load(path)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_two_models_of_one_name_are_refused(model_dir, tmp_path):
    with pytest.raises(ValueError, match="two model directories are called m"):
        _load(model_dir, _copy(model_dir, tmp_path))


def test_a_version_without_a_model_is_refused(tmp_path):
    base = tmp_path / "m"
    (base / "2").mkdir(parents=True)
    with pytest.raises(LoadError, match=r"expected .*2/saved_model.pb, got: No such file"):
        _load(base)
    (base / "2" / "saved_model.pb").write_bytes(b"\xffnot a protobuf")
    with pytest.raises(LoadError, match=r"saved_model.pb is not a SavedModel"):
        _load(base)


def test_warm_up_replays_both_kinds_of_request(model_dir, tmp_path):
    servable = load_version("m", 2, model_dir / "2", MAX_BYTES)
    file = tmp_path / "requests"
    shutil.copyfile(next(model_dir.glob("2/assets.extra/*")), file)
    assert warm_up(servable, file, MAX_BYTES) == 2
    assert warm_up(servable, tmp_path / "absent", MAX_BYTES) == 0


def test_a_load_says_that_it_begins_and_how_long_it_took(model_dir, caplog):
    caplog.set_level(logging.INFO)
    load_version("m", 2, model_dir / "2", MAX_BYTES)
    begun, ended = [line for line in caplog.messages if line.startswith(("loading m", "m version"))]
    assert begun == "loading m version 2"
    assert re.fullmatch(r"m version 2: loaded in [\d.]+ s, warmed up in [\d.]+ s \(2 requests\)", ended)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (predict_request("detect", image_bytes=[b"nope"]), "failed at record 2: Unknown image file format"),
        (predict_request("nope", image_bytes=[png()]), 'failed at record 2: Serving signature key "nope" not found'),
        (classify_request(), "failed at record 2: Input is empty"),
    ],
)
def test_a_warm_up_request_that_fails_makes_the_load_fail(model_dir, tmp_path, request_, message):
    base = _copy(model_dir, tmp_path)
    write_warmup(base / "1", predict_request("detect", image_bytes=[png()]), request_)
    with pytest.raises(LoadError, match=message):
        _load(base)


def test_a_warm_up_file_that_is_no_tfrecord_makes_the_load_fail(model_dir, tmp_path):
    base = _copy(model_dir, tmp_path, "2")
    file = next(base.glob("2/assets.extra/*"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(LoadError, match="failed at record 1"):
        _load(base)
