"""The page of a running node, in a thread of its own."""

from __future__ import annotations

import threading

from cddnet.node.receive.inflow import SHARE
from cddnet.node.receive.receiver import MB, Receiver
from cddnet.node.settings.config import NodeConfig
from cddnet.node.station import Station
from cddnet.node.watch.vocabulary import Event
from cddnet.node.web.access import LOOPBACK, Access, Told
from cddnet.node.web.destinations import Destinations
from cddnet.node.web.http import Figures, app
from cddnet.node.web.serving import listen, server
from cddnet.node.web.uploads import Limits, clear_uploads
from cddnet.node.web.views import NodeSources

_GB = 10**9


def _told(station: Station) -> Told:
    def told(event: Event, reason: str, peer: str) -> None:
        station.log.event(event, reason=reason or None, peer=peer)
        if reason:
            station.metrics.refused(reason)

    return told


class Web:
    """Raises CddnetError where its port is taken."""

    def __init__(self, config: NodeConfig, station: Station, receiver: Receiver) -> None:
        http = config.http
        clear_uploads(config.folder)
        page = app(
            NodeSources(
                station.journal,
                config.folder,
                receiver.take_file,
                Destinations(
                    station.deliveries,
                    tuple(config.destinations),
                    station.troubles,
                    lambda event, count: station.log.event(event, count=count),
                ),
            ),
            Access(hosts=(*LOOPBACK, http.host, *http.hosts), token=http.secret()),
            figures=Figures(lambda: station.metrics.text().decode(), station.health.view),
            limits=Limits(
                smallest_free_bytes=int(config.smallest_free_gb * _GB),
                # A file is held twice on its way into the store.
                entry_bytes=int(config.largest_in_memory_mb * MB * SHARE / 2),
            ),
            told=_told(station),
        )
        socket = listen(http.host, http.port)
        self.port = int(socket.getsockname()[1])
        self._server = server(page, http.proxies)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [socket]}, name="page"
        )
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._server.should_exit = True
        self._thread.join(timeout_s)
