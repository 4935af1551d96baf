# SPDX-License-Identifier: Apache-2.0
"""The daemon's service: the parts behind the control socket, from the opening of the volumes to their last sync.

| part        | is                                                                                     |
| ----------- | -------------------------------------------------------------------------------------- |
| `inventory` | the volumes, their LUNs, the settings in force                                         |
| `jobs`      | the work that takes long                                                               |
| `snapshots` | the requests for snapshots                                                             |
| `clones`    | the requests for writable clones of snapshots                                          |
| `reshaping` | the requests that change a volume's content or size: roll back, resize                 |
| `scheduler` | a thread that takes and deletes snapshots by schedule                                  |
| `rates`     | a thread that measures throughput                                                      |
| `notices`   | a thread that sends alerts to a webhook and by mail                                    |
| `status`    | everything that is shown                                                               |
| `sharing`   | single write-once LUNs, and shared volumes with one snapshot, of nodes that share storage |
| `pools`     | pools of write-once LUNs for the nodes of a cluster                                    |
| `nodes`     | threads that open and follow the shared volumes of which this host is a node           |

A part knows the parts that it needs and never the service, so there is no circle.  There is no HTTP and no iSCSI here:
arguments come in, `messages` go out, refusals are `problems.Problem`.  Any thread may call any part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from target import audit, liveness
from target.configuration import settings
from target.service import (
    clones,
    inventory,
    jobs,
    nodes,
    notices,
    pools,
    rates,
    reshaping,
    scheduler,
    shared_devices,
    shared_storage,
    snapshots,
    status,
)
from target.service.fabric_view import FabricView


class Service:
    """The parts, made and ended in order.

    A volume that cannot be opened is not served; the others are, and the status has the reason.
    Raise lun_numbers.Damaged, OSError.
    """

    def __init__(self, configured: settings.Settings, state_dir: Path) -> None:
        self.audit = audit.Audit(state_dir / audit.FILE)
        self.jobs = jobs.Jobs()
        self.inventory = inventory.Inventory(configured, state_dir, self.jobs, self.audit)
        self.pools = pools.Pools(configured, state_dir, self.inventory)
        self.clones = clones.Clones(self.inventory)
        self.snapshots = snapshots.Snapshots(self.inventory, self.jobs, self.pools)
        self.reshaping = reshaping.Reshaping(self.inventory, self.jobs)
        self.scheduler = scheduler.Scheduler(self.inventory, self.snapshots, self.jobs, self.audit)
        self.rates = rates.Rates(self.inventory.counters, self.inventory.look)
        self.inventory.open_configured()
        self.pools.open()
        self._opener = shared_devices.Opener(state_dir)
        self.nodes = nodes.Nodes(self.inventory, configured, self._opener.open)
        self.status = status.Status(self.inventory, self.jobs, self.rates, self.scheduler, self.nodes, self.pools)
        self.notices = notices.Notices(configured.notices, self.status.alerts)
        self.status.noticing = self.notices.trouble
        self.sharing = shared_storage.Sharing(configured, state_dir, self.inventory.add_fixed_lun)
        for name, reason in self.sharing.failed.items():
            self.inventory.mark_failed(name, reason)

    def fabric_started(self, fabric: FabricView) -> None:
        """Begin to measure and to follow the schedules: initiators can connect to `fabric` now."""
        self.inventory.fabric = fabric
        self.rates.start()
        self.nodes.start()
        self.scheduler.start()
        self.notices.start()
        self.pools.start()

    def pulses(self) -> Sequence[liveness.Pulse]:
        """Return the signs of life of the loops that `fabric_started` has started."""
        own = (self.rates.pulse, self.scheduler.pulse)
        return (*own, self.notices.pulse) if self.notices.runs else own

    def stop(self) -> None:
        """Refuse all further requests and cancel the jobs.  Call this before the fabric ends."""
        self.inventory.stop()
        self.jobs.stop()
        self.scheduler.close()
        self.notices.close()
        self.nodes.stop()
        self.pools.stop()
        self.rates.close()

    def close(self) -> None:
        """Sync and close the volumes.  Call this when the fabric has ended."""
        self.inventory.close()
        self._opener.close()
        self.sharing.close()
        self.pools.close()
