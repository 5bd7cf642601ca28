"""How requests are batched: TF Serving's BatchingParameters, from its text form or from options."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

# session_bundle_config.proto, which tensorflow-serving-api does not bring: the fields and their kinds.
_INT, _STRING, _BOOL = ".google.protobuf.Int64Value", ".google.protobuf.StringValue", ".google.protobuf.BoolValue"
_FIELDS = (
    ("max_batch_size", _INT),
    ("batch_timeout_micros", _INT),
    ("max_enqueued_batches", _INT),
    ("num_batch_threads", _INT),
    ("thread_pool_name", _STRING),
    ("allowed_batch_sizes", "repeated int64"),
    ("pad_variable_length_inputs", "bool"),
    ("enable_large_batch_splitting", _BOOL),
    ("max_execution_batch_size", _INT),
)


@dataclass(frozen=True)
class BatchingOptions:
    """Says how requests are merged; the names and, but for the size, the defaults are TF Serving's.

    Attributes:
        max_batch_size: the most rows of a batch; a larger request is refused.
        batch_timeout_micros: how long a request waits for company while a thread is free.
        max_enqueued_batches: how many full batches may wait; further requests are refused.
        num_batch_threads: how many batches run at the same time.
        allowed_batch_sizes: taken and checked, but batches are not padded to them: our graphs take any size.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        """Refuses what cannot be.

        Raises:
            ValueError: a number is too small, or the sizes do not rise up to the largest batch.
        """
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.batch_timeout_micros < 0:
            raise ValueError(f"expected batch_timeout_micros of at least 0, got {self.batch_timeout_micros}")
        sizes = self.allowed_batch_sizes
        if sizes and (sorted(set(sizes)) != list(sizes) or sizes[0] < 1 or sizes[-1] != self.max_batch_size):
            raise ValueError(
                f"expected allowed_batch_sizes that rise up to max_batch_size, {self.max_batch_size}; got "
                f"{', '.join(map(str, sizes))}"
            )


def from_file(file: Path) -> BatchingOptions:
    """Reads a BatchingParameters text proto, such as `batching_params.pbtxt`; what it leaves out has its default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no BatchingParameters, asks for what this server does not do, or for what cannot be.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected BatchingParameters in {file}: there is no such file; check the path")
    try:
        proto = text_format.Parse(file.read_text(), _message()())
        for field in ("pad_variable_length_inputs", "enable_large_batch_splitting"):
            value = getattr(proto, field)
            if getattr(value, "value", value):
                raise ValueError(f"expected no {field}: this server does neither; leave it out")
        given: dict[str, Any] = {
            name: getattr(proto, name).value
            for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
            if proto.HasField(name)
        }
        return BatchingOptions(**given, allowed_batch_sizes=tuple(proto.allowed_batch_sizes))
    except (text_format.ParseError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


@cache
def _message() -> type:
    """Makes the message class, in a pool of its own: another library may bring the real one."""
    kind = descriptor_pb2.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="batching_parameters.proto", syntax="proto3", package="serving")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    message = file.message_type.add(name="BatchingParameters")
    for number, (name, what) in enumerate(_FIELDS, 1):
        field = message.field.add(name=name, number=number, label=kind.LABEL_OPTIONAL)
        if what.startswith("."):
            field.type, field.type_name = kind.TYPE_MESSAGE, what
        elif what == "bool":
            field.type = kind.TYPE_BOOL
        else:
            field.type, field.label = kind.TYPE_INT64, kind.LABEL_REPEATED
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.BatchingParameters"))
