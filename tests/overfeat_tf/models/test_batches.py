"""The four calls: batched as alone, in a graph as eager, and each against plain numpy on what the scan gives."""

import zlib
from dataclasses import replace
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from plain_merging import plain_merge
from small_network import LABELS, OPTIONS, encode, picture, standardize

import overfeat_tf as of
from overfeat_tf.models.batches import Inference
from overfeat_tf.models.inference import classify, detect, localize
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan import features
from overfeat_tf.scan.dense_scan import ScaleScan, run_views, scan


@pytest.fixture(scope="module")
def inference(network):
    return Inference(network, LABELS, OPTIONS)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def claims(width, height):
    """Change the size that a PNG's header claims, with the header's checksum right."""
    png = encode(picture(4, 4))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


SIDEWAYS = picture(90, 60, seed=5)
GOOD = {
    "jpeg": encode(picture(70, 100), "JPEG"),
    "gray": encode(Image.fromarray(picture(64, 64, 1)).convert("L")),
    "alpha": encode(Image.fromarray(picture(50, 80, 2)).convert("RGBA")),
    "16 bits": encode((picture(80, 60, 3)[..., 0].astype(np.uint16) << 8) + 7),
    "sideways": encode(SIDEWAYS, exif=turned(6)),
    "one pixel": encode(picture(1, 1)),
    "strip": encode(picture(5, 250, 4)),
    "column": encode(picture(250, 5, 4)),
}
BROKEN = {
    "empty": b"",
    "text": b"an image, I promise",
    "cut off": GOOD["gray"][: len(GOOD["gray"]) // 2],
    "huge": claims(2**31 - 1, 2**31 - 1),
}
BATCH = [GOOD["jpeg"], BROKEN["cut off"], *list(GOOD.values())[1:], *BROKEN.values()]
STATUS = [data in BROKEN.values() for data in BATCH]
ENCODED_CALLS = ("detect", "localize", "classify")
PIXEL_CALLS = ("detect_images", "localize_images", "classify_images", "extract_features")


def numpy_of(outputs):
    return {key: value.numpy() for key, value in outputs.items()}


@pytest.fixture(scope="module")
def batched(inference):
    return {call: numpy_of(getattr(inference, call)(tf.constant(BATCH))) for call in ENCODED_CALLS}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape and found[key].dtype == value.dtype, key
        if value.dtype == object:
            assert found[key].tolist() == value.tolist()
        else:
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ENCODED_CALLS)
def test_an_image_is_answered_in_a_batch_as_alone(inference, batched, call):
    alone = [numpy_of(getattr(inference, call)(tf.constant([data]))) for data in BATCH]
    assert_equal(batched[call], {key: np.concatenate([row[key] for row in alone]) for key in alone[0]})


@pytest.mark.parametrize(
    ("views", "calls"),
    [
        ("dense", ("detect", "classify")),
        ("ten", ("localize",)),
        *(pytest.param(views, ENCODED_CALLS, marks=pytest.mark.long) for views in ("dense", "ten")),
    ],
)
def test_images_with_equal_canvases_go_together_and_are_answered_as_alone(network, views, calls):
    alone, together = (
        Inference(network, LABELS, replace(OPTIONS, scales=(1, 2), views=views, flips=True, images_at_once=number))
        for number in (1, 4)
    )
    # Of a block of four: two of one size, two of another whose canvases are equal, and one that cannot be read.
    batch = [
        GOOD["jpeg"],
        BROKEN["text"],
        encode(picture(70, 100, 6)),
        GOOD["gray"],
        encode(picture(128, 128, 7)),
        encode(picture(32, 32, 8)),
    ]
    with mock.patch("overfeat_tf.models.together.run_views", wraps=run_views) as run:
        for call in calls:
            graph = tf.function(getattr(together, call), [tf.TensorSpec([None], tf.string)], autograph=False)
            assert_equal(numpy_of(graph(tf.constant(batch))), numpy_of(getattr(alone, call)(tf.constant(batch))))
            assert shapes(graph(tf.zeros([0], tf.string))) == empty_shapes(numpy_of(graph(tf.constant(batch[:1]))))
    assert run.call_count == len(calls)  # one graph for groups of any size
    images = tf.constant(np.stack([picture(60, 90, seed) for seed in range(3)]))
    for call in (f"{call}_images" for call in calls):
        assert_equal(numpy_of(getattr(together, call)(images)), numpy_of(getattr(alone, call)(images)))
    if "detect" in calls:
        assert not together.detect_images(tf.zeros([2, 0, 9, 3], tf.uint8))["num_detections"].numpy().any()


def shapes(answer):
    return {key: tuple(value.shape) for key, value in answer.items()}


def empty_shapes(answer):
    """Give the shapes that an empty batch's answer must have, from another batch's."""
    return {key: (0, *value.shape[1:]) for key, value in answer.items()}


@pytest.mark.parametrize("call", ENCODED_CALLS)
def test_a_graph_answers_as_eager_calls_do(inference, batched, call):
    graph = tf.function(getattr(inference, call), [tf.TensorSpec([None], tf.string)], autograph=False)
    assert_equal(numpy_of(graph(tf.constant(BATCH))), batched[call])
    nobody = tf.zeros([0], tf.string)
    assert shapes(graph(nobody)) == shapes(getattr(inference, call)(nobody)) == empty_shapes(batched[call])


@pytest.mark.parametrize("call", PIXEL_CALLS)
def test_pixels_are_answered_in_a_graph_and_batch_as_eager_and_alone(inference, call):
    images = np.stack([picture(60, 90, seed) for seed in range(3)])
    together = numpy_of(getattr(inference, call)(tf.constant(images)))
    alone = [numpy_of(getattr(inference, call)(tf.constant(image[None]))) for image in images]
    assert_equal(together, {key: np.concatenate([row[key] for row in alone]) for key in alone[0]})
    graph = tf.function(getattr(inference, call), [tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False)
    assert_equal(numpy_of(graph(tf.constant(images))), together)
    nobody = tf.constant(images[:0])
    assert shapes(graph(nobody)) == shapes(getattr(inference, call)(nobody)) == empty_shapes(together)


@pytest.mark.parametrize("options", [{"localize_by": "accumulated"}, {"scale_fit": "exact", "flips": True}])
def test_the_options_of_localization_hold_in_a_graph_and_a_batch(network, options):
    inference = Inference(network, LABELS, replace(OPTIONS, **options))
    graph = tf.function(inference.localize, [tf.TensorSpec([None], tf.string)], autograph=False)
    some = [GOOD["jpeg"], BROKEN["empty"], GOOD["strip"]]
    alone = [numpy_of(inference.localize(tf.constant([data]))) for data in some]
    together = numpy_of(graph(tf.constant(some)))
    assert_equal(together, {key: np.concatenate([row[key] for row in alone]) for key in alone[0]})


def test_there_are_detections_of_several_classes(batched):
    counts = batched["detect"]["num_detections"][~np.array(STATUS)]
    assert counts[:-3].min() >= 1  # else the tests here would compare nothing with nothing
    assert counts.max() > 2
    assert len(np.unique(batched["detect"]["detection_classes"])) > 2


def test_detections_keep_to_the_contract(batched):
    found = batched["detect"]
    for row in range(len(BATCH)):
        count = int(found["num_detections"][row])
        scores, classes, boxes = (found[f"detection_{name}"][row] for name in ("scores", "classes", "boxes"))
        assert (np.diff(scores) <= 0).all() and (scores[:count] > 0).all() and scores.max() < 1
        assert boxes.min() >= 0 and boxes.max() <= 1
        assert (boxes[:count, 2:] > boxes[:count, :2]).all()
        names = [("", *LABELS)[int(label)].encode() for label in classes]
        assert found["detection_class_entities"][row].tolist() == names
        assert set(classes[:count]) <= {1, 2, 3}
        assert not scores[count:].any() and not classes[count:].any() and not boxes[count:].any()
    assert found["detection_boxes"].shape == (len(BATCH), 12, 4)
    sizes = [(0, 0) if bad else tf.io.decode_image(data).shape[:2] for data, bad in zip(BATCH, STATUS, strict=True)]
    sizes[BATCH.index(GOOD["sideways"])] = (60, 90)  # as displayed
    assert found["image_size"].tolist() == [list(size) for size in sizes]


@pytest.mark.parametrize("call", ENCODED_CALLS)
def test_an_image_that_cannot_be_read_says_why_and_has_no_answer(batched, call):
    answer = batched[call]
    assert [status != b"" for status in answer["status"]] == STATUS
    for key, value in answer.items():
        if key != "status":
            empty = b"" if value.dtype == object else 0
            assert (value[STATUS] == empty).all(), key
    assert not np.isnan(answer["scores" if call == "classify" else "detection_scores"]).any()


def test_a_turned_image_is_answered_as_displayed(inference, batched):
    upright = encode(np.rot90(SIDEWAYS, -1))
    alone = numpy_of(inference.detect(tf.constant([upright])))
    row = BATCH.index(GOOD["sideways"])
    assert_equal({key: value[row : row + 1] for key, value in batched["detect"].items()}, alone)


@pytest.mark.parametrize("shape", [(2, 0, 9, 3), (2, 9, 0, 3)])
def test_images_without_a_pixel_have_no_answer(inference, shape):
    nothing = tf.zeros(shape, tf.uint8)
    assert inference.detect_images(nothing)["num_detections"].numpy().tolist() == [0, 0]
    assert not inference.localize_images(nothing)["detection_scores"].numpy().any()
    assert not inference.classify_images(nothing)["probs"].numpy().any()


# --- The tasks, plainly ----------------------------------------------------------------------------------------------


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def windows_of(network, image, options):
    """Give each scan's softmax scores [n, classes] without the background and boxes [n, 4]."""
    scans = scan(network, tf.constant(image), options)
    return [(softmax(s.logits.numpy())[..., 1:].reshape(-1, 3), s.boxes.numpy().reshape(-1, 4)) for s in scans]


def merge_plainly(image, votes, threshold):
    """Merge votes (score, class, normalised box) as boxes in pixels; (score, class, normalised box) by score."""
    sides = np.array(image.shape[:2] * 2, np.float32)
    boxes = np.reshape([np.clip(box, 0, 1) for _, _, box in votes], (-1, 4)).astype(np.float32) * sides
    boxes, scores, classes, _ = plain_merge(boxes, [v[0] for v in votes], [v[1] for v in votes], threshold)
    return list(zip(scores, classes, np.clip(boxes / sides, 0, 1), strict=True))


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(("size", "seed"), [((70, 100), 0), ((120, 55), 6), ((25, 160), 4)])
def test_detect_is_proposing_and_merging(network, size, seed, flips):
    options = InferenceOptions(
        scales=(1, 2, 3), flips=flips, top_k=2, min_score=0.4, max_windows=60, merge_threshold=0.8, max_detections=12
    )
    image = picture(*size, seed)
    votes = []
    for probabilities, boxes in windows_of(network, image, options):
        proposed = np.argsort(-probabilities.max(axis=0))[: options.top_k]  # (a): by their maximum over locations
        votes += [(p[label], label + 1, box) for p, box in zip(probabilities, boxes, strict=True) for label in proposed]
    votes.sort(key=lambda vote: -vote[0])
    votes = [vote for vote in votes[: options.max_windows * (2 if flips else 1)] if vote[0] >= options.min_score]
    expected = merge_plainly(image, votes, options.merge_threshold)[: options.max_detections]
    assert 1 < len(expected) < len(votes)

    found = detect(network, scan(network, tf.constant(image), options), tf.shape(image)[:2], options).answer
    count = int(found.count)
    assert count == len(expected)
    np.testing.assert_allclose(found.scores[:count], [s / (1 + s) for s, _, _ in expected], rtol=1e-3)
    np.testing.assert_array_equal(found.classes[:count], [label for _, label, _ in expected])
    np.testing.assert_allclose(found.boxes[:count], [box for _, _, box in expected], atol=1e-3)
    assert found.boxes.shape == (12, 4) and not found.classes[count:].numpy().any()


def test_a_class_that_no_scale_proposes_has_no_vote_at_any_least_score(network):
    image, found = picture(70, 100), []
    for least in (0.0, 1e-9):
        options = InferenceOptions(scales=(1, 2), top_k=1, min_score=least, max_windows=10_000)
        found.append(detect(network, scan(network, tf.constant(image), options), tf.shape(image)[:2], options))
    np.testing.assert_array_equal(found[0].candidates.classes, found[1].candidates.classes)


@pytest.mark.parametrize(("size", "seed"), [((70, 100), 0), ((120, 55), 6)])
def test_localize_gives_each_of_the_top_classes_its_best_merged_box(network, size, seed):
    options = InferenceOptions(scales=(1, 2, 3), top_k=2, max_windows=50, merge_threshold=0.8)
    image = picture(*size, seed)
    windows = windows_of(network, image, options)
    mean = np.mean([probabilities.max(axis=0) for probabilities, _ in windows], axis=0)
    top = np.argsort(-mean)[:2]
    probabilities, boxes = (np.concatenate(parts) for parts in zip(*windows, strict=True))
    expected = []
    for label in top:
        best = np.argsort(-probabilities[:, label], kind="stable")[: options.max_windows // 2]
        votes = [(probabilities[row, label], 1, boxes[row]) for row in best]
        expected.append(merge_plainly(image, votes, options.merge_threshold)[0][2])

    found = localize(network, scan(network, tf.constant(image), options), tf.shape(image)[:2], options).answer
    np.testing.assert_array_equal(found.classes, top + 1)
    np.testing.assert_allclose(found.scores, mean[top], rtol=1e-4)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-3)
    assert int(found.count) == 2
    assert not np.allclose(found.boxes[0], found.boxes[1])


@pytest.mark.parametrize(
    ("size", "scales", "flips", "per_class"),
    [((70, 100), (1, 2), False, False), ((120, 55), (2,), True, False), ((70, 100), (1, 2), False, True)],
)
def test_localize_by_accumulation_is_4_3_step_by_step(network, size, scales, flips, per_class):
    options = InferenceOptions(
        scales=scales, flips=flips, top_k=2, max_windows=1, localize_by="accumulated", merge_threshold=0.8
    )
    if per_class:
        keras.utils.set_random_seed(4)
        network = build("tiny", 3, background=True, per_class=True)
        outputs = network.as_model()(tf.cast(picture(100, 100)[None], tf.float32))
        standardize(network.classifier, outputs["scores"], 0.0, 1.5)
        standardize(network.regressor, outputs["boxes"], np.tile([0.2, 0.2, 0.8, 0.8], 3), 0.15)
    image = picture(*size, 6)
    votes = []
    for one in scan(network, tf.constant(image), options):
        scores = softmax(one.logits.numpy())[..., 1:].reshape(-1, 3)
        boxes = one.boxes.numpy().reshape(len(scores), -1, 4)
        proposed = np.argsort(-scores.max(axis=0))[:2]  # (a) C_s
        for label in proposed:  # (b) B_s: a box of every location; (c) their union
            own = boxes[:, label if per_class else 0]
            votes += [(score, label + 1, box) for score, box in zip(scores[:, label], own, strict=True)]
    merged = merge_plainly(image, votes, options.merge_threshold)  # (d-g), by falling accumulated score
    best = {}
    for score, label, box in merged:
        best.setdefault(label, (score, box))
    expected = list(best.items())[:2]
    found = localize(network, scan(network, tf.constant(image), options), tf.shape(image)[:2], options).answer
    np.testing.assert_array_equal(found.classes, [label for label, _ in expected])
    np.testing.assert_allclose(found.scores, [score / (1 + score) for _, (score, _) in expected], rtol=1e-4)
    np.testing.assert_allclose(found.boxes, [box for _, (_, box) in expected], atol=1e-3)


def test_classify_is_the_logarithm_of_the_votes(network, inference):
    image = picture(70, 100)
    votes = np.mean([p.max(axis=0) for p, _ in windows_of(network, image, OPTIONS)], axis=0)
    np.testing.assert_allclose(
        classify([network], [scan(network, tf.constant(image), OPTIONS, False)]).answer, np.log(votes), rtol=1e-4
    )
    answer = numpy_of(inference.classify_images(tf.constant(image[None])))
    np.testing.assert_allclose(answer["probs"][0], votes / votes.sum(), rtol=1e-4)
    answer = numpy_of(inference.classify(tf.constant([encode(image)])))
    best = np.argsort(-votes)[:2]
    assert answer["classes"].tolist() == [[LABELS[label].encode() for label in best]]
    np.testing.assert_allclose(answer["scores"][0], (votes / votes.sum())[best], rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "shape"), [((50, 71), (3, 5)), ((32, 32), (1, 1)), ((1, 1), (1, 1)), ((9, 90), (1, 8))]
)
def test_features_are_the_second_full_layer_before_its_rectifier(network, size, shape):
    image = picture(*size)
    canvas = np.full((max(size[0], 32), max(size[1], 32), 3), network.preset.mean, np.float32)
    canvas[: size[0], : size[1]] = image
    maps = network.features(canvas[None]).numpy()[0]
    # The layers by hand: pool 2 without overlap, 3 x 3 cells to 128 channels, a rectifier, 1 x 1 to 128.
    rows, columns = (n // 2 for n in maps.shape[:2])
    cells = maps[: rows * 2, : columns * 2].reshape(rows, 2, columns, 2, -1).max(axis=(1, 3))
    first, second = (network.classifier.get_layer(name) for name in ("full5", "full6"))
    expected = np.zeros((*shape, 128))
    for i, j in np.ndindex(shape):
        hidden = np.einsum("yxc,yxcd->d", cells[i : i + 3, j : j + 3], first.kernel.numpy()) + first.bias.numpy()
        expected[i, j] = np.maximum(hidden, 0) @ second.kernel.numpy()[0, 0] + second.bias.numpy()
    assert expected.min() < 0
    (found,) = features.extract(network, [tf.constant(image[None])])
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("edges", [(0.8, 0.8, 0.2, 0.2), (40.0, 40.0, 41.0, 41.0), (float("nan"),) * 4])
def test_without_one_usable_box_there_is_an_answer_still(edges):
    network = build("tiny", 3, background=True)
    network.regressor.layers[-1].bias.assign(edges)
    image = tf.constant(picture(40, 50))
    options = InferenceOptions(scales=(1, 2), min_score=0.0)
    assert int(detect(network, scan(network, image, options), tf.shape(image)[:2], options).answer.count) == 0
    found = localize(network, scan(network, image, options), tf.shape(image)[:2], options).answer
    np.testing.assert_array_equal(found.boxes, [[0, 0, 1, 1]] * 3)  # the class is known all the same
    assert sorted(found.classes.numpy()) == [1, 2, 3]
    found = localize(
        network, scan(network, image, options), tf.shape(image)[:2], replace(options, localize_by="accumulated")
    ).answer
    np.testing.assert_array_equal(found.boxes, [[0, 0, 1, 1]] * 3)
    assert sorted(found.classes.numpy()) == [1, 2, 3] and not found.scores.numpy().any()


def test_a_network_without_background_detects_what_many_windows_agree_on():
    image, network = np.full((100, 100, 3), 118, np.uint8), build("tiny", 2)
    windows = scan(network, tf.constant(image), OPTIONS)[-1].windows.numpy()
    logits, boxes = np.zeros((*windows.shape[:2], 2), np.float32), windows[:, :, None].copy()
    # All windows are sure of the second class, with boxes of their own; those in the middle agree on one box.
    logits[..., 1] = 6.0
    boxes += np.random.default_rng(1).normal(0, 0.1, boxes.shape).astype(np.float32)
    middle = slice(5, 12)
    boxes[middle, middle] = [0.3, 0.4, 0.6, 0.7]
    one = ScaleScan(tf.constant(logits), tf.constant(boxes), tf.constant(windows))
    options = replace(OPTIONS, max_windows=400, merge_threshold=0.3)
    found = detect(network, [one], tf.shape(image)[:2], options).answer
    assert found.classes.numpy()[: int(found.count)].tolist() == [2] * int(found.count) and int(found.count) > 1
    np.testing.assert_allclose(found.boxes[0], [0.3, 0.4, 0.6, 0.7], atol=0.06)
    evidence = found.scores / (1 - found.scores)
    assert evidence[0] > 24 and evidence[1] < evidence[0] / 3  # strays fade


def test_a_model_that_localizes_detects_too():
    model = of.Model(build("tiny", 3), LABELS, OPTIONS, tasks=("classification", "localization"))
    assert model.answered_tasks == ("classification", "localization", "detection")
    answer = model.detect([GOOD["jpeg"]])
    np.testing.assert_array_equal(
        answer["detection_boxes"], of.detect(model.network, [GOOD["jpeg"]], OPTIONS)["detection_boxes"]
    )
