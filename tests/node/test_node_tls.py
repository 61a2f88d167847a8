"""TLS: who is spoken to, whom the node speaks to, and that a silent caller holds up nobody."""

import gc
import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification
from small_node import Archive, Clock, archive_at, ct, node_config, received, shifted, station_at

from cddnet.config import ConfigError
from cddnet.node.archive.query import QueryError, find, parse_query
from cddnet.node.receive.receiver import Receiver
from cddnet.node.send.sender import Sender, carrier_of
from cddnet.node.service import Node
from cddnet.node.settings.parts import ClientTls, ServerTls
from cddnet.node.settings.tls import client_tls, server_tls
from cddnet.node.work.worker import Worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
]


@pytest.fixture(autouse=True)
def _sockets_that_the_library_left():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(authority, certificate, key) of a hospital and of strangers, for 127.0.0.1 alone."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*told):
        subprocess.run(["openssl", *map(str, told)], check=True, capture_output=True)

    found = {}
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    for who in ("hospital", "strangers"):
        authority, certificate, key = (folder / f"{who}.{what}" for what in ("ca", "pem", "key"))
        own = folder / f"{who}.cakey"
        openssl("req", "-x509", *kind, "-keyout", own, "-out", authority, "-subj", f"/CN={who} CA")
        signed = ("-CA", authority, "-CAkey", own, "-addext", "subjectAltName=IP:127.0.0.1")
        told = ("-keyout", key, "-out", certificate, "-subj", "/CN=archive")
        openssl("req", "-x509", *kind, *signed, *told)
        found[who] = (authority, certificate, key)
    return found


def client(keys, of=None):
    """TLS of a caller that trusts the hospital, and shows a certificate or none."""
    authority, _, _ = keys["hospital"]
    _, certificate, key = keys[of] if of else (None, None, None)
    return ClientTls(ca=authority, certificate=certificate, key=key)


def calls(port, tls):
    """Whether a caller is spoken to: TLS 1.3 tells a wrong certificate after the handshake."""
    entity = AE("SCANNER")
    entity.acse_timeout = entity.network_timeout = entity.connection_timeout = 5
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage)
    link = entity.associate(
        "127.0.0.1", port, ae_title="CDDNET", tls_args=(client_tls(tls), "127.0.0.1")
    )
    if not link.is_established:
        return False
    stored = link.send_c_store(ct(0)).Status == 0
    link.release()
    return stored


@pytest.fixture
def listening(tmp_path, keys):
    """A receiver that asks callers for a certificate of the hospital."""
    authority, certificate, key = keys["hospital"]
    tls = {"certificate": certificate, "key": key, "ca": authority}
    station = station_at(node_config(tmp_path / "node", tls=tls, timeout_s=30))
    receiver = Receiver(station, lambda event: (0, None))
    receiver.start()
    yield station
    receiver.stop(1)
    station.close()


def test_only_callers_with_a_certificate_of_the_authority_are_spoken_to(listening, keys):
    port = listening.config.dicom_port
    assert not calls(port, client(keys))
    assert not calls(port, client(keys, "strangers"))
    assert listening.journal.queue() == []
    assert calls(port, client(keys, "hospital"))
    assert len(listening.journal.queue()) == 1


def test_callers_that_say_nothing_hold_up_nobody(listening, keys):
    """They could: a handshake in the thread that accepts would wait the whole timeout of 30 s."""
    port = listening.config.dicom_port
    with ExitStack() as silent:
        for said in (b"", b"", b"\x16\x03\x01"):
            connection = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(said)
        # The caller's own patience is 5 s.
        assert calls(port, client(keys, "hospital"))


def test_nothing_older_than_tls_1_2(keys):
    authority, certificate, key = keys["hospital"]
    server = server_tls(ServerTls(certificate=certificate, key=key))
    for context in (server, client_tls(client(keys))):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_tls(ClientTls()).verify_mode == ssl.CERT_REQUIRED
    assert client_tls(ClientTls()).check_hostname
    assert authority


@pytest.mark.parametrize(
    ("host", "trusted", "arrives"),
    [
        ("127.0.0.1", "hospital", True),
        ("127.0.0.1", "strangers", False),
        # The certificate names the address alone.
        ("localhost", "hospital", False),
    ],
)
def test_images_go_only_to_an_archive_that_proves_its_name(tmp_path, keys, host, trusted, arrives):
    _, certificate, key = keys["hospital"]
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)
    with Archive(tls=own) as archive:
        told = archive_at(archive.port, host=host, tls={"ca": keys[trusted][0]}, timeout_s=3)
        clock = Clock()
        station = station_at(node_config(tmp_path, {"a": told}), clock)
        received(station, [ct(0)])
        clock.now += 100
        assert Worker(station, shifted).step()
        wait_s = Sender(station, "a", carrier_of(station, "a")).step()
        assert (len(archive.objects), wait_s == 0) == (arrives, arrives)
        (row,) = station.journal.queue()
        assert row.outputs[0].destinations == {"a": (1 - arrives, int(arrives), 0)}
        station.close()


def test_files_that_are_no_certificates_stop_the_start(tmp_path, keys):
    authority, certificate, _ = keys["hospital"]
    for tls in ({"ca": tmp_path / "none"}, {"certificate": certificate, "key": authority}):
        config = node_config(tmp_path / "node", {"a": archive_at(4, tls=tls)})
        with pytest.raises(ConfigError, match="cannot be used"):
            Node(config).start()
    with pytest.raises(ConfigError, match="cannot be used"):
        server_tls(ServerTls(certificate=authority, key=keys["strangers"][2]))


def test_an_archive_is_asked_over_tls_where_its_address_says_so(keys):
    from test_archive_query import dicom_archive

    _, certificate, key = keys["hospital"]
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)
    with dicom_archive(tls=own) as address:
        secure = address.replace("dicom://", "dicoms://")
        query = parse_query(secure, tls=client(keys))
        assert query.remote.address == secure
        assert len(list(find(query))) == 3
        for refused in (address, secure):
            with pytest.raises(QueryError, match="did not answer"):
                list(find(parse_query(refused)))
