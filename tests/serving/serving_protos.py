"""TF Serving's messages that its package of protos lacks, by the fields of their files."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_STR, _BOOL, _INT64, _MESSAGE = (
    getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name}") for name in ("STRING", "BOOL", "INT64", "MESSAGE")
)


def _message(name: str, *messages: tuple[str, list[tuple]]):
    """Builds TF Serving's messages that its package of protos lacks, of (field, number, type, type's name)."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="tensorflow.serving", syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    for each, fields in messages:
        message = file.message_type.add(name=each)
        for field, number, kind, label, *type_name in fields:
            named = {"type_name": type_name[0]} if type_name else {}
            message.field.add(name=field, number=number, type=kind, label=label, **named)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


_ONE, _MANY = 1, 3
_INT, _FLAG, _TEXT = (f".google.protobuf.{kind}Value" for kind in ("Int64", "Bool", "String"))
# servables/tensorflow/session_bundle_config.proto, by its fields; text format knows them by name alone.
BatchingParameters = _message(
    "BatchingParameters",
    (
        "BatchingParameters",
        [
            ("max_batch_size", 1, _MESSAGE, _ONE, _INT),
            ("batch_timeout_micros", 2, _MESSAGE, _ONE, _INT),
            ("max_enqueued_batches", 3, _MESSAGE, _ONE, _INT),
            ("num_batch_threads", 4, _MESSAGE, _ONE, _INT),
            ("thread_pool_name", 5, _MESSAGE, _ONE, _TEXT),
            ("allowed_batch_sizes", 6, _INT64, _MANY),
            ("pad_variable_length_inputs", 7, _BOOL, _ONE),
            ("enable_large_batch_splitting", 8, _MESSAGE, _ONE, _FLAG),
            ("max_execution_batch_size", 9, _MESSAGE, _ONE, _INT),
        ],
    ),
)
# config/monitoring_config.proto
MonitoringConfig = _message(
    "MonitoringConfig",
    ("PrometheusConfig", [("enable", 1, _BOOL, _ONE), ("path", 2, _STR, _ONE)]),
    ("MonitoringConfig", [("prometheus_config", 1, _MESSAGE, _ONE, ".tensorflow.serving.PrometheusConfig")]),
)
