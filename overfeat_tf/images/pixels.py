"""Images in memory -> RGB pixels: numpy arrays and tensors of several kinds, and PIL's images."""

import numpy as np
from PIL import Image, ImageOps

XMP = ("XML:com.adobe.xmp", "xmp")  # what Pillow calls it, and takes an orientation from, which no decoder here does
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # PIL's modes of more than 8 bits


def as_pixels(image: object) -> np.ndarray:
    """Return an image in memory as RGB pixels, uint8 [H, W, 3], by the rules that hold for files.

    Args:
        image: A PIL image, whose Exif orientation is applied; or an array or tensor [H, W] or [H, W, C], of 1 (gray),
            2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha) channels. uint8 is taken as it is, of uint16 the upper 8
            bits, and floats are 0..1 and multiplied by 255. Alpha is dropped: the colour beneath it shows.

    Raises:
        ValueError: another type or shape, or floats beyond 0..1.
    """
    if isinstance(image, Image.Image):
        shown = upright(image)
        return as_pixels(np.asarray(shown)) if shown.mode in DEEP else np.asarray(shown.convert("RGB"))
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or not array.size:
        raise ValueError(f"expected pixels [H, W], or [H, W, C] of 1 to 4 channels; got {describe(image)}")
    if np.issubdtype(array.dtype, np.floating):
        least, most = float(array.min()), float(array.max())
        if not (least >= 0 and most <= 1):  # nan neither
            raise ValueError(f"expected float pixels from 0 to 1; got {least:g} to {most:g}: convert them to uint8")
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.uint16):  # of either byte order
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"expected pixels of uint8, uint16 or float; got {describe(image)}: convert them to uint8")
    return np.repeat(array[..., :1], 3, axis=-1) if array.shape[-1] < 3 else array[..., :3]


def upright(image: Image.Image) -> Image.Image:
    """Return a PIL image turned by its Exif orientation; one that only XMP states turns nothing, as in other files."""
    if any(key in image.info for key in XMP):
        image = image.copy()
        for key in XMP:
            image.info.pop(key, None)
    return ImageOps.exif_transpose(image)


def describe(image: object) -> str:
    """Name what an image is: type and shape of an array, or the type of another object."""
    if hasattr(image, "dtype") and hasattr(image, "shape"):
        return f"{getattr(image.dtype, 'name', image.dtype)} {list(image.shape)}"
    return f"'{type(image).__name__}'"
