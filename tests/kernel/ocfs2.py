# SPDX-License-Identifier: Apache-2.0
"""OCFS2 with its own cluster stack (o2cb) on the two writers of a shared volume: the recipe of target/service/README.md.

Both nodes write files and sync them.  A file's name is the checksum of its content.  A snapshot has journals to replay, so
the reader checks it in two forms:

* a copy of the view, as `wolun snapshot export` makes it: `fsck.ocfs2 -fy` replays the journals, and must mend nothing else;
  then `fsck.ocfs2 -fn` must call it clean;
* the view below dm-snapshot, with a UUID of its own, mounted: every file must be whole, and all that were synced before the
  snapshot must be there.
"""

from __future__ import annotations

from concurrent.futures import Future

from tests.kernel import packages
from tests.kernel.cluster import NODES, READER, WRITERS, Cluster
from tests.kernel.machine import COMMAND_TIMEOUT, Completed

SIZE = "128MiB"
_DIRECTORY = "/run/volume"
_SYNCED = "/run/synced"
_WRITE = f"""
trap 'touch /run/ended' EXIT
cd {_DIRECTORY} && mkdir -p $HOSTNAME && cd $HOSTNAME || exit 1
while [ ! -e /run/enough ]; do
    head -c $((4096 * (RANDOM % 16 + 1))) /dev/urandom > new || exit 1
    sum=$(sha256sum < new); sync new || exit 1
    mv new ${{sum%% *}} && sync . || exit 1
    echo ${{sum%% *}} >> {_SYNCED}
done
"""
_CONFIGURATION = """cluster:
\tnode_count = 3
\tname = lab

node:
\tnumber = 1
\tcluster = lab
\tip_port = 7777
\tip_address = {0}
\tname = node1

node:
\tnumber = 2
\tcluster = lab
\tip_port = 7777
\tip_address = {1}
\tname = node2

"""


def ensure() -> None:
    """Install OCFS2's programs.  Raise LabUnavailable."""
    packages.ensure({"ocfs2-tools": "mkfs.ocfs2"})


class Mounted:
    """A shared volume with OCFS2, mounted on both writers, which write files."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._synced: dict[str, set[str]] = {}
        configuration = _CONFIGURATION.format(*(cluster.lab[name].address for name in NODES))
        for name in NODES:
            machine = cluster.lab[name]
            machine.run("mkdir -p /etc/ocfs2 " + _DIRECTORY)
            machine.put_file("/etc/ocfs2/cluster.conf", configuration)
            machine.run(
                "modprobe -a ocfs2_stack_o2cb ocfs2_dlmfs ocfs2 && echo o2cb > /sys/fs/ocfs2/cluster_stack\n"
                "o2cb register-cluster lab"
            )
        first = cluster.nodes[WRITERS[0]]
        first.machine.run(
            f"mkfs.ocfs2 -q --cluster-stack=o2cb --cluster-name=lab -N 2 -J size=8M -L archive {first.disk} < /dev/null"
        )
        self._loads: list[Future[Completed]] = []
        for name in WRITERS:
            node = cluster.nodes[name]
            node.machine.run(f"mount -t ocfs2 {node.disk} {_DIRECTORY}")
            node.machine.put_file("/run/write", _WRITE)
            self._loads.append(node.machine.submit("bash /run/write", timeout=COMMAND_TIMEOUT * 5))
        self._await_files()

    def take(self, node: str, name: str) -> None:
        """Take a snapshot on a node, while both write."""
        self._synced[name] = {
            f"{writer}/{file}"
            for writer in WRITERS
            for file in self.cluster.lab[writer].output(f"head -n -1 {_SYNCED}").split()
        }
        self.cluster.nodes[node].snapshot(name)
        self._await_files()

    def _await_files(self, count: int = 6) -> None:
        for name in WRITERS:
            machine = self.cluster.lab[name]
            number = f"$(wc -l < {_SYNCED})"
            before = int(machine.output(f"touch {_SYNCED}; echo {number}"))
            machine.wait_until(f"[ {number} -ge {before + count} ] || [ -e /run/ended ]")
            assert not machine.output("ls /run/ended 2> /dev/null || true"), "a writer ended"

    def finish(self) -> None:
        """End the writers, and unmount."""
        for name in WRITERS:
            self.cluster.lab[name].run("touch /run/enough")
        for load in self._loads:
            ended = load.result(COMMAND_TIMEOUT)
            assert ended.code == 0, ended.output
        for name in WRITERS:
            self.cluster.lab[name].run(f"umount {_DIRECTORY}")

    def check(self, name: str) -> str:
        """Check the file system of a snapshot on the reader, and return a line about it."""
        reader, daemon = self.cluster.lab[READER], self.cluster.nodes[READER].daemon
        self.cluster.check(name)
        daemon.wolun("snapshot", "export", f"vol0@{name}", "/run/copy.img")
        copy = reader.output("losetup -f --show /run/copy.img")
        # -F: the copy is mounted nowhere, so the cluster need not be asked.
        replayed = reader.run(f"fsck.ocfs2 -F -fy {copy}", check=False).output
        assert "? y" not in replayed, replayed
        clean = reader.output(f"fsck.ocfs2 -F -fn {copy}")
        assert "All passes succeeded" in clean, clean
        reader.run(f"losetup -d {copy} && rm /run/copy.img")
        view = self.cluster.nodes[READER].view(name)
        files = reader.output(
            "truncate -s 64M /run/changes && loop=$(losetup -f --show /run/changes)\n"
            f'DM_DISABLE_UDEV=1 dmsetup create past --table "0 $(blockdev --getsz {view}) snapshot {view} $loop N 8"\n'
            "yes | tunefs.ocfs2 --cloned-volume=past /dev/mapper/past > /dev/null\n"
            f"mount -t ocfs2 -o ro /dev/mapper/past {_DIRECTORY} && cd {_DIRECTORY}\n"
            'for file in */*; do name=${file##*/}; [ $name = new ] || echo "$name  $file"; done > /run/sums\n'
            "sha256sum -c --quiet /run/sums && cut -d' ' -f3 /run/sums\n"
            f"cd /; umount {_DIRECTORY}; dmsetup remove past; losetup -d $loop; rm /run/changes"
        )
        there = set(files.split())
        assert self._synced[name] <= there, "files that were synced are not there"
        return (
            f"{name}: {len(there)} files whole, {len(self._synced[name])} of them synced before; "
            f"replayed: {replayed.strip()[-300:]}; then: {clean[-200:]}"
        )
