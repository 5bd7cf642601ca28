"""Loads a SavedModel in the ways that others do, where nothing of this project can be imported; run as a script.

python stranger.py REQUESTS OUT FOLDER ...: REQUESTS has encoded images, OUT gets what came of them for each folder,
both pickled.
"""

import pickle
import sys

sys.modules.update(dict.fromkeys(("overfeat_tf", "training", "serving")))  # None: cannot be imported

import tensorflow as tf  # noqa: E402
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402
from tensorflow.python.framework import op_def_registry  # noqa: E402


def in_a_session(folder: str, images: list[bytes], keys: list[str]) -> dict:
    """Answers by name, as TF Serving and other programs of TensorFlow 1's kind run it."""
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def
        fetched = {key: {name: value.name for name, value in signatures[key].outputs.items()} for key in keys}
        return {key: session.run(fetched[key], {signatures[key].inputs["image_bytes"].name: images}) for key in keys}


def by_callables(loaded, images: list[bytes]) -> dict:
    """Answers by name, of the loaded object's callables."""
    encoded, pixels = tf.constant(images), tf.io.decode_png(images[0])[None]
    taken = {"detect": encoded, "localize": encoded, "classify_images": pixels, "extract_features": pixels}
    answers = {key: getattr(loaded, key)(value) for key, value in taken.items() if key in loaded.signatures}
    return {key: {name: value.numpy() for name, value in answer.items()} for key, answer in answers.items()}


def gradients(loaded) -> dict:
    """The features' shape, the variables that there are, and those that learn through the features."""
    with tf.GradientTape() as tape:
        maps = loaded.features(tf.ones([1, 40, 48, 3]))
        total = tf.reduce_sum(maps**2)
    learning = [
        gradient is not None and bool(tf.reduce_any(gradient != 0))
        for gradient in tape.gradient(total, loaded.trainable_variables)
    ]
    return {
        "shape": maps.shape.as_list(),
        "variables": len(loaded.variables),
        "trainable": len(loaded.trainable_variables),
        "learning": sum(learning),
        "features": (len(loaded.features.variables), len(loaded.features.trainable_variables)),
    }


def operations(folder: str) -> dict:
    """The operations of graph and functions, those that this TensorFlow does not know, and what asks for XLA."""
    with open(f"{folder}/saved_model.pb", "rb") as file:
        (meta,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    library = meta.graph_def.library.function
    nodes = [*meta.graph_def.node, *(node for function in library for node in function.node_def)]
    used = {node.op for node in nodes} - {function.signature.name for function in library}
    return {
        "used": used,
        "unknown": {name for name in used if op_def_registry.get(name) is None},
        "compiled": [each.signature.name for each in library if each.attr["_XlaMustCompile"].b]
        + [node.name for node in nodes if node.attr["_XlaMustCompile"].b],
        "traces": [node.name for node in nodes if node.experimental_debug_info.original_func_names],
    }


if __name__ == "__main__":
    requests, out, *folders = sys.argv[1:]
    with open(requests, "rb") as file:
        images = pickle.load(file)
    results = []
    for folder in folders:
        loaded = tf.saved_model.load(folder)
        result = {
            "session": in_a_session(folder, images, ["serving_default"]),
            "callables": by_callables(loaded, images),
            "gradients": gradients(loaded),
            "operations": operations(folder),
            "ours": [name for name, module in sys.modules.items() if name.startswith("overfeat_tf") and module],
        }
        results.append(result)
    with open(out, "wb") as file:
        pickle.dump(results, file)
