"""`overfeat batch`: a row for each image whatever befalls it, also in several processes of which one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf
from small_model import SmallModel, png

beam = pytest.importorskip("apache_beam", reason="needs the extra `beam`")

from overfeat_tf.cli import main  # noqa: E402
from overfeat_tf.cli.batch import models, pipeline  # noqa: E402

BUNDLES = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"  # which retries a bundle that fails
COMMAND = [sys.executable, "-m", "overfeat_tf.cli", "batch"]


def _export(folder: Path, model: tf.Module, **signatures) -> str:
    tf.saved_model.save(model, str(folder / "1"), signatures)
    tasks = [task for task in ("classification", "detection") if task[:6] in " ".join(signatures)]
    (folder / "1" / "config.json").write_text(json.dumps({"model": {"labels": ["cat", "dog"], "tasks": tasks}}))
    return str(folder)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> str:
    """A detector that fails a whole batch for an image that it cannot read."""
    model = SmallModel(1)
    return _export(tmp_path_factory.mktemp("models") / "m", model, detect=model.detect)


@pytest.fixture
def images(tmp_path) -> Path:
    """Forty greys, of which three cannot be read."""
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(png(number))
    (folder / "05.png").write_bytes(b"no image")
    (folder / "17.png").write_bytes(b"")
    (folder / "23.png").write_bytes(png(23)[:40])
    (folder / "notes.md").touch()
    return folder.parent


def _table(output: Path) -> list[dict]:
    import pyarrow.parquet

    rows = [row for file in output.glob("*.parquet") for row in pyarrow.parquet.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["image"])


def _assert_complete(output: Path, images: Path, bad: tuple[str, ...] = ("05", "17", "23")) -> None:
    rows = _table(output)
    assert [row["image"] for row in rows] == sorted(str(file) for file in images.rglob("*.png"))
    assert {Path(row["image"]).stem for row in rows if row["status"]} == set(bad)
    for row in rows:
        if row["status"]:
            assert (row["boxes"], row["scores"], row["classes"]) == ([], [], [])
        else:
            assert row["boxes"] == [[0, 0, 1, 1]] and row["classes"] == ["cat"]
            assert row["scores"] == pytest.approx([int(Path(row["image"]).stem) / 255], abs=1e-6)


def test_two_processes_write_a_row_for_each_image(saved_model, images, tmp_path):
    output = tmp_path / "out"
    command = [*COMMAND, saved_model, f"{images}/**.png", "--output", output, "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "40 images, 3 unreadable" in done.stderr and done.stdout.strip() == str(output)
    assert "harness" not in done.stderr  # Beam's own chatter, of the other processes too
    _assert_complete(output, images)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2 and "expected an --output without a complete run" in again.stderr


def test_a_bundle_that_is_retried_writes_nothing_twice(saved_model, images, tmp_path, monkeypatch):
    loads, sizes, answer, load = [], [], models.LoadedModel.answer, models.load
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 400)
    monkeypatch.setattr(models, "load", lambda folder, *_: (loads.append(folder), load(folder))[1])

    def failing(self, data):
        sizes.append([len(image) for image in data])
        if len(sizes) == 3:
            raise RuntimeError("the machine goes away")
        return answer(self, data)

    monkeypatch.setattr(models.LoadedModel, "answer", failing)
    result = pipeline.run(saved_model, str(images), str(tmp_path / "out"), runner=BUNDLES)
    assert result.images >= 40 and len(sizes) > 3
    assert len(loads) == 1  # in the process, however many bundles there are
    assert all(sum(batch) <= 400 or len(batch) == 1 for batch in sizes) and max(map(len, sizes)) > 1
    _assert_complete(tmp_path / "out", images)


def test_a_list_of_paths_is_read_each_once_and_a_missing_one_has_a_row(saved_model, images, tmp_path):
    (images / "deep" / "23.png").unlink()
    paths = [str(images / "deep" / f"{number:02}.png") for number in (1, 2, 23, 2)]
    (tmp_path / "list.txt").write_text("\r\n".join([*paths, "", ""]), "utf-8-sig")
    result = pipeline.run(saved_model, str(tmp_path / "list.txt"), str(tmp_path / "out"))
    assert result[:2] == (3, 1)
    rows = _table(tmp_path / "out")
    assert [(row["image"], bool(row["status"])) for row in rows] == [(p, "23" in p) for p in paths[:3]]
    assert "No such file" in rows[2]["status"]


def test_a_classifier_has_rows_without_boxes(images, tmp_path):
    model = SmallModel(1)
    saved = _export(tmp_path / "classifier", model, classify=model.classify)
    pipeline.run(saved, f"{images}/deep/0[0-4].png", str(tmp_path / "out"))
    rows = _table(tmp_path / "out")
    assert len(rows) == 5 and all(row["boxes"] == [] and row["classes"] == ["short", "long"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_worker", "3"], "got '--num_worker'; did you mean '--num_workers'?"),
        (["b.png", "c.png"], "expected one INPUT_GLOB, in quotes if the shell would expand it; got 'b.png' too"),
        (["--task", "detecting"], "expected a task of classification, localization, detection; got 'detecting'"),
        (["--runner", "FlinkRunner", "--processes", "2"], "expected no --processes with --runner FlinkRunner"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    arguments, message, saved_model, images, tmp_path, monkeypatch, capsys
):
    command = ["overfeat", "batch", saved_model, f"{images}/*/*.png", "--output", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_inputs_that_match_nothing_are_refused(saved_model, tmp_path):
    for pattern in (f"{tmp_path}/*.jpg", str(tmp_path)):
        with pytest.raises(ValueError, match=r"^expected image files; '.*' matches none"):
            pipeline.run(saved_model, pattern, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^expected a text file of paths"):
        pipeline.run(saved_model, f"{tmp_path}/none.txt", str(tmp_path / "out"))


class _Slow(SmallModel):
    """Takes 50 ms an image."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def detect(self, image_bytes):
        seconds = 0.05 * tf.cast(tf.size(image_bytes), tf.float32)
        with tf.control_dependencies([self.spin(seconds[None])["turns"]]):
            return super().detect(tf.identity(image_bytes))


def _workers(parent: int) -> list[int]:
    """Find the worker processes below a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, above = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(above, []).append(pid)
    found, waiting = [], [parent]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.long
def test_a_killed_process_ends_the_run_and_the_same_command_begins_anew(tmp_path):
    slow, images, output = _Slow(1), tmp_path / "images", tmp_path / "out"
    saved = _export(tmp_path / "slow", slow, detect=slow.detect)
    images.mkdir()
    for number in range(120):
        (images / f"{number:03}.png").write_bytes(png(number))
    command = [*COMMAND, saved, str(images), "--output", str(output), "--processes", "2"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len(_workers(first.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(_workers(first.pid)[-1], signal.SIGKILL)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 1, error[-2000:]
    assert not list(output.glob("*.parquet"))
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    _assert_complete(output, images, ())
