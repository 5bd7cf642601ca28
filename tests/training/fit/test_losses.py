"""The losses against loops in numpy, and where their gradients go."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from training.fit.losses import BOX_LOSSES, BoxLoss, ClassLoss, DetectionLoss, ObjectLoss
from training.views.targets import BACKGROUND, IGNORED, pack_edges

CLASSES = 4


def test_a_loss_of_boxes_comes_back_from_its_configuration():
    loss = BoxLoss("iou", "center_size")
    again = BoxLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config() and (again.kind, again.form) == (loss.kind, loss.form)


def entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax cross-entropy of [n, classes] in float64."""
    logits = logits.astype(np.float64)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return total - logits[np.arange(len(labels)), labels]


def case(seed: int, batch: int = 3, side: int = 6):
    """Window labels [B, h, w] of all kinds and logits [B, h, w, 1 + classes]."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([1.0, 2.0, *[0.2] * CLASSES])
    labels = rng.choice(np.arange(IGNORED, CLASSES + 1), (batch, side, side), p=shares).astype(np.int32)
    return labels, rng.normal(0, 2, (batch, side, side, CLASSES + 1)).astype(np.float32)


def gradient_mask(loss, labels, logits) -> np.ndarray:
    """Tell which windows the loss's gradient reaches: bool [B, h, w]."""
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = tf.reduce_sum(loss.call(tf.constant(labels), logits))
    return (tape.gradient(value, logits).numpy() != 0).any(axis=-1)


# --- BoxLoss --------------------------------------------------------------------------------------------------------


def test_box_loss_is_the_mean_over_teaching_windows_of_the_squared_distance():
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(2, 3, 5, 5, 4)).astype(np.float32)
    teaches = (rng.random((3, 5, 5)) < 0.4).astype(np.float32)
    teaches[1] = 0
    wanted = []
    for b in range(3):
        squares = [((truth[b, i, j] - found[b, i, j]) ** 2).sum() for i, j in np.argwhere(teaches[b])]
        wanted.append(np.mean(squares) if squares else 0.0)
    packed = pack_edges(tf.constant(truth), tf.constant(teaches))
    got = BoxLoss().call(packed, tf.constant(found))
    assert got.shape == (3,)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(BoxLoss()(packed, found), np.mean(wanted), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_box_loss_teaches_an_objects_own_classs_box_alone(seed, classes):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(2, 4, 3, 4)).astype(np.float32)
    found = rng.normal(size=(2, 4, 3, 4 * classes)).astype(np.float32)
    owners = rng.integers(0, classes + 1, (2, 4, 3)).astype(np.int32)
    wanted, reached = [], np.zeros(found.shape, bool)
    for b in range(2):
        squares = []
        for i, j in np.argwhere(owners[b]):
            first = 4 * (owners[b, i, j] - 1)
            reached[b, i, j, first : first + 4] = True
            squares.append(sum((truth[b, i, j, n] - found[b, i, j, first + n]) ** 2 for n in range(4)))
        wanted.append(np.mean(squares) if squares else 0.0)
    packed = pack_edges(tf.constant(truth), tf.constant(owners))
    found = tf.constant(found)
    with tf.GradientTape() as tape:
        tape.watch(found)
        got = BoxLoss().call(packed, found)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    np.testing.assert_array_equal(tape.gradient(got, found).numpy() != 0, reached)


def test_box_loss_teaches_only_the_windows_marked():
    truth, found = np.zeros((1, 2, 2, 4), np.float32), np.ones((1, 2, 2, 4), np.float32)
    teaches = np.array([[[1, 0], [0, 1]]], np.float32)
    packed = pack_edges(tf.constant(truth), tf.constant(teaches)).numpy()
    np.testing.assert_array_equal(gradient_mask(BoxLoss(), packed, found), teaches.astype(bool))


def plain_overlap(kind, a, b):
    """IoU or GIoU of two boxes in plain Python."""

    def area(box):
        return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)

    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - shared
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    iou = shared / union if union else 0.0
    return (iou if kind == "iou" else iou - ((hull - union) / hull if hull else 0.0)), shared


def plain_forms(form, truth, found):
    """Give the true box's numbers in a form, and the edges that numbers stand for, in plain Python."""
    if form == "edges":
        return truth, found
    (top, left, bottom, right), (y, x, h, w) = truth, found
    numbers = (top + bottom) / 2 - 0.5, (left + right) / 2 - 0.5, math.log(bottom - top), math.log(right - left)
    half = math.exp(h) / 2, math.exp(w) / 2
    return numbers, (y + 0.5 - half[0], x + 0.5 - half[1], y + 0.5 + half[0], x + 0.5 + half[1])


@pytest.mark.parametrize("form", ["edges", "center_size"])
@pytest.mark.parametrize("kind", BOX_LOSSES)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_each_loss_of_each_form_window_by_window(form, kind, seed):
    rng = np.random.default_rng(seed)
    corners, sides = rng.normal(0.3, 0.4, (2, 3, 4, 2)), rng.uniform(0.1, 1, (2, 3, 4, 2))
    truth = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    found = rng.normal([0.2, 0.2, 0.8, 0.8], 0.4, (2, 3, 4, 4)).astype(np.float32)  # some inside out
    owners = rng.integers(0, 3, (2, 3, 4)).astype(np.int32)
    wanted = []
    for b in range(2):
        values = []
        for i, j in np.argwhere(owners[b]):
            numbers, edges = plain_forms(form, truth[b, i, j].tolist(), found[b, i, j].tolist())
            off = [abs(t - f) for t, f in zip(numbers, found[b, i, j].tolist(), strict=True)]
            distance, smooth = sum(d**2 for d in off), sum(d**2 / 0.1 if d < 0.05 else d - 0.025 for d in off)
            overlap, shared = plain_overlap(kind, truth[b, i, j].tolist(), edges)
            further = smooth / 2 if kind == "giou_l1" else 0 if shared else distance
            values.append(distance if kind == "l2" else 1 - overlap + further)
        wanted.append(np.mean(values) if values else 0.0)
    got = BoxLoss(kind, form).call(pack_edges(tf.constant(truth), tf.constant(owners)), tf.constant(found))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


DEGENERATE = ([0, 0, 0, 0], [0.5] * 4, [0.8, 0.8, 0.2, 0.2], [0.3, 0.4, 0.3, 0.9], [5, 5, 6, 6], [-0.2, -0.2, 1.3, 1.3])


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("box", DEGENERATE)
def test_degenerate_edges_have_a_finite_gradient_and_are_drawn_to_the_truth(kind, box):
    truth = pack_edges(tf.constant([[[[0.2, 0.3, 0.7, 0.9]]]]), tf.constant([[[1]]]))
    found, loss = tf.Variable([[[np.array(box, np.float32)]]]), BoxLoss(kind)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss.call(truth, found)
        gradient = tape.gradient(value, found)
        found.assign_sub(0.1 * tf.clip_by_norm(gradient, 1.0))
        return value, gradient

    for _ in range(300):
        assert all(np.isfinite(part.numpy()).all() for part in step())
    assert plain_overlap("iou", [0.2, 0.3, 0.7, 0.9], found.numpy().ravel())[0] > 0.6


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("truth", [[0.3, 0.3, 0.3, 0.3], [0.4, 0.1, 0.4, 0.9], [0.2, 0.3, 0.7, 0.9]])
@pytest.mark.parametrize("values", [[0, 0, 0, 0], [0, 0, 60, -60], [1e6, 0, -300, 300]])
def test_centres_and_sizes_have_a_finite_gradient_whatever_they_are(kind, truth, values):
    # The second window teaches nothing: its truth is zeros.
    packed = pack_edges(tf.constant([[[truth, [0.0] * 4]]]), tf.constant([[[1, 0]]]))
    found = tf.constant([[[values, values]]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(found)
        value = BoxLoss(kind, "center_size").call(packed, found)
    gradient = tape.gradient(value, found).numpy()
    assert np.isfinite(value).all() and np.isfinite(gradient).all() and not gradient[0, 0, 1].any()


# --- DetectionLoss ---------------------------------------------------------------------------------------------------


def offending(labels, logits, per_positive, at_least):
    """One image's loss by sorting: labels [h, w], logits [h, w, 1 + classes]; also which windows it takes."""
    entropy = entropies(logits.reshape(-1, logits.shape[-1]), np.maximum(labels, 0).ravel()).reshape(labels.shape)
    positive = labels > BACKGROUND
    candidates = sorted(map(tuple, np.argwhere(labels == BACKGROUND)), key=lambda at: -entropy[at])
    chosen = positive.copy()
    for at in candidates[: max(per_positive * positive.sum(), at_least)]:
        chosen[at] = True
    return (entropy[chosen].mean() if chosen.any() else 0.0), chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 9))
def test_offending_negatives_are_the_highest_losses_of_the_background(seed, per_positive, at_least):
    labels, logits = case(seed)
    loss = DetectionLoss("offending", per_positive, at_least)
    values, masks = zip(
        *(offending(*image, per_positive, at_least) for image in zip(labels, logits, strict=True)), strict=True
    )
    got = loss.call(tf.constant(labels), tf.constant(logits))
    assert got.shape == (3,)
    np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient_mask(loss, labels, logits), masks)


def test_ignored_windows_are_out_of_both_modes():
    labels, logits = case(1)
    for negatives in ("offending", "random"):
        assert not gradient_mask(DetectionLoss(negatives, 9, 99), labels, logits)[labels == IGNORED].any()
    assert (labels == IGNORED).any()


def test_random_negatives_are_as_many_and_not_always_the_same():
    labels, logits = case(5, side=10)
    worst = gradient_mask(DetectionLoss("offending", 1, 4), labels, logits)
    loss = DetectionLoss("random", 1, 4)
    drawn = [gradient_mask(loss, labels, logits) for _ in range(6)]
    background = labels == BACKGROUND
    assert (worst & background).sum() < background.sum()  # there is a choice
    for mask in drawn:
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), worst.sum(axis=(1, 2)))
        np.testing.assert_array_equal(mask[~background], worst[~background])
    assert len({mask.tobytes() for mask in drawn}) > 1
    assert all((mask & background & ~worst).any() for mask in drawn)


def test_an_image_without_objects_gives_its_worst_negatives():
    logits = case(0)[1]
    labels = np.full(logits.shape[:3], BACKGROUND, np.int32)
    mask = gradient_mask(DetectionLoss(at_least=8), labels, logits)
    assert mask.sum(axis=(1, 2)).tolist() == [8, 8, 8]
    entropy = entropies(logits[0].reshape(-1, CLASSES + 1), labels[0].ravel())
    got = DetectionLoss(at_least=8).call(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(got[0], np.sort(entropy)[-8:].mean(), rtol=1e-5)


def test_nothing_to_learn_is_a_loss_of_zero_and_no_gradient():
    labels, logits = np.full((2, 3, 3), IGNORED, np.int32), case(0, 2, 3)[1]
    edges = np.zeros((2, 3, 3, 5), np.float32)
    for loss, truth, found in ((DetectionLoss(), labels, logits), (BoxLoss(), edges, logits[..., :4])):
        found = tf.constant(found)
        with tf.GradientTape() as tape:
            tape.watch(found)
            value = loss.call(tf.constant(truth), found)
        assert value.numpy().tolist() == [0.0, 0.0]
        assert tape.gradient(value, found).numpy().tolist() == np.zeros_like(found).tolist()


def test_an_images_loss_does_not_depend_on_its_batch():
    labels, logits = case(3)
    together = DetectionLoss().call(tf.constant(labels), tf.constant(logits))
    alone = [DetectionLoss().call(tf.constant(labels[i : i + 1]), tf.constant(logits[i : i + 1]))[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_keras_averages_over_the_batch_with_labels_as_floats():
    labels, logits = case(4)
    model = keras.Sequential([keras.Input((6, 6, CLASSES + 1)), keras.layers.Identity()])
    model.compile(loss=DetectionLoss())
    got = model.evaluate(logits, labels, verbose=0)
    np.testing.assert_allclose(got, np.mean(DetectionLoss().call(tf.constant(labels), tf.constant(logits))), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_object_loss_is_the_mean_over_object_windows(seed):
    labels, logits = case(seed)
    logits = logits[..., 1:]
    wanted = []
    for truth, found in zip(labels, logits, strict=True):
        shown = truth > BACKGROUND
        wanted.append(entropies(found[shown], truth[shown] - 1).mean() if shown.any() else 0.0)
    np.testing.assert_allclose(ObjectLoss().call(labels, logits), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient_mask(ObjectLoss(), labels, logits), labels > BACKGROUND)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match=r"^expected negatives to be one of offending, random; got 'worst'$"):
        DetectionLoss("worst")


def test_class_weights_multiply_the_losses_of_their_classes_and_not_the_backgrounds():
    weights, logits = (1.0, 4.0), tf.constant([[0.3, 1.0], [0.2, -0.5], [0.0, 2.0]])
    plain, weighted = ClassLoss(reduction=None), ClassLoss(weights, reduction=None)
    labels = tf.constant([0, 1, 1])
    np.testing.assert_allclose(weighted(labels, logits), plain(labels, logits) * [1.0, 4.0, 4.0], rtol=1e-6)

    targets = tf.constant([[[1, 2], [0, -1]]])  # one window of each class, one of background, one ignored
    maps = tf.constant(np.random.default_rng(0).normal(size=(1, 2, 2, 3)), tf.float32)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits([1, 2, 0], tf.reshape(maps, [4, 3])[:3]).numpy()
    found = DetectionLoss(class_weights=weights)(targets, maps)
    np.testing.assert_allclose(found, (entropy * [1.0, 4.0, 1.0]).mean(), rtol=1e-5)
    objects = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1], tf.reshape(maps[..., :2], [4, 2])[:2]).numpy()
    np.testing.assert_allclose(ObjectLoss(weights)(targets, maps[..., :2]), (objects * weights).mean(), rtol=1e-5)
