"""`cddnet node rebuild`: a new journal, made of the images in the node's folder."""

from __future__ import annotations

from cddnet.errors import CddnetError
from cddnet.node.receive.unknown import Entered, enter_unknown
from cddnet.node.settings.config import NodeConfig
from cddnet.node.station import Station
from cddnet.node.store.database import JournalDamaged


def rebuild(config: NodeConfig, *, sender: str | None = None, force: bool = False) -> Entered:
    """Set the journal aside and make another one of the images and the decisions beside them.

    What was sent is not known any more: every result is sent again, as the same object.  sender:
    AE title to take for images that do not say who sent them.  force: also where the journal is
    whole.  Raises: CddnetError where it is, where the folder is no node's, or a node uses it.
    """
    if not force:
        _require_damage(config)
    station = Station(config, new_journal=True)
    try:
        return enter_unknown(station, sender)
    finally:
        station.close()


def _require_damage(config: NodeConfig) -> None:
    try:
        Station(config).close()
    except JournalDamaged:
        return
    raise CddnetError(
        f"{config.folder}: the journal is whole; start the node, or rebuild it all the same with "
        "--force: what was sent is then sent again."
    )
