"""Files of kinds that TensorFlow does not decode are read as PNG, or the reason is said."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.files import as_pixels, decodable, find_files, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def decoded(path) -> np.ndarray:
    data, problem = read_image(path)
    assert problem == ""
    pixels, status = decode_image(data)
    assert status.numpy() == b""
    return pixels.numpy()


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".ppm"])
def test_tiff_and_ppm_have_their_pixels(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(decoded(path), PIXELS)
    assert find_files([str(tmp_path)]) == [path]


def test_tiff_is_shown_upright_and_of_16_bits_the_upper_8_are_kept(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "turned.tif", exif=turned())
    np.testing.assert_array_equal(decoded(tmp_path / "turned.tif"), np.rot90(PIXELS, -1))
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(decoded(tmp_path / "deep.tif")[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_heic_and_avif_are_read(suffix, tmp_path):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"a{suffix}"
    smooth = Image.fromarray(PIXELS).resize((64, 48), Image.Resampling.BICUBIC)
    smooth.save(path, quality=95)
    assert np.abs(decoded(path).astype(int) - np.asarray(smooth)).mean() < 8


def test_a_damaged_avif_is_reported_whatever_pillow_raises():
    stream = io.BytesIO()
    Image.fromarray(PIXELS).resize((64, 48)).save(stream, "AVIF")
    raised = set()
    for at in range(12, 300):
        damaged = bytearray(stream.getvalue())
        damaged[at] ^= 0xFF
        try:
            Image.open(io.BytesIO(damaged)).load()
        except Exception as error:
            raised.add(type(error))
        data, problem = decodable(bytes(damaged))
        assert bool(data) != bool(problem) and "\n" not in problem
    assert RuntimeError in raised


def test_an_image_in_memory_is_shown_as_its_file():
    for form, options in (("JPEG", {"xmp": XMP}), ("WEBP", {"xmp": XMP}), ("JPEG", {"exif": turned()})):
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, form, **options)
        pixels, status = decode_image(stream.getvalue())
        assert status.numpy() == b""
        with Image.open(stream) as opened:
            assert as_pixels(opened).shape == pixels.shape == ((9, 6, 3) if "exif" in options else (6, 9, 3))


def turned() -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = 6
    return block


def test_heic_without_its_reader_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(12))
    data, problem = read_image(path)
    assert data == b"" and "pip install pillow-heif" in problem and "\n" not in problem


def test_what_can_not_be_turned_is_reported(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(stream, "TIFF")
    for name, data in {"float": stream.getvalue(), "cut": stream.getvalue()[:60], "none": b"II*\0" + bytes(40)}.items():
        path = tmp_path / f"{name}.tif"
        path.write_bytes(data)
        assert read_image(path)[0] == b"" and read_image(path)[1]
    assert read_image(tmp_path / "nul\0l.jpg")[1] and read_image(tmp_path / ("x" * 300))[1]
