"""Two worker processes on this machine, as TF_CONFIG describes them."""

import json
import os
import socket
import subprocess
import sys


def start_workers(*command: object) -> list[subprocess.Popen]:
    """Start `python COMMAND` twice, as the chief and the other worker of a cluster."""
    listening = [socket.create_server(("localhost", 0)) for _ in range(2)]
    cluster = {"worker": [f"localhost:{server.getsockname()[1]}" for server in listening]}
    for server in listening:
        server.close()
    configs = (json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2))
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        for config in configs
    ]
