"""The verb that serves."""

from pathlib import Path

import click

from overfeat_tf.cli.options import FILE, FOLDER, load_tensorflow

_NUMBER = click.IntRange(min=1)


@click.command()
@click.argument("models", metavar="saved_models/NAME...", type=FOLDER, nargs=-1)
@click.option("--config", type=FILE, help="TF Serving's models.config instead of folders; read again when saved.")
@click.option("--all-versions", is_flag=True, help="Every version of each folder, rather than the newest.")
@click.option("--wait", is_flag=True, help="Wait for models that are not there yet, as TF Serving does.")
@click.option("--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0 for any free one.")
@click.option("--rest-port", type=click.IntRange(0, 65535), help="REST and Prometheus metrics here; off if left out.")
@click.option("--ui", is_flag=True, help="Show a page to try it on the REST port, by default 8501.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine's need TLS and a token.")
@click.option("--tls-cert", type=FILE, help="The server's certificate, PEM.")
@click.option("--tls-key", type=FILE, help="Its private key, PEM.")
@click.option("--tls-client-ca", type=FILE, help="Clients need a certificate that this authority signed, PEM.")
@click.option("--token-file", type=FILE, help="Requests need its content as `authorization: Bearer TOKEN`.")
@click.option("--insecure", is_flag=True, help="No TLS and no token, whoever can reach the server.")
@click.option("--workers", type=_NUMBER, help="Requests that run at a time [one per CPU, at least 4].")
@click.option("--max-requests", type=_NUMBER, default=128, show_default=True, help="To run or wait; more are refused.")
@click.option("--max-megabytes", type=_NUMBER, default=64, show_default=True, help="The largest request, decoded.")
@click.option("--max-images", type=_NUMBER, default=1024, show_default=True, help="In one request; more are refused.")
@click.option(
    "--poll",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between polls.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=8.0,
    show_default=True,
    help="Seconds to finish in.",
)
def serve(
    models: tuple[Path, ...],
    config: Path | None,
    all_versions: bool,
    wait: bool,
    port: int,
    rest_port: int | None,
    ui: bool,
    host: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    token_file: Path | None,
    insecure: bool,
    workers: int | None,
    max_requests: int,
    max_megabytes: int,
    max_images: int,
    poll: float,
    grace: float,
) -> None:
    """Serve models over gRPC as TF Serving does, on one machine; for more than one use TF Serving itself.

    New versions in the models' folders are loaded, warmed up and switched to without a failed request. A broken version
    is reported and ignored. For dynamic batching use TF Serving.
    """
    if bool(models) == (config is not None):
        raise ValueError("expected folders of models (saved_models/NAME) or --config FILE; give one of them")
    if config is not None and all_versions:
        raise ValueError("expected no --all-versions with --config, which says for each model: model_version_policy")
    load_tensorflow()
    from serving.embedded.access import Access
    from serving.embedded.config import from_directories, from_file
    from serving.embedded.rest.server import DEFAULT_PORT
    from serving.embedded.server import run

    access = Access.of(host, tls_cert, tls_key, tls_client_ca, token_file, insecure)
    wanted = from_file(config) if config is not None else from_directories(models, all_versions)
    run(
        wanted,
        host,
        port,
        rest_port=DEFAULT_PORT if ui and rest_port is None else rest_port,
        page=ui,
        grace=grace,
        wait=wait,
        poll_seconds=poll,
        config=config,
        access=access,
        workers=workers,
        max_requests=max_requests,
        max_bytes=max_megabytes << 20,
        max_rows=max_images,
    )
