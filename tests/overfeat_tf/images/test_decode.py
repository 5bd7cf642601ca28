"""Decoding: equal to Pillow where the file is good, a status and no error where not, the same wherever it runs."""

import base64
import io
import pathlib
import resource
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from overfeat_tf.images.decode import decode_image, read_size
from overfeat_tf.images.headers import GLANCE

BAD_INPUT = pathlib.Path(__file__).resolve().parents[4] / "shared" / "datasets" / "bad_input"

_rng = np.random.default_rng(0)
SMALL = Image.fromarray(_rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((37, 23), Image.Resampling.BICUBIC)
OTHER = SMALL.transpose(Image.Transpose.ROTATE_180)
ALPHA = Image.merge("RGBA", [*SMALL.split(), Image.linear_gradient("L").resize(SMALL.size)])
DEEP = _rng.integers(0, 2**16, (23, 37), np.uint16)


def encode(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """Write an Exif block whose second entry is the orientation, as SHORT (3) or LONG (4)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 6, 0)
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    entries += struct.pack(order + "HHI", 0x0112, kind, count) + value
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 2) + entries + bytes(4)


def bitmap(depth: int, height: int, width: int, body: bytes, colours: bytes = b"") -> bytes:
    """Write a bitmap, rows downward where the height is negative."""
    start = 54 + len(colours)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, 0, len(body), 0, 0, len(colours) // 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + colours + body


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def read(data: bytes, **options) -> tuple[np.ndarray, str]:
    pixels, status = decode_image(data, **options)
    return pixels.numpy(), status.numpy().decode()


def refused(data: bytes, **options) -> str:
    """Return the status of an image that must not be read."""
    pixels, status = read(data, **options)
    assert pixels.shape == (0, 0, 3)
    assert status and "\n" not in status
    return status


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def survey(batch):
    """Return the height and width of each image of a batch, and its status."""

    def one(data):
        pixels, status = decode_image(data, max_pixels=1_000_000)
        return tf.shape(pixels)[:2], status

    return tf.map_fn(one, batch, fn_output_signature=(tf.TensorSpec([2], tf.int32), tf.string))


def assert_pixels_or_status(batch: list[bytes]) -> np.ndarray:
    sizes, statuses = (answer.numpy() for answer in survey(tf.constant(batch)))
    np.testing.assert_array_equal(sizes.min(axis=1) > 0, statuses == b"")
    for data, size, status in zip(batch, sizes.tolist(), statuses, strict=True):
        if status == b"":
            assert read_size(data)[1] == tuple(size)
    return statuses == b""


ANIMATED = encode(SMALL, "WEBP", lossless=True, save_all=True, append_images=[OTHER])
GOOD = {
    "jpeg": encode(SMALL, "JPEG"),
    "jpeg gray": encode(SMALL.convert("L"), "JPEG"),
    "jpeg cmyk": encode(SMALL.convert("CMYK"), "JPEG"),
    "jpeg progressive": encode(SMALL, "JPEG", progressive=True, subsampling=2),
    "jpeg with profile": encode(SMALL, "JPEG", icc_profile=bytes(200_000), comment=b"\xff\xc0" * 9),
    "jpeg with fill bytes": encode(SMALL, "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),
    "png": encode(SMALL, "PNG"),
    "png gray": encode(SMALL.convert("L"), "PNG"),
    "png gray alpha": encode(ALPHA.convert("LA"), "PNG"),
    "png alpha": encode(ALPHA, "PNG"),
    "png palette": encode(SMALL.quantize(16), "PNG"),
    "png transparent palette": encode(SMALL.quantize(16), "PNG", transparency=3),
    "png 1 bit": encode(SMALL.convert("1"), "PNG"),
    "gif": encode(SMALL.quantize(64), "GIF"),
    "gif transparent": encode(SMALL.quantize(64), "GIF", transparency=3, interlace=0),
    "gif animated": encode(SMALL, "GIF", save_all=True, append_images=[OTHER], comment=b"x" * 999),
    "bmp": encode(SMALL, "BMP"),
    "bmp gray": encode(SMALL.convert("L"), "BMP"),
    "bmp palette": encode(SMALL.quantize(16), "BMP"),
    "bmp 1 bit": encode(SMALL.convert("1"), "BMP"),
    "bmp 4 bits": bitmap(4, 2, 3, bytes([0x12, 0x30, 0, 0, 0x45, 0x60, 0, 0]), _rng.bytes(4 * 16)),
    "bmp alpha": encode(ALPHA, "BMP"),
    "bmp downward": bitmap(24, -2, 3, _rng.bytes(24)),
    "bmp with a tail": encode(SMALL, "BMP") + b"\0\0",
    "webp": encode(SMALL, "WEBP"),
    "webp lossless": encode(SMALL, "WEBP", lossless=True),
    "webp alpha": encode(ALPHA, "WEBP", lossless=True, exact=True),
    "webp animated": ANIMATED,
    # Unmended, its alpha flag cleared, an animation is written past the end of the decoder's buffer.
    "webp animated, no alpha flag": ANIMATED[:20] + b"\x02" + ANIMATED[21:],
}
TINY, FLIPPED = (image.resize((9, 7)) for image in (SMALL, OTHER))
TO_DAMAGE = {
    "jpeg": encode(TINY, "JPEG", exif=exif(6)),
    "jpeg without exif": encode(TINY, "JPEG"),
    "png": encode(TINY, "PNG"),
    "gif": encode(TINY.quantize(4), "GIF", save_all=True, append_images=[FLIPPED.quantize(4)], comment=b"x" * 9),
    "bmp": encode(TINY.quantize(4), "BMP"),
    "webp": encode(TINY, "WEBP", exif=exif(6)),
    "webp animated": encode(TINY, "WEBP", save_all=True, append_images=[FLIPPED]),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_of_pillow(name):
    pixels, status = read(GOOD[name])
    assert status == ""
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, pillow(GOOD[name]))
    assert read_size(GOOD[name]) == (pixels.shape[:2], pixels.shape[:2], 1)


def test_sixteen_bits_keep_the_upper_eight():
    pixels, _ = read(encode(Image.fromarray(DEEP), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_gif_frame_smaller_than_its_screen_is_placed_on_black():
    data = bytearray(encode(SMALL.quantize(64), "GIF"))
    frame = data.index(b"," + bytes(4), 13 + 3 * 64)
    data[6:10] = struct.pack("<HH", 37 + 20, 23 + 10)
    data[frame + 1 : frame + 5] = struct.pack("<HH", 4, 3)
    pixels, status = read(bytes(data))
    expected = np.zeros((33, 57, 3), np.uint8)
    expected[3:26, 4:41] = pillow(GOOD["gif"])
    assert status == ""
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.skipif(not hasattr(tf.raw_ops, "DecodeJxl"), reason="this TensorFlow does not read JPEG XL")
def test_jpeg_xl():
    # No encoder at hand: libjxl's lossless files of an image of 5 x 7, bare, in a container in pieces, gray with alpha.
    bare = "/wogQBAJCAABAKAASyiwbbSPwu8oKCgJCgoKHBsRgyUqcGqM0TE4cIEYAcqAkqs64ADJAA=="
    pieces = (
        "AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAASanhscAAAAAD/CiBAEAkAAAAiRXhpZklJKgAIAAAAAQASAQMAAQAAAAYAAAAA"
        "AAAAAAAAOmp4bHCAAAABCAABAKAASyiwbbSPwu8oKCgJCgoKHBsRgyUqcGqM0TE4cIEYAcqAkqs64ADJAA=="
    )
    gray = "/wogQLAobgQIABAArABLKLBttI/C7ygoKCkKMGJBjIjBEjF4dj6uXfwLHAAQAfbnUBI47aE1nwB9"
    colours = 2 * np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for text, expected in ((bare, colours), (pieces, colours), (gray, np.repeat(colours[..., :1], 3, axis=2))):
        data = base64.b64decode(text)
        pixels, status = read(data)
        assert status == ""
        np.testing.assert_array_equal(pixels, expected)
        assert not assert_pixels_or_status([data[:end] for end in range(len(data) - 4)]).any()
    # 2**18 x 2**18, the most that is read; and a first piece too short to hold its size.
    huge = 2 << 1 | (2**18 - 1) << 3 | 2 << 24 | (2**18 - 1) << 26
    assert "262144 x 262144" in refused(b"\xff\x0a" + huge.to_bytes(20, "little"))
    short = base64.b64decode(pieces).replace(b"\0\0\0\x12jxlp", b"\0\0\0\x0fjxlp")
    assert "size" in refused(short)
    # A box with a 64-bit length (1 stands for it) is not passed over: steps of 1 and 0x166 would lead into it.
    inside = bytes(1 + 0x166 - 16) + struct.pack(">I4s", 24, b"jxlc") + base64.b64decode(bare)[:16]
    boxed = base64.b64decode(pieces)
    assert "size" in refused(boxed[:32] + struct.pack(">I4sQ", 1, b"free", 16 + len(inside)) + inside + boxed[32:])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, order):
    data = encode(SMALL, "JPEG", exif=exif(orientation, order))
    pixels, _ = read(data)
    np.testing.assert_array_equal(pixels, pillow(data))
    assert pixels.shape == ((37, 23, 3) if orientation > 4 else (23, 37, 3))
    assert read_size(data) == ((23, 37), pixels.shape[:2], orientation)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation_of_other_formats(form):
    data = encode(SMALL, form, exif=exif(6)[6:])
    assert read_size(data) == ((23, 37), (37, 23), 6)
    np.testing.assert_array_equal(read(data)[0], pillow(data))
    assert read(data)[0].shape == (37, 23, 3)


def test_orientation_as_long():
    data = encode(SMALL, "JPEG", exif=exif(6, ">", kind=4))
    assert read_size(data)[2] == 6
    np.testing.assert_array_equal(read(data)[0], pillow(data))


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(65537, kind=4),
        exif(6, count=2),
        exif(6, kind=2),
        exif(6)[:30],
        exif(6)[:12],
        exif(6)[:6],
        exif(6).replace(b"II*", b"IJ*"),
        exif(6).replace(b"\x08\0\0\0", b"\xff\xff\xff\xff"),
        b"Exif\0\0" + b"\xff" * 99,
    ],
)
def test_invalid_orientation_means_upright(block):
    data = encode(SMALL, "JPEG", exif=block)
    pixels, status = read(data)
    assert status == "" and read_size(data)[2] == 1
    np.testing.assert_array_equal(pixels, pillow(GOOD["jpeg"]))


def test_no_image():
    assert "got none" in refused(b"")
    assert "11 bytes that begin with 104 116 116 112" in refused(b"http://here")
    assert "PNG without one" in refused(GOOD["png"][:20])


def gif_frame(width: int, height: int) -> bytes:
    data = GOOD["gif"]
    return data.replace(b"," + bytes(4) + data[6:10], b"," + bytes(4) + struct.pack("<HH", width, height))


@pytest.mark.parametrize(
    "data, size",
    [
        (GOOD["png"][:16] + struct.pack(">II", 60000, 60000) + GOOD["png"][24:], "PNG of 60000 x 60000"),
        (GOOD["png"][:16] + b"\x7f\xff\xff\xff" * 2 + GOOD["png"][24:], "PNG of 2147483647 x 2147483647"),
        (GOOD["jpeg"].replace(struct.pack(">HH", 23, 37), b"\xff\xff" * 2), "JPEG of 65535 x 65535"),
        (bitmap(24, -(2**31), 2**31 - 1, b""), "BMP of 2147483648 x 2147483647"),
        (gif_frame(65535, 65535), "GIF of 65535 x 65535"),
        (ANIMATED[:24] + b"\xff" * 6 + ANIMATED[30:], "WebP of 16777216 x 16777216"),
        (GOOD["webp lossless"][:21] + b"\xff" * 4 + GOOD["webp lossless"][25:], "WebP of 16384 x 16384"),
        (GOOD["webp"][:26] + b"\xff" * 4 + GOOD["webp"][30:], "WebP of 16383 x 16383"),
    ],
)
def test_huge_size_is_refused_before_it_is_allocated(data, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = refused(data)
    assert size in status
    assert "at most 50000000 pixels" in status
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_limit_is_inclusive():
    assert read(GOOD["png"], max_pixels=23 * 37)[1] == ""
    assert "at most 850 pixels" in refused(GOOD["png"], max_pixels=23 * 37 - 1)


def test_size_outside_its_place_is_not_believed():
    decoy = struct.pack(">I4sIIBBBBBI", 13, b"abCd", 1, 1, 8, 2, 0, 0, 0, 0)
    assert "PNG without one" in refused(GOOD["png"][:8] + decoy + GOOD["png"][8:])


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([2, 3, 11, 18, 500]) | st.integers(3900, 4100) | st.just(65_535), max_size=12),
    turned=st.booleans(),
)
def test_whatever_lies_before_the_frame_header_of_a_jpeg(lengths, turned):
    """Segments that spell frame headers of a pixel: the size is that of the true one, and an Exif block is found."""
    plain, decoy = encode(SMALL, "JPEG", quality=95), b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    before = [b"\xff\xfe" + struct.pack(">H", n) + (decoy * (n // 9 + 1))[: n - 2] for n in lengths]
    if turned:
        block = exif(6)
        before.append(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block)
    data = plain[:2] + b"".join(before) + plain[2:]
    np.testing.assert_array_equal(read(data)[0], pillow(data))
    assert read_size(data) == ((23, 37), (37, 23) if turned else (23, 37), 6 if turned else 1)
    assert "JPEG of 23 x 37 pixels" in refused(data, max_pixels=23 * 37 - 1)


def test_a_frame_header_that_ends_with_the_glance_at_a_jpeg():
    plain = encode(SMALL, "JPEG")
    at = plain.index(b"\xff\xc0")
    for place in range(GLANCE - 20, GLANCE + 20):
        segment = b"\xff\xfe" + struct.pack(">H", place - at - 2) + bytes(place - at - 4)
        data = plain[:2] + segment + plain[2:]
        assert data.index(b"\xff\xc0") == place
        assert "JPEG of 23 x 37 pixels" in refused(data, max_pixels=23 * 37 - 1), place


def test_later_frames_of_a_gif_are_not_read():
    data = GOOD["gif animated"]
    last = data.rindex(b",", 0, len(data) - 200)
    huge = data[: last + 5] + b"\xff" * 4 + data[last + 9 :]
    np.testing.assert_array_equal(read(huge)[0], pillow(data))


@pytest.mark.parametrize("name", TO_DAMAGE)
def test_every_truncation_gives_pixels_or_a_status(name):
    data = TO_DAMAGE[name]
    was_read = assert_pixels_or_status([data[:end] for end in range(len(data) + 1)])
    assert was_read[-1]
    assert not was_read[: len(data) // 3].any()


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "bmp", "webp"])
def test_truncation_says_so(name):
    status = refused(GOOD[name][: len(GOOD[name]) * 2 // 3])
    assert status.startswith("damaged or truncated")
    assert "23 x 37" in status


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8))
def test_random_bytes(batch):
    assert_pixels_or_status(batch)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_bytes(draw):
    batch = []
    for good in TO_DAMAGE.values():
        data = bytearray(good)
        for _ in range(draw.draw(st.integers(1, 4))):
            # Mostly the header, where the danger is.
            place = draw.draw(st.integers(0, 99) | st.integers(0, len(data) - 1))
            data[place] = draw.draw(st.sampled_from([0, 1, 128, 255]) | st.integers(0, 255))
        batch.append(bytes(data))
    assert_pixels_or_status(batch)


def in_batch(batch):
    """Return pixels padded to a common size, and statuses, of a batch of strings."""

    def one(data):
        pixels, status = decode_image(data)
        height, width = tf.unstack(tf.shape(pixels)[:2])
        return tf.pad(pixels, [[0, 40 - height], [0, 40 - width], [0, 0]]), status

    signature = (tf.TensorSpec([40, 40, 3], tf.uint8), tf.TensorSpec([], tf.string))
    return tf.map_fn(one, batch, fn_output_signature=signature)


BATCH = [GOOD["jpeg"], b"", encode(SMALL, "JPEG", exif=exif(8)), GOOD["png"][:400], ANIMATED, GOOD["gif"]]


def assert_as_alone(padded: np.ndarray, statuses: np.ndarray) -> None:
    for data, pixels, status in zip(BATCH, padded, statuses, strict=True):
        alone, why = read(data)
        assert status.decode() == why
        np.testing.assert_array_equal(pixels[: alone.shape[0], : alone.shape[1]], alone)


def test_batch_is_as_alone():
    assert_as_alone(*(answer.numpy() for answer in tf.function(in_batch)(tf.constant(BATCH))))


def test_inside_a_pipeline():
    images = tf.data.Dataset.from_tensor_slices(BATCH * 8).map(decode_image, num_parallel_calls=tf.data.AUTOTUNE)
    answers = [(pixels.numpy(), status.numpy().decode()) for pixels, status in images]
    assert len(answers) == len(BATCH) * 8
    for data, (pixels, status) in zip(BATCH * 8, answers, strict=True):
        alone, why = read(data)
        assert status == why
        np.testing.assert_array_equal(pixels, alone)


def test_in_a_saved_model(tmp_path):
    module = tf.Module()
    module.serve = tf.function(
        lambda batch: dict(zip(("pixels", "status"), in_batch(batch), strict=True)),
        input_signature=[tf.TensorSpec([None], tf.string, name="batch")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    answer = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](tf.constant(BATCH))
    assert_as_alone(answer["pixels"].numpy(), answer["status"].numpy())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:  # as TensorFlow Serving runs it
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        signature = meta.signature_def["serving_default"]
        fetch = [signature.outputs[key].name for key in ("pixels", "status")]
        answers = session.run(fetch, {signature.inputs["batch"].name: BATCH})
    assert_as_alone(*answers)
    functions = meta.graph_def.library.function
    assert not {node.op for function in functions for node in function.node_def if "PyFunc" in node.op}


@pytest.mark.skipif(not BAD_INPUT.is_dir(), reason=f"no {BAD_INPUT}")
def test_real_files():
    files = [path for path in sorted(BAD_INPUT.glob("*/*")) if path.suffix.lower() in (".jpg", ".jpeg", ".gif")]
    assert len(files) > 20
    for path in files:
        if path.parent.name == "truncated_jpeg":
            assert refused(path.read_bytes()).startswith("damaged or truncated")
            continue
        pixels, status = read(path.read_bytes())
        assert status == "", path
        np.testing.assert_array_equal(pixels, pillow(path.read_bytes()), err_msg=str(path))
