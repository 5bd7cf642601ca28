"""The connection: TLS with a certificate of one's own, and a token that crosses no network in the clear."""

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client.client import Client, ServingError
from serving.connections import authorization, open_channel, read_token

TOKEN = "a-token.of~visible+characters/1="


class _Guarded(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers with what it got those who show the token."""

    def Predict(self, request, context):  # noqa: N802 - gRPC's name
        shown = dict(context.invocation_metadata()).get("authorization")
        if shown != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"expected a token, got {shown}")
        return predict_pb2.PredictResponse(outputs=request.inputs)


@pytest.fixture
def address(certificate: Path) -> Iterator[str]:
    """Serves over TLS; gives HOST:PORT."""
    key = certificate.with_name("key.pem").read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Guarded(), server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, certificate.read_bytes())]))
    server.start()
    yield f"localhost:{port}"
    server.stop(None).wait()


def test_a_server_with_tls_and_a_token_is_asked(certificate, address):
    with Client(address, "m", timeout=10, ca_cert=certificate, token=TOKEN) as client:
        assert client.detect([b"x"])["image_bytes"].tolist() == [b"x"]


@pytest.mark.parametrize("token", [None, "other"])
def test_without_the_token_it_says_so(certificate, address, token):
    with Client(address, "m", timeout=10, ca_cert=certificate, token=token) as client:
        with pytest.raises(ServingError) as caught:
            client.detect([b"x"])
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert TOKEN not in str(caught.value)


def test_without_tls_it_is_not_reached(address):
    with Client(address, "m", timeout=2) as client, pytest.raises(ServingError) as caught:
        client.detect([b"x"])
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/x"])
def test_a_token_may_be_shown_on_this_machine(host):
    assert authorization(host, TOKEN, encrypted=False) == (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize("host", ["example.org:1", "10.0.0.1:1", "127.0.0.1.example.org:1", "dns:///x:1"])
def test_a_token_crosses_no_network_in_the_clear(host):
    with pytest.raises(ValueError, match="expected --ca-cert with a token"):
        authorization(host, TOKEN, encrypted=False)
    assert authorization(host, TOKEN, encrypted=True)
    assert authorization(host, None, encrypted=False) == ()


def test_files_that_do_not_do_are_refused_in_a_line(tmp_path):
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    for text in ("", "two words", "two\nlines", "é"):
        with pytest.raises(ValueError, match="visible ASCII"):
            authorization("localhost:1", text, encrypted=True)
    (tmp_path / "broken").write_bytes(b"-----BEGIN CERTIFICATE-----\n\xff\n-----END CERTIFICATE-----\n")
    for name in ("token", "broken", "nothing"):
        with pytest.raises(ValueError, match=f"^expected the certificates of authorities in .*{name}, as PEM: "):
            open_channel("localhost:1", tmp_path / name)
    for name in ("broken", "nothing"):
        with pytest.raises(ValueError, match=f"^expected a token in '.*{name}'; it cannot be read: "):
            read_token(tmp_path / name)
