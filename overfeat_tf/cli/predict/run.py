"""Run images through a run, a SavedModel or a served model, in batches, by stages or in concurrent requests."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.options import Changes, Connection, option_name, with_changes
from overfeat_tf.cli.predict.inputs import STDIN, Input, is_moving, read_inputs
from overfeat_tf.cli.predict.outputs import Answered, Outputs, Wanted, Writer
from overfeat_tf.draw.stages import StagedModel, draw_stages
from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.video import CAMERA, opencv
from overfeat_tf.models.loading import load
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Predictor, choose_task
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, LOCALIZATION, Task
from serving.errors import reason
from training.progress import Progress

BATCH = 8

Call = Callable[[Sequence[bytes]], Outputs]  # of a batch


def run(
    model: str,
    sources: Sequence[Path],
    server: str | None,
    wanted: Wanted,
    threshold: float | None,
    changes: Changes,
    stages: bool = False,
    connection: Connection | None = None,
    task: str | None = None,
    last: bool = False,
) -> int:
    """Run images through the model and write a picture of each; return how many have no answer or no picture.

    Each image gets a line, and its answer is in the JSON file as soon as it is known. An image that cannot be read, or
    that the server rejects, is reported on stderr, and its answer has the status. Pictures show the boxes that score at
    least `threshold`. By default this is the model's display threshold, 0.5 for a server, which does not report it, and
    0 for localization, whose guesses are all drawn. Of overlapping detections they show the best, unless `changes` ask
    for several. `stages` needs a run and adds a second picture per file with the stages of its answer. The default task
    is the last that the model was trained for.
    """
    if server is not None:
        if stages:
            raise ValueError("expected no --stages with --server, which returns only answers; use the model's run")
        if rejected := _without_display_option(changes):
            given = ", ".join(map(option_name, rejected))
            raise ValueError(f"expected no {given} with --server; a served model keeps the options of its export")
    if stages and any(map(is_moving, sources)):
        raise ValueError("expected images with --stages; got a video or a camera")
    if all(map(is_moving, sources)):
        opencv()  # beside images, videos that cannot be read are reported
    if wanted.best is not None:
        task = task or CLASSIFICATION.name
        if task != CLASSIFICATION.name:
            raise ValueError(f"expected --task classification with -n; got {task}")
    with ExitStack() as stack:
        predictor: Predictor
        if server is not None:
            from serving.client.client import Client

            predictor = stack.enter_context(Client(server, model, **(connection or {})))
        else:
            predictor = _load(model, changes, wanted.best, last)
        chosen = BY_NAME[choose_task(predictor, task)]
        if chosen == CLASSIFICATION and (wanted.save_crops or threshold is not None):
            given = "--save-crops" if wanted.save_crops else "--threshold"
            raise ValueError(f"expected {given} with a task that has boxes; classification has none")
        if threshold is None:
            threshold = predictor.least_score(chosen)
        # Localization returns a box for each of the best classes, and these boxes may coincide.
        several = changes.get("one_box_per_object") is False or chosen == LOCALIZATION
        images, call = read_inputs(sources, wanted.every), encoded_call(predictor, chosen)
        writer = Writer(wanted, sources, chosen, threshold, several)
        if server is not None:
            answered = _answer_by_server(call, images, predictor.concurrency)
        elif stages:
            answered = _answer_in_stages(StagedModel(predictor, chosen.name), images, writer)
        else:
            answered = _answer(call, images, BATCH if all(source.is_file() for source in sources) else 1)
        unknown = any(is_moving(source) or str(source) == STDIN for source in sources)
        stack.enter_context(writer)
        progress = stack.enter_context(Progress(None if unknown else len(sources)))
        if any(str(source).startswith(CAMERA) for source in sources):
            stack.enter_context(suppress(KeyboardInterrupt))  # a camera has no other end
        for one in answered:
            if problem := writer.write(one, stages):
                progress.report(one.image.source, problem)
            progress.advance(1)
    print(f"overfeat: {writer.summary()}", file=sys.stderr)
    return writer.failed


def _load(model: str, changes: Changes, best: int | None, last: bool) -> Predictor:
    """Load a run with other inference options and as many guesses as are wanted, or a SavedModel as it is."""
    loaded = load(model, last)
    if isinstance(loaded, Model):
        return with_changes(loaded, changes if best is None else {"top_k": best, **changes}, Path(model))
    # A SavedModel usually returns all boxes already, and its options cannot be changed.
    return with_changes(loaded, _without_display_option(changes))


def _without_display_option(changes: Changes) -> Changes:
    """Return the inference options without --several-per-object, which every model supports."""
    return {key: value for key, value in changes.items() if key != "one_box_per_object" or value}


def _answer(call: Call, images: Iterable[Input], batch: int) -> Iterator[Answered]:
    """Run images in batches."""
    images = iter(images)
    while group := list(islice(images, batch)):
        answers = iter(answer_each(call, [image.data for image in group if not image.problem]))
        for image in group:
            yield Answered(image, {} if image.problem else next(answers), image.problem)


def answer_each(call: Call, images: Sequence[bytes]) -> list[Outputs]:
    """Return each image's outputs; one that the model fails for, or memory has no room for, has a status alone."""
    if not images:
        return []
    try:
        outputs = call(images)
    except tf.errors.OpError as error:
        if len(images) == 1:
            return [{"status": reason(error.message).encode()}]
        return [answer for image in images for answer in answer_each(call, [image])]
    return [{key: values[row] for key, values in outputs.items()} for row in range(len(images))]


def _answer_in_stages(staged: StagedModel, images: Iterable[Input], writer: Writer) -> Iterator[Answered]:
    """Run images one at a time and draw the stages of each answer into its sheet."""
    if staged.task == CLASSIFICATION.name:
        print("overfeat: classification has no boxes, so its stages end with the class scores", file=sys.stderr)
    for image in images:
        if image.problem:
            yield Answered(image, {}, image.problem)
            continue
        answer, stages = staged(image.data)
        problem = ""
        if stages is not None:
            try:
                draw_stages(image.data, stages, staged.model, writer.threshold).save(writer.sheet(image))
            except OSError as error:
                answer, problem = {}, f"its stages cannot be written: {error.strerror or error}"
        yield Answered(image, answer, problem)


def _answer_by_server(call: Call, images: Iterable[Input], concurrency: int) -> Iterator[Answered]:
    """Run images in concurrent requests of one."""
    from serving.client.pipelining import Unsent, in_order

    unsent = (Unsent(image, image.data, image.problem) for image in images)
    for sent in in_order(call, unsent, concurrency):
        yield Answered(sent.item, sent.outputs, sent.problem)


def encoded_call(model: Predictor, task: Task) -> Call:
    """Return the call that answers a task for encoded images, with the status of each."""
    if task == CLASSIFICATION:
        return lambda images: _with_status(images, model.classify(images))
    return getattr(model, task.call)


def _with_status(images: Sequence[bytes], answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the status of each image, which the signature `classify` does not return."""
    read = [any(label for label in row) for row in answer["classes"]]
    statuses = [b"" if ok else decode_image(image)[1].numpy() for ok, image in zip(read, images, strict=True)]
    return {**answer, "status": np.array(statuses, object)}
