"""One hop: what is sent, what is not, and failures in words."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
import traceback
from typing import Any

import pytest

from nbcontainer.registry import (
    ConnectionFailed,
    HttpRequest,
    HttpResponse,
    Interrupt,
    RequestsTransport,
    TransferCancelled,
)
from nbcontainer.registry.transport import _translated, read_capped
from nbcontainer.testing.registry import InProcessRegistry


@pytest.fixture
def transport():
    """A transport with little patience."""
    transport = RequestsTransport(timeout=2.0)
    yield transport
    transport.close()


@pytest.fixture
def registry():
    """A registry that works."""
    with InProcessRegistry() as registry:
        yield registry


@pytest.fixture
def listener():
    """A port on loopback, and the socket behind it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def get(transport: RequestsTransport, url: str, interrupt: Interrupt | None = None, **options: Any) -> HttpResponse:
    return transport.send(HttpRequest(method="GET", url=url, **options), interrupt or Interrupt("test"))


def failure(transport: RequestsTransport, url: str, **options: Any) -> ConnectionFailed:
    with pytest.raises(ConnectionFailed) as caught:
        get(transport, url, **options)
    return caught.value


def answer_once(server: socket.socket, data: bytes, hold: threading.Event | None = None) -> threading.Thread:
    """Accept one connection, read a little, send `data`, close (after `hold`)."""

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(data)
            if hold is not None:
                hold.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_answer_of_any_status(transport, registry):
    """A refusal is an answer; the headers are found in any case."""
    response = get(transport, f"{registry.url}/v2/x/manifests/y")
    assert response.status == 404
    assert response.headers["content-type"] == "application/json"
    assert b"MANIFEST_UNKNOWN" in (read_capped(response, 1000) or b"")


def test_what_is_sent(transport, registry):
    """Identity encoding is asked for; nothing else is added."""
    get(transport, f"{registry.url}/v2/").close()
    (request,) = registry.requests
    assert request.headers["accept-encoding"] == "identity"
    assert set(request.headers) <= {"host", "user-agent", "accept-encoding", "connection"}


def test_netrc_is_not_consulted(transport, registry, tmp_path, monkeypatch):
    """What ~/.netrc has for a host is not sent to it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login alice password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    get(transport, f"{registry.url}/v2/").close()
    assert "authorization" not in registry.requests[0].headers


def test_loopback_is_not_asked_for_through_a_proxy(transport, registry, monkeypatch):
    """A proxy in the environment is not for what runs on this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    response = get(transport, f"{registry.url}/v2/")
    response.close()
    assert response.status == 200


def test_proxy_is_used_and_its_failure_told(transport, monkeypatch):
    """Other hosts are asked for through the proxy; a broken one is named as the cause."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    problem = failure(transport, "http://registry.example/v2/")
    assert problem.kind == "proxy"
    assert "HTTPS_PROXY" in str(problem)


def test_read_capped_stops(transport, registry):
    """A body longer than the cap is not read to its end."""
    digest = registry.add_blob(b"x" * 100_000)
    url = f"{registry.url}/v2/a/blobs/{digest}"
    assert read_capped(get(transport, url), 99_999) is None
    assert read_capped(get(transport, url), 100_000) == b"x" * 100_000


@pytest.mark.parametrize(
    ("url", "transient"),
    [("https://registry.example/v2/", True), ("http://localhost:5000/v2/", False), ("http://[::1]:5000/v2/", False)],
)
def test_refusals_pass_by_themselves_elsewhere_only(url, transient):
    """A registry that is being restarted comes back; a closed port of this machine stays closed while one waits."""
    problem = _translated(ConnectionRefusedError(111, "Connection refused"), url, 3.0)
    assert (problem.kind, problem.transient) == ("refused", transient)


def test_connection_refused(transport, listener):
    """A closed port of this machine: told, not worth another try, with the system's own error as cause."""
    port = listener.getsockname()[1]
    listener.close()
    problem = failure(transport, f"http://127.0.0.1:{port}/v2/")
    assert (problem.kind, problem.transient) == ("refused", False)
    assert f"127.0.0.1:{port}" in str(problem)
    assert isinstance(problem.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(("code", "transient"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
def test_name_does_not_resolve(transport, monkeypatch, code, transient):
    """A wrong name is not tried again, a name server that is away is."""

    def fail(*_, **__):
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    problem = failure(transport, "http://registry.example/")
    assert (problem.kind, problem.transient) == ("dns", transient)
    assert "does not resolve" in str(problem)


def test_silence(listener):
    """A server that accepts and says nothing is given up after the time-out."""
    transport = RequestsTransport(timeout=0.2)
    problem = failure(transport, f"http://127.0.0.1:{listener.getsockname()[1]}/")
    transport.close()
    assert (problem.kind, problem.transient) == ("timeout", True)
    assert "within 0.2 s" in str(problem)


def test_plain_http_where_https_was_expected(transport, registry):
    """The sentence says what the server speaks and which setting allows it."""
    problem = failure(transport, f"https://{registry.host}/v2/")
    assert problem.kind == "plain-http"
    assert "speaks plain http" in str(problem)
    assert "NBCONTAINER_INSECURE_REGISTRIES" in str(problem)


def test_body_that_breaks_off(transport, listener):
    """A body shorter than announced is a broken connection, not an end."""
    thread = answer_once(listener, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
    response = get(transport, f"http://127.0.0.1:{listener.getsockname()[1]}/")
    with pytest.raises(ConnectionFailed) as caught:
        read_capped(response, 1000)
    thread.join()
    assert caught.value.kind == "broken"


def test_not_http(transport, listener):
    """Something else on the port is an error like any other."""
    thread = answer_once(listener, b"220 mail.example ESMTP\r\n")
    problem = failure(transport, f"http://127.0.0.1:{listener.getsockname()[1]}/")
    thread.join()
    assert problem.kind == "broken"


def test_content_encoding_is_not_undone(transport, listener):
    """The bytes read are the bytes sent, whatever they are said to be."""
    thread = answer_once(listener, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    response = get(transport, f"http://127.0.0.1:{listener.getsockname()[1]}/")
    assert read_capped(response, 10) == b"abc"
    thread.join()


def test_no_secret_in_a_failure(transport, listener):
    """Neither the error nor anything it was raised from shows the query of the URL."""
    port = listener.getsockname()[1]
    listener.close()
    problem = failure(transport, f"http://127.0.0.1:{port}/blob?X-Signature=secret", authorization="Bearer secret")
    shown = "".join(traceback.format_exception(problem)) + repr(problem.__context__) + repr(problem.__cause__)
    assert "X-Signature=" not in shown
    assert "Bearer secret" not in shown


def test_request_hides_its_secrets():
    """The representation of a request shows neither URL nor credentials."""
    request = HttpRequest(method="POST", url="https://x/?secret", authorization="Basic secret", body=b"secret")
    assert "secret" not in repr(request)


def test_unusable_header_is_an_error_of_ours(transport, registry):
    """A line end cannot be smuggled into a header."""
    problem = failure(transport, f"{registry.url}/v2/", authorization="Bearer a\r\nX: y")
    assert problem.kind == "address"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"])
def test_trip_wakes_a_waiting_thread(listener, sent):
    """Waiting for an answer, and for the rest of a body, ends at once when tripped."""
    transport = RequestsTransport(timeout=30.0)
    hold, interrupt = threading.Event(), Interrupt("the test")
    thread = answer_once(listener, sent, hold)
    threading.Timer(0.2, interrupt.trip).start()
    start = time.monotonic()
    with pytest.raises(TransferCancelled, match="the test was cancelled"):
        read_capped(get(transport, f"http://127.0.0.1:{listener.getsockname()[1]}/", interrupt), 1000)
    assert time.monotonic() - start < 5
    hold.set()
    thread.join()
    transport.close()


def test_trip_wakes_a_handshake(listener):
    """A server that says nothing when TLS begins holds nobody up either."""
    transport = RequestsTransport(timeout=30.0)
    hold, interrupt = threading.Event(), Interrupt("the test")
    thread = answer_once(listener, b"", hold)
    threading.Timer(0.2, interrupt.trip).start()
    start = time.monotonic()
    with pytest.raises(TransferCancelled, match="the test was cancelled"):
        get(transport, f"https://127.0.0.1:{listener.getsockname()[1]}/", interrupt)
    assert time.monotonic() - start < 5
    hold.set()
    thread.join()
    transport.close()


def test_tripped_interrupt_sends_nothing(transport, registry):
    """After the wish to stop, no request is made."""
    interrupt = Interrupt("the test")
    interrupt.trip()
    with pytest.raises(TransferCancelled):
        get(transport, f"{registry.url}/v2/", interrupt)
    assert registry.requests == ()


def test_watching_ends_with_the_body(transport, registry):
    """Once a body has been read, an interrupt no longer touches the pooled connection."""
    interrupt = Interrupt("the test")
    read_capped(get(transport, f"{registry.url}/v2/", interrupt), 100)
    interrupt.trip()
    get(transport, f"{registry.url}/v2/").close()
    assert len(registry.requests) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for registry.test and 127.0.0.1, signed by nobody."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs the cryptography package to make a certificate")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry.test")])
    now = dt.datetime.now(dt.timezone.utc)
    alternatives = [x509.DNSName("registry.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    encoding = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(encoding))
    (folder / "key.pem").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture
def secure_registry(certificate):
    """A registry that speaks TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with InProcessRegistry(tls=context) as registry:
        yield registry


def test_unknown_certificate(transport, secure_registry):
    """A certificate nobody vouches for is refused, with both ways out named."""
    problem = failure(transport, f"{secure_registry.url}/v2/")
    assert (problem.kind, problem.transient) == ("certificate", False)
    assert "REQUESTS_CA_BUNDLE" in str(problem)
    assert secure_registry.requests == ()


def test_unverified_certificate_without_warning(transport, secure_registry):
    """With verification off, as insecure registries have it, there is no process-wide warning."""
    get(transport, f"{secure_registry.url}/v2/", verify=False).close()
    assert len(secure_registry.requests) == 1


def test_ca_bundle_of_the_environment(transport, secure_registry, certificate, monkeypatch):
    """REQUESTS_CA_BUNDLE is honoured."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
    get(transport, f"{secure_registry.url}/v2/").close()
    assert len(secure_registry.requests) == 1


def test_trip_wakes_a_thread_in_tls(secure_registry):
    """Shutting the socket down works under TLS too."""
    secure_registry.faults.delay = 1.0
    transport, interrupt = RequestsTransport(timeout=30.0), Interrupt("the test")
    threading.Timer(0.2, interrupt.trip).start()
    start = time.monotonic()
    with pytest.raises(TransferCancelled):
        get(transport, f"{secure_registry.url}/v2/", interrupt, verify=False)
    assert time.monotonic() - start < 0.9
    transport.close()
