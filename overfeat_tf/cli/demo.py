"""`overfeat demo`: run the system end to end on digits scattered over photographs."""

import shlex
import time
from pathlib import Path

import click
from PIL import Image

from overfeat_tf.cli.options import write_json
from overfeat_tf.cli.serving import ServerProcess
from overfeat_tf.draw.pictures import contact_sheet, draw_boxes
from overfeat_tf.models.loading import load_run, read_config
from overfeat_tf.models.model import TASKS

NAME, RECIPE = "digits", "digits-quick"
SCENES = 200  # held-out scenes that are sent over gRPC
PICTURES = 12


def run(out: Path) -> None:
    """Train, evaluate, export, serve, detect over gRPC, score and draw. Skip training and export that are done."""
    from serving.client.client import Client
    from serving.export.exporter import export
    from training.evaluation.evaluate import evaluate
    from training.fit.train import train
    from training.recipes import get_recipe
    from training.sources import open_source

    started = time.monotonic()
    recipe, source = get_recipe(RECIPE), open_source(NAME)
    folder, exported = out / "run", out / "saved_models" / NAME / "1"
    _say(1, f"train `{recipe.preset}` on the digit scenes: {', '.join(TASKS)}  ({folder})")
    train(recipe, source, folder)
    trained = time.monotonic()

    _say(2, f"evaluate the run on {SCENES} held-out scenes, with digits and photographs that it has not seen")
    model = load_run(folder)
    threshold = model.display_threshold
    in_process = evaluate(model, source, "test", limit=SCENES, display_threshold=threshold)
    click.echo(f"    mAP at IoU 0.5: {in_process['map50']:.3f}", err=True)

    _say(3, f"export a SavedModel  ({exported})")
    if not exported.exists():
        export(load_run(folder), exported.parent, 1, read_config(folder)["training"], in_process, measure=True)

    _say(4, "serve it over gRPC in a separate process")
    pictures: list[Image.Image] = []

    def draw(record, answer) -> None:
        if len(pictures) < 2 * PICTURES and len(record.labels) > 0:
            names = [source.class_names[label] for label in record.labels]
            pictures.append(draw_boxes(record.image_bytes, truth=(record.boxes, names)))
            pictures.append(draw_boxes(record.image_bytes, answer, least_score=threshold))

    with ServerProcess(exported.parent) as server, Client(server.address, NAME) as client:
        click.echo(f"    {server.serving}", err=True)
        _say(5, f"send {SCENES} held-out scenes to {server.address} as JPEG files and score the detections")
        sent = time.monotonic()
        callbacks = {"detection": [draw]}
        served = evaluate(client, source, "test", limit=SCENES, callbacks=callbacks, display_threshold=threshold)
        answered = time.monotonic()
    sheet = contact_sheet(pictures, columns=6, titles=("truth", "answer") * 3)
    sheet.save(out / "detections.png")
    result = {
        **served,
        "map50_in_process": in_process["map50"],
        "seconds": round(time.monotonic() - started, 1),
        "seconds_training": round(trained - started, 1),
        "seconds_an_image_over_grpc": round((answered - sent) / SCENES, 4),
    }
    write_json(out / "result.json", result)
    click.echo(
        f"\nmAP at IoU 0.5: {served['map50']:.3f}   0.5:0.95: {served['map']:.3f}   "
        f"({served['images']} scenes over gRPC, scored by pycocotools; {result['seconds']:.0f} s in all)\n"
        f"drawn boxes:  those that score at least {threshold:.2f}; {served['precision_displayed']:.0%} of them are "
        f"right, and they find {served['recall_displayed']:.0%} of the digits\n"
        f"picture:      {out / 'detections.png'}\n"
        f"figures:      {out / 'result.json'}\n"
        f"TensorBoard:  tensorboard --logdir {shlex.quote(str(folder / 'logs'))}\n"
        f"your images:  overfeat predict {shlex.quote(str(exported))} IMAGE..."
    )


def _say(step: int, text: str) -> None:
    click.echo(f"[{step}/5] {text}", err=True)
