"""Training an adapter: examples, the loop, its state, and the curve it leaves."""

from inarch_training.data import Example, read_examples
from inarch_training.loop import TrainingResult, train

__all__ = ["Example", "TrainingResult", "read_examples", "train"]
