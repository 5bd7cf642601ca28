"""What the tests of sources share."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds


@pytest.fixture
def mocked(tmp_path):
    """Mocks a set of some splits; yields random examples, or those that are given."""

    def mock(name: str, examples: list[dict] | None = None, splits: tuple[str, ...] = ("train", "validation")):
        version = tmp_path / "data"
        builder = tfds.builder(name, data_dir=version)
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[2],
                num_bytes=1,
                filename_template=tfds.core.ShardedFileTemplate(
                    dataset_name=builder.name, data_dir=builder.data_dir, split=split, filetype_suffix="tfrecord"
                ),
            )
            for split in splits
        ]
        builder.info.set_splits(tfds.core.SplitDict(infos))
        Path(builder.data_dir).mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)

        def as_dataset(self, split, decoders=None, read_config=None, **_):
            assert decoders is not None and isinstance(decoders["image"], tfds.decode.SkipDecoding)
            assert not read_config.try_autocache
            rows = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=_signature(examples[0]))
            return rows

        mocking = tfds.testing.mock_data(
            num_examples=2, data_dir=str(version), as_dataset_fn=as_dataset if examples else None
        )
        mocking.__enter__()
        entered.append(mocking)

    entered: list = []
    yield mock
    for mocking in entered:
        mocking.__exit__(None, None, None)


def _signature(example):
    if isinstance(example, dict):
        return {key: _signature(value) for key, value in example.items()}
    array = np.asarray(example)
    kind = tf.string if array.dtype.kind in "SO" else tf.as_dtype(array.dtype)
    return tf.TensorSpec([None, *array.shape[1:]] if array.ndim else [], kind)
