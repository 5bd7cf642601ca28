"""The three tasks of the paper, a row each; no TensorFlow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: As recipes, runs and the command line spell it.
        call: Method of a `Predictor`, and the signature on encoded images; on pixels it is `call`_images.
        encoded_input: Name of that signature's input.
        has_boxes: Whether the regressor takes part.
    """

    name: str
    call: str
    encoded_input: str
    has_boxes: bool

    @property
    def signatures(self) -> tuple[str, str]:
        """The signatures on encoded images and on pixels."""
        return self.call, f"{self.call}_images"


CLASSIFICATION = Task("classification", "classify", "inputs", has_boxes=False)
LOCALIZATION = Task("localization", "localize", "image_bytes", has_boxes=True)
DETECTION = Task("detection", "detect", "image_bytes", has_boxes=True)
BY_NAME = {task.name: task for task in (CLASSIFICATION, LOCALIZATION, DETECTION)}
TASKS = tuple(BY_NAME)  # the names, in the order in which the stages are trained
