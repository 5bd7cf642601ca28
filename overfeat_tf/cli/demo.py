"""`overfeat demo`: the whole system in one go, on digits scattered over photographs."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from PIL import Image

from overfeat_tf.cli.options import write_json
from overfeat_tf.draw.pictures import contact_sheet, draw_boxes
from overfeat_tf.models.loading import load_run, read_config
from overfeat_tf.models.model import TASKS

NAME, RECIPE = "digits", "digits-quick"
SCENES = 200  # held-out, sent over gRPC
PICTURES = 12


def run(out: Path) -> None:
    """Train, evaluate, export, serve, detect over gRPC, score and draw; what is there already is not done again."""
    from serving.client.client import Client
    from serving.export.exporter import export
    from training.evaluation.evaluate import evaluate
    from training.fit.train import train
    from training.recipes import get_recipe
    from training.sources import open_source

    began = time.monotonic()
    recipe, source = get_recipe(RECIPE), open_source(NAME)
    folder, exported = out / "run", out / "saved_models" / NAME / "1"
    _say(1, f"train `{recipe.preset}` on the digit scenes: {', '.join(TASKS)}  ({folder})")
    train(recipe, source, folder)
    trained = time.monotonic()

    _say(2, f"evaluate the run on {SCENES} held-out scenes: digits and parts of photographs that it has not seen")
    model = load_run(folder)
    threshold = model.display_threshold
    in_process = evaluate(model, source, "test", limit=SCENES, display_threshold=threshold)
    click.echo(f"    mAP at IoU 0.5: {in_process['map50']:.3f}", err=True)

    _say(3, f"export a SavedModel  ({exported})")
    if not exported.exists():
        export(load_run(folder), exported.parent, 1, read_config(folder)["training"], in_process, measure=True)

    _say(4, "serve it over gRPC in a process of its own")
    pictures: list[Image.Image] = []

    def draw(record, answer) -> None:
        if len(pictures) < 2 * PICTURES and len(record.labels) > 0:
            names = [source.class_names[label] for label in record.labels]
            pictures.append(draw_boxes(record.image_bytes, truth=(record.boxes, names)))
            pictures.append(draw_boxes(record.image_bytes, answer, least_score=threshold))

    with _server(exported.parent) as address, Client(address, NAME) as client:
        _say(5, f"send {SCENES} held-out scenes to {address} as JPEG files, and score the answers")
        sent = time.monotonic()
        callbacks = {"detection": [draw]}
        served = evaluate(client, source, "test", limit=SCENES, callbacks=callbacks, display_threshold=threshold)
        answered = time.monotonic()
    sheet = contact_sheet(pictures, columns=6, titles=("truth", "answer") * 3)
    sheet.save(out / "detections.png")
    result = {
        **served,
        "map50_in_process": in_process["map50"],
        "seconds": round(time.monotonic() - began, 1),
        "seconds_training": round(trained - began, 1),
        "seconds_an_image_over_grpc": round((answered - sent) / SCENES, 4),
    }
    write_json(out / "result.json", result)
    click.echo(
        f"\nmAP at IoU 0.5: {served['map50']:.3f}   0.5:0.95: {served['map']:.3f}   "
        f"({served['images']} scenes over gRPC, scored by pycocotools; {result['seconds']:.0f} s in all)\n"
        f"in the picture: boxes from a score of {threshold:.2f}; of all such boxes {served['precision_displayed']:.0%} "
        f"are right, and they find {served['recall_displayed']:.0%} of the digits\n"
        f"picture:      {out / 'detections.png'}\n"
        f"figures:      {out / 'result.json'}\n"
        f"TensorBoard:  tensorboard --logdir {folder / 'logs'}\n"
        f"your images:  overfeat predict {exported} IMAGE..."
    )


@contextmanager
def _server(models: Path) -> Iterator[str]:
    """Run `overfeat serve` on a free loopback port until the block ends; yields HOST:PORT."""
    command = [sys.executable, "-m", "overfeat_tf.cli", "serve", str(models), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()


def _address(process: subprocess.Popen) -> str:
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        found = re.search(r" serving .* on (\S+)$", line.strip())
        if found:
            click.echo(f"   {found[0]}", err=True)
            return found[1]
    raise RuntimeError(f"the server did not start: {' '.join(lines[-3:])}")


def _say(step: int, text: str) -> None:
    click.echo(f"[{step}/5] {text}", err=True)
