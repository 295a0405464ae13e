"""Machines of a test: namespaces of this one that see neither its network nor its processes, and end when told."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "ps")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ISOLATED = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
FIRST = ["sh", "-c", "while sleep 1; do :; done"]  # process 1, which buries the dead: `ray stop` waits for that


def why_not() -> str | None:
    """What this machine lacks for machines within it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"needs namespaces: {tried.stderr.strip()}"


class Machine:
    """``folder`` is its /tmp, and holds root's home. Its network has nobody else until :meth:`connect`."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        passwd = folder / "passwd"
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines(keepends=True)
        root = "root:x:0:0:root:/tmp/home:/bin/bash\n"
        passwd.write_text("".join([root, *(line for line in lines if not line.startswith("root:"))]), encoding="utf-8")
        self._holder = subprocess.Popen([*ISOLATED, *FIRST])
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        while not (pids := children.read_text(encoding="utf-8").split()) or _name(pids[0]) != "sh":
            time.sleep(0.05)
        self.pid = pids[0]
        self.run("ip", "link", "set", "lo", "up")
        self.run("mount", "--bind", str(passwd), "/etc/passwd")
        for place in ("/run", "/dev/shm"):
            self.run("mount", "-t", "tmpfs", "tmpfs", place)
        self.run("mount", "--bind", str(folder), "/tmp")

    def command(self, *command: str) -> list[str]:
        return ["nsenter", "--target", self.pid, "--net", "--pid", "--mount", "--", *command]

    def run(self, *command: str, check: bool = True, timeout_s: float = 60, **environment: str) -> str:
        """What it prints, both streams together."""
        variables = {"HOME": "/tmp/home", "PATH": PATH, "LANG": "C.UTF-8"} | environment
        done = subprocess.run(
            self.command(*command),
            env=variables,
            cwd="/",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def processes(self) -> list[str]:
        """Command lines of all that it sees, without the one that asks."""
        lines = [line.strip() for line in self.run("ps", "-e", "-o", "args=").splitlines()]
        return [line for line in lines if not line.startswith("ps -e")]

    def listen_for_ssh(self, key: Path) -> None:
        """For who has the private half of ``key``. What Ray is told beside: this machine may be slow."""
        self.run("mkdir", "/run/sshd")
        (self.home / "authorized_keys").write_text(key.with_suffix(".pub").read_text(encoding="utf-8"))
        self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/host_key")
        options = ("UsePAM=no", "StrictModes=no", "AuthorizedKeysFile=/tmp/home/authorized_keys", "PidFile=none")
        settings = [part for option in (*options, "SetEnv=RAY_raylet_start_wait_time_s=200") for part in ("-o", option)]
        sshd = shutil.which("sshd", path=PATH)
        assert sshd, "why_not() was not asked"
        self.run(sshd, "-f", "/dev/null", "-h", "/tmp/host_key", *settings)

    def end(self) -> None:
        """And everything that runs on it."""
        self._holder.kill()
        self._holder.wait()


def connect(hub: Machine, others: Sequence[Machine], network: str) -> list[str]:
    """Addresses of ``others``, in a network whose first address is ``hub``'s; ``network`` is its first three bytes."""
    hub.run("ip", "link", "add", "switch", "type", "bridge")
    hub.run("ip", "address", "add", f"{network}.1/24", "dev", "switch")
    hub.run("ip", "link", "set", "switch", "up")
    addresses = [f"{network}.{number}" for number in range(10, 10 + len(others))]
    for number, (machine, address) in enumerate(zip(others, addresses, strict=True)):
        cable = ["ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", machine.pid]
        subprocess.run(["nsenter", "--target", hub.pid, "--net", "--", *cable], check=True)
        hub.run("ip", "link", "set", f"to{number}", "master", "switch", "up")
        machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
        machine.run("ip", "route", "add", "default", "via", f"{network}.1")  # by which Ray finds its own address
    return addresses


def _name(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
