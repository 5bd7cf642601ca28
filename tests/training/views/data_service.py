"""A server of TensorFlow's tf.data service, in a process of its own, without this package's code.

`data_service.py dispatcher PORT` or `data_service.py worker PORT DISPATCHER`.
"""

import sys

import tensorflow as tf

service = tf.data.experimental.service

if __name__ == "__main__":
    kind, port, *dispatcher = sys.argv[1:]
    if kind == "dispatcher":
        server = service.DispatchServer(service.DispatcherConfig(port=int(port)))
    else:
        address = f"localhost:{port}"
        server = service.WorkerServer(service.WorkerConfig(dispatcher[0], address, int(port)))
    print("ready", flush=True)
    server.join()
