"""Who may reach the server: this machine, or others over TLS with a token."""

import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stock_requests import call, good_request, status_request

from serving.client.check import check
from serving.embedded.access import Access
from serving.embedded.rest.metrics import Metrics
from serving.embedded.server import Server

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def files(certificate, tmp_path_factory):
    """Gives a certificate, its key, and a token."""
    token_file = tmp_path_factory.mktemp("access") / "token"
    token_file.write_text(TOKEN + "\n")
    return {"cert": certificate, "key": certificate.with_name("key.pem"), "token_file": token_file}


@pytest.fixture(scope="module")
def guarded(server, files):
    """Serves the same models with TLS and a token."""
    with Server(server.models, port=0, access=Access.of("127.0.0.1", **files)) as guarded:
        yield guarded


def _channel(server: Server, files) -> grpc.Channel:
    return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(files["cert"].read_bytes()))


def _predict(channel: grpc.Channel, *metadata: tuple[str, str]):
    method = "/tensorflow.serving.PredictionService/Predict"
    return channel.unary_unary(method)(good_request().SerializeToString(), metadata=metadata, timeout=20)


def test_the_token_lets_in(guarded, files):
    with _channel(guarded, files) as channel:
        assert _predict(channel, ("authorization", f"Bearer {TOKEN}"))
        assert _predict(channel, ("authorization", f"bearer {TOKEN}"))


@pytest.mark.parametrize(
    "metadata", [[], [("authorization", "Bearer wrong")], [("authorization", TOKEN)], [("authorization", "Bearer ")]]
)
def test_without_the_token_there_is_no_way_in(guarded, files, metadata):
    with _channel(guarded, files) as channel, pytest.raises(grpc.RpcError) as refused:
        _predict(channel, *metadata)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer TOKEN" in refused.value.details()


def test_methods_made_up_without_a_token_are_no_metric(guarded, files):
    metrics = Metrics(guarded.handler)
    with _channel(guarded, files) as channel:
        for path in ("/a/b", "/tensorflow.serving.PredictionService/Nope", "/tensorflow.serving.ModelService/Predict"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    guarded.handler.observer = None
    page = metrics.page().decode()
    assert ':request_count{model_name="",status="UNAUTHENTICATED"} 1.0' in page and "Nope" not in page  # Predict alone


def test_status_and_health_watches_need_the_token_and_health_checks_do_not(guarded, files):
    with _channel(guarded, files) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            call(channel, "GetModelStatus", status_request())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_client_that_speaks_no_tls_is_not_answered(guarded):
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as refused:
        _predict(channel, ("authorization", f"Bearer {TOKEN}"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_clients_need_a_certificate_where_told(server, files):
    access = Access(files["cert"], files["key"], client_ca=files["cert"])
    cert, key = files["cert"].read_bytes(), files["key"].read_bytes()
    with Server(server.models, port=0, access=access) as guarded:
        with _channel(guarded, files) as channel, pytest.raises(grpc.RpcError):
            _predict(channel)
        with grpc.secure_channel(guarded.address, grpc.ssl_channel_credentials(cert, key, cert)) as channel:
            assert _predict(channel)
        pair = {"client_cert": files["cert"], "client_key": files["key"]}
        report = check(guarded.address, "m", requests=1, ca_cert=files["cert"], **pair, version=1)
        assert list(report.versions) == [1] and report.requests == 1, report.failures
        with pytest.raises(ValueError, match="a client's certificate and its key together"):
            check(guarded.address, "m", ca_cert=files["cert"], client_key=files["key"])
        with pytest.raises(ValueError, match="expected --ca-cert with --client-cert"):
            check(guarded.address, "m", **pair)


def test_other_machines_come_in_with_tls_and_a_token_only(files):
    cert, key, token = files["cert"], files["key"], files["token_file"]
    for host in ("127.0.0.1", "localhost", "::1"):
        assert Access.of(host).permits(None)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        for given in ({}, {"cert": cert, "key": key}, {"token_file": token}):
            with pytest.raises(ValueError, match=r"^expected TLS and a token on .* or say --insecure"):
                Access.of(host, **given)
        assert Access.of(host, cert, key, token_file=token).token == TOKEN
        assert Access.of(host, insecure=True).server_credentials() is None


def test_halves_and_weak_tokens_are_refused_in_a_line(files, tmp_path):
    (tmp_path / "short").write_text("12345\n")
    for given, message in [
        ({"cert": files["cert"]}, "expected a certificate and its key together"),
        ({"client_ca": files["cert"]}, "expected TLS where clients need certificates"),
        ({"token_file": tmp_path / "short"}, "expected a token of at least 16 printable characters"),
        ({"token_file": tmp_path / "absent"}, "expected a file at"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            Access.of("127.0.0.1", **given)
        assert len(str(caught.value).splitlines()) == 1
    assert TOKEN not in repr(Access.of("127.0.0.1", **files))


def test_files_that_are_no_certificates_are_refused_in_a_line_before_anything_is_loaded(files, tmp_path):
    cert, key = files["cert"], files["key"]
    other, locked, text = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "text"
    text.write_text("no certificate")
    for command in (
        f"ecparam -name prime256v1 -genkey -noout -out {other}",
        f"pkey -in {key} -aes256 -passout pass:secret -out {locked}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    pair = "expected a certificate in .* and its private key, without a password, in "
    for given, message in [
        ((text, key), pair),
        ((cert, text), pair),
        ((cert, other), pair + ".*MISMATCH"),
        ((cert, locked), pair),
        ((cert, key, text), "expected the certificates of authorities in .*text, as PEM"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}") as caught:
            Access.of("127.0.0.1", *given)
        assert len(str(caught.value).splitlines()) == 1
