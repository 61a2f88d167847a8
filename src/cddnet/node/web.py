"""The page of a running node, in a thread of its own."""

from __future__ import annotations

import threading

from cddnet.node.access import LOOPBACK, Access
from cddnet.node.config import NodeConfig
from cddnet.node.http import app
from cddnet.node.receive import Receiver
from cddnet.node.serving import listen, server
from cddnet.node.station import Station
from cddnet.node.uploads import Limits, clear_uploads
from cddnet.node.views import NodeSources

_GB = 10**9


class Web:
    """Raises CddnetError where its port is taken."""

    def __init__(self, config: NodeConfig, station: Station, receiver: Receiver) -> None:
        http = config.http
        clear_uploads(config.folder)
        page = app(
            NodeSources(station.journal, config.folder, receiver.take_file),
            Access(hosts=(*LOOPBACK, http.host, *http.hosts), token=http.secret()),
            metrics=lambda: station.metrics.text().decode(),
            limits=Limits(smallest_free_bytes=int(config.smallest_free_gb * _GB)),
        )
        socket = listen(http.host, http.port)
        self.port = int(socket.getsockname()[1])
        self._server = server(page)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [socket]}, name="page"
        )
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._server.should_exit = True
        self._thread.join(timeout_s)
