"""The verbs `serve` and `check`, and `overfeat serve` in a separate process."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import click

from overfeat_tf.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    Connection,
    Number,
    connection_options,
    load_tensorflow,
    write_json,
)

START_SECONDS, STATE_SECONDS = 600.0, 300.0  # within which a server serves, and a version is in a state
_SERVES = re.compile(r" serving .* on (\S+)$")  # the line that a server logs once it serves, after time and level


@click.command()
@click.argument("models", metavar="saved_models/NAME...", type=FOLDER, nargs=-1)
@click.option("--config", type=FILE, help="TF Serving's models.config instead of folders; reloaded when saved.")
@click.option("--all-versions", is_flag=True, help="Serve all versions of each model, not only the newest.")
@click.option("--no-warmup", is_flag=True, help="Do not replay warm-up requests; the first requests take seconds.")
@click.option("--wait", is_flag=True, help="Wait for models that do not exist yet, as TF Serving does.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="The gRPC port; 0 for any free one."
)
@click.option("--rest-port", type=click.IntRange(0, 65535), help="Port of REST and Prometheus metrics [off].")
@click.option("--ui", "page", is_flag=True, help="Serve a demo page on the REST port, by default 8501.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Hosts other than this machine need TLS and a token."
)
@click.option("--tls-cert", type=FILE, help="The server's certificate, PEM.")
@click.option("--tls-key", type=FILE, help="The server's private key, PEM.")
@click.option("--tls-client-ca", type=FILE, help="Require client certificates signed by this authority, PEM.")
@click.option("--token-file", type=FILE, help="Require the file's content as `authorization: Bearer TOKEN`.")
@click.option("--insecure", is_flag=True, help="Allow other hosts without TLS and token.")
@click.option("--workers", type=COUNT, help="Concurrent requests [one per CPU, at least 4].")
@click.option(
    "--max-requests", type=COUNT, default=128, show_default=True, help="Requests that run or wait; more are rejected."
)
@click.option(
    "--max-megabytes",
    type=click.IntRange(1, 2047),  # gRPC's limit is an int32 of bytes
    default=64,
    show_default=True,
    help="Size of the largest request, decoded.",
)
@click.option("--max-images", "max_rows", type=COUNT, default=1024, show_default=True, help="Images in one request.")
@click.option(
    "--poll",
    "poll_seconds",
    type=Number(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between looks for new versions.",
)
@click.option(
    "--grace",
    type=Number(min=0),
    default=8.0,
    show_default=True,
    help="Seconds that requests have to finish after SIGTERM.",
)
def serve(
    models: tuple[Path, ...],
    config: Path | None,
    all_versions: bool,
    no_warmup: bool,
    rest_port: int | None,
    page: bool,
    host: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    token_file: Path | None,
    insecure: bool,
    max_megabytes: int,
    **options: Any,
) -> None:
    """Serve models over gRPC as TF Serving does, on one machine.

    The ports open at once; until the models are loaded, their state is LOADING and the health NOT_SERVING. The server
    loads and warms up new versions in the models' folders and switches to them without a failed request. It
    reports a broken version and ignores it. For several machines or dynamic batching use TF Serving.
    """
    if bool(models) == (config is not None):
        raise ValueError("expected either folders of models (saved_models/NAME) or --config FILE")
    if config is not None and all_versions:
        raise ValueError("expected no --all-versions with --config; set model_version_policy of each model in the file")
    load_tensorflow()
    from serving.embedded.access import Access
    from serving.embedded.config import from_directories, from_file
    from serving.embedded.rest.server import DEFAULT_PORT
    from serving.embedded.server import run

    access = Access.of(host, tls_cert, tls_key, tls_client_ca, token_file, insecure)
    wanted = from_file(config) if config is not None else from_directories(models, all_versions)
    run(
        wanted,
        host=host,
        rest_port=DEFAULT_PORT if page and rest_port is None else rest_port,
        page=page,
        warm=not no_warmup,
        config=config,
        access=access,
        max_bytes=max_megabytes << 20,
        **options,
    )


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--model", required=True, help="The model's name on the server.")
@click.option("--requests", type=COUNT, default=20, show_default=True, help="Number of requests to time.")
@click.option("--json", "json_file", type=FILE, help="Also write the report to this file.")
@connection_options
def check(address: str, model: str, requests: int, json_file: Path | None, connection: Connection) -> None:
    """Check that a server is ready and answers.

    Checks the model's signatures, sends a request to each, and measures the median and the 95th percentile of the time
    for an answer.
    """
    load_tensorflow()
    from serving.client.check import check as check_server

    report = check_server(address, model, requests=requests, **connection)
    click.echo("\n".join(report.lines()))
    write_json(json_file, report.as_dict())
    sys.exit(0 if report.ok else 1)


class ServerProcess:
    """Runs `overfeat serve` on a free port in a separate process for the duration of a `with` block.

    Attributes:
        address: HOST:PORT of gRPC.
        rest: HOST:PORT of REST; empty without it.
        start_seconds: From the start of the process until it serves.
        serving: The line that the server logs once it serves.
        loading: What the server logs about loading and warming up.
    """

    def __init__(self, model_dir: Path, *options: str):
        self._model = model_dir.name
        command = [sys.executable, "-m", "overfeat_tf.cli", "serve", str(model_dir), "--port", "0"]
        self._command = [*command, *options]
        self._log: list[str] = []

    def __enter__(self) -> Self:
        """Start the process and wait until it serves.

        Raises:
            RuntimeError: it exited or took too long; the message has its last line.
        """
        started = time.perf_counter()
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, errors="replace")
        ready = threading.Event()
        threading.Thread(target=self._read_log, args=[ready], daemon=True).start()
        ready.wait(START_SECONDS)
        self.start_seconds = time.perf_counter() - started
        serving = next(filter(None, map(_SERVES.search, self._log)), None)
        if serving is None:
            self._process.kill()
            last = self._log[-1] if self._log else "no output"
            raise RuntimeError(f"expected the server to start; its last line: {last}")
        self.serving, self.address = serving[0].strip(), serving[1]
        self.rest = next((found[1] for line in self._log if (found := re.search(r"http://([^/\s]+)", line))), "")
        self.loading = next((line.partition(": ")[2] for line in self._log if "loaded in" in line), "")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """The resident memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def wait_for_state(self, version: int, state: int) -> None:
        """Wait until a version is in a state (`ModelVersionStatus.AVAILABLE` ...).

        Raises:
            TimeoutError: it is not in that state after `STATE_SECONDS`.
        """
        import grpc
        from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": self._model})
        end = time.monotonic() + STATE_SECONDS
        with grpc.insecure_channel(self.address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            while time.monotonic() < end:
                found = stub.GetModelStatus(request, timeout=60).model_version_status
                if any((each.version, each.state) == (version, state) for each in found):
                    return
                time.sleep(0.2)
        raise TimeoutError(f"expected version {version} in state {state} within {STATE_SECONDS:g} s; got {found}")

    def _read_log(self, ready: threading.Event) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log = [*self._log[-100:], line.strip()]
            if _SERVES.search(line.rstrip()):
                ready.set()
        ready.set()
        self._process.stderr.close()
