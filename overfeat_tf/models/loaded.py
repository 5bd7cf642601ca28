"""A model in this process: what it says of itself."""

from abc import abstractmethod

from overfeat_tf.models.predictor import Predictor
from overfeat_tf.models.summary import summarize


class Loaded(Predictor):
    """A model in this process: a run's or a SavedModel."""

    @abstractmethod
    def config(self) -> dict:
        """Describe the model in JSON's types."""

    @property
    @abstractmethod
    def display_threshold(self) -> float:
        """The score from which a detection is worth showing; 0.5 where the model is not calibrated."""

    def summary(self) -> None:
        """Print what it is: classes, tasks, network, scales, options and parameters."""
        print(summarize(self.config()))

    def __repr__(self) -> str:
        """Name the classes and the tasks."""
        count, names = len(self.labels), ", ".join(self.labels[:3]) + ", ..." * (len(self.labels) > 3)
        return f"<{type(self).__name__}: {count} class{'es' * (count != 1)} ({names}); {', '.join(self.tasks)}>"
