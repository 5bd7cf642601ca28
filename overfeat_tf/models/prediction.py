"""What `predict` answers: an image's objects or classes, which draw themselves."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from overfeat_tf.draw.pictures import contact_sheet, draw_boxes, draw_classes
from overfeat_tf.images.files import read_image

SHOWN = 3  # names in a representation
SHEET = 16  # pictures of a list


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """An image's objects, or its classes, best first. A notebook shows it as a picture.

    Attributes:
        image: The image, or the file that it is in.
        size: (height, width) in pixels, as displayed; of a classified file (0, 0).
        names: Names of the n classes.
        scores: float32 [n], falling, in 0..1.
        boxes: float32 [n, 4], [ymin, xmin, ymax, xmax] in pixels of the image as displayed; None where a model
            classifies.
        classes: int [n], the classes' numbers from 0, by which `labels` names them; None likewise.
        status: Why the image could not be read, one line; empty where it was.
    """

    image: bytes | Path | np.ndarray
    size: tuple[int, int] = (0, 0)
    names: tuple[str, ...] = ()
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None
    status: str = ""

    def __len__(self) -> int:
        """Return how many objects or classes there are."""
        return len(self.names)

    def draw(self, enlarge: bool = True) -> Image.Image:
        """Draw the boxes with names and scores, or write the classes, on the image.

        Args:
            enlarge: Enlarge a picture of small objects, so that their labels fit.

        Raises:
            ValueError: the image could not be read, or not any more.
        """
        if self.status:
            raise ValueError(f"expected an image that could be read; {self.status}")
        image = self.image
        if isinstance(image, Path):
            image, problem = read_image(image)
            if problem:
                raise ValueError(f"expected an image that can still be read; {self.image!s}: {problem}")
        if self.boxes is None or self.classes is None:
            return draw_classes(
                image, [(name, float(score)) for name, score in zip(self.names, self.scores, strict=True)]
            )
        answer = {
            "num_detections": len(self),
            "detection_boxes": self.boxes / np.maximum(np.tile(self.size, 2), 1),
            "detection_scores": self.scores,
            "detection_classes": self.classes + 1,
            "detection_class_entities": [name.encode() for name in self.names],
        }
        return draw_boxes(image, answer, several=True, enlarge=enlarge)

    def to_coco(self, image_id: int = 0, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Return the detections as COCO's results, a dictionary each, for `json` and pycocotools.

        Args:
            image_id: The image's id in the annotations.
            category_ids: The annotations' category ids by name; if left out, the classes' numbers from 1.

        Raises:
            ValueError: classes without boxes, or a name without an id.
        """
        if self.boxes is None or self.classes is None:
            raise ValueError("expected detections; got classes, which have no boxes")
        if category_ids is not None and (missing := sorted(set(self.names) - set(category_ids))):
            raise ValueError(f"expected a category id for each class; got none for {', '.join(missing)}")
        return [
            {
                "image_id": image_id,
                "category_id": int(number) + 1 if category_ids is None else category_ids[name],
                "bbox": [float(xmin), float(ymin), float(xmax - xmin), float(ymax - ymin)],
                "score": float(score),
            }
            for name, number, (ymin, xmin, ymax, xmax), score in zip(
                self.names, self.classes, self.boxes, self.scores, strict=True
            )
        ]

    def __repr__(self) -> str:
        """Name the best."""
        if self.status:
            return f"<Prediction: {self.status}>"
        best = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names[:SHOWN], self.scores, strict=False))
        rest = ", ..." if len(self) > SHOWN else ""
        if self.boxes is None:
            return f"<Prediction: {best}{rest}>"
        count, (height, width) = f"{len(self)} object{'s' * (len(self) != 1)}", self.size
        return f"<Prediction: {count} in {height} x {width} pixels{': ' * bool(best)}{best}{rest}>"

    def _repr_jpeg_(self) -> bytes | None:
        return None if self.status else _jpeg(self.draw())


class Predictions(list[Prediction]):
    """The predictions of several images, in their order. A notebook shows the first of them as one picture."""

    def draw(self, columns: int = 4) -> Image.Image:
        """Draw the images that could be read on one sheet."""
        pictures = [each.draw(enlarge=False) for each in self if not each.status]
        return contact_sheet(pictures, max(1, min(columns, len(pictures))))

    def _repr_jpeg_(self) -> bytes:
        return _jpeg(Predictions(self[:SHEET]).draw())


def _jpeg(picture: Image.Image) -> bytes:
    """Encode a picture: a photograph as PNG would swell a notebook; the names stay sharp without subsampling."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()
