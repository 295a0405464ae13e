"""`ray up cluster/onprem.yaml`, a job on what it started, and `ray down`: on machines that see nothing of this one."""

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.machines import Machine, connect, why_not
from tests.cluster.test_two_nodes import until
from tests.small_model import make_small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
NUM_ROWS = 8
ON_A_NODE = "RAY_AUTH_MODE=token PATH=~/pasta-ray/.venv/bin:$PATH"

# In place of pip, which would need the internet: the packages of this test's environment, and the copied repository.
INSTALL = f"""cd ~/pasta-ray/.venv
echo ~/pasta-ray > lib/python3.{sys.version_info.minor}/site-packages/test.pth
echo {sysconfig.get_path("purelib")} >> lib/python3.{sys.version_info.minor}/site-packages/test.pth
sed "1c #!$PWD/bin/python" {sysconfig.get_path("scripts")}/ray > bin/ray && chmod +x bin/ray"""


@dataclass
class Site:
    """An operator's machine, and two to make a cluster of. ``config`` is as the operator's machine names it."""

    operator: Machine
    nodes: tuple[Machine, ...]
    config: str = "/tmp/home/cluster.yaml"

    def ray(self, command: str, *args: str, timeout_s: float = 600) -> str:
        """`ray COMMAND CONFIG ARGS` by the operator."""
        words = (sys.executable, "-m", "ray.scripts.scripts", command, self.config, *args)
        return self.operator.run(*words, timeout_s=timeout_s, RAY_UP_enable_autoscaler_v2="0", RAY_AUTH_MODE="token")

    def on_head(self, command: str) -> str:
        return self.ray("exec", f"{ON_A_NODE} {command}")


@pytest.fixture
def site() -> Iterator[Site]:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="up", ignore_cleanup_errors=True) as folder:  # short: sockets lie below it
        machines: list[Machine] = []
        try:
            machines += (Machine(Path(folder, name)) for name in ("operator", "head", "worker"))
            operator, *nodes = machines
            addresses = connect(operator, nodes, "10.123.45")
            equip(operator, addresses)
            for node in nodes:
                node.listen_for_ssh(operator.home / "key")
            yield Site(operator, tuple(nodes))
        finally:
            for machine in machines:
                machine.end()


def equip(operator: Machine, addresses: list[str]) -> None:
    """Key, token, model and prompts, and the configuration with these and the addresses in it."""
    home = operator.home
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "key"], check=True)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of-a-test-" + "x" * 40, encoding="utf-8")
    (home / "keys.txt").touch()
    make_small_model(home / "model")
    rows = [{"id": f"p{number}", "instruction": f"question {number}"} for number in range(NUM_ROWS)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = yaml.safe_load((ROOT / "cluster/onprem.yaml").read_text(encoding="utf-8"))
    config["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "/tmp/home/key"}
    config |= {"min_workers": len(addresses) - 1, "max_workers": len(addresses) - 1}
    config["file_mounts"] |= {"~/pasta-ray": str(ROOT), "~/keys.txt": "/tmp/home/keys.txt"}
    config["file_mounts"] |= {f"~/{name}": f"/tmp/home/{name}" for name in ("model", "prompts.jsonl")}
    venv, pip, path = config["setup_commands"]
    assert "python3 -m venv" in venv
    assert "pip install" in pip
    config["setup_commands"] = [
        venv.replace("python3 -m venv", f"{sys.executable} -m venv --without-pip"),
        INSTALL,
        path,
    ]
    (home / "cluster.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def test_from_the_file_to_answers_and_down_again(site: Site) -> None:
    """Guards the launcher's file: copies, token, start commands, the worker's coming, and the python that jobs find.
    `ray stop` ends every Ray process that it sees, so first that these machines see none of others."""
    for node in site.nodes:
        seen = node.processes()
        assert all(line.startswith(("sh -c while", "sleep 1", "sshd: ")) for line in seen), seen
    site.ray("up", "--yes", "--no-config-cache")
    until(lambda: "2 local.cluster.node" in site.on_head("ray status"), "both nodes")
    options = "--out ~/answers.jsonl --model ~/model --adapter none --max-tokens 40 --num-workers 2 --threads 1 --json"
    told = site.on_head(
        f"ray job submit --working-dir ~/pasta-ray/jobs -- python generate.py ~/prompts.jsonl {options}"
    )
    (counts,) = [json.loads(line) for line in told.splitlines() if line.startswith('{"rows"')]
    assert (counts["rows"], counts["answered"]) == (NUM_ROWS, NUM_ROWS)
    answers = [json.loads(line) for line in (site.nodes[0].home / "answers.jsonl").read_text().splitlines()]
    assert {answer["id"] for answer in answers} == {f"p{number}" for number in range(NUM_ROWS)}
    assert all(answer["error"] is None and answer["text"] is not None for answer in answers)
    assert [line for line in site.nodes[0].processes() if "gcs_server" in line]
    site.ray("down", "--yes")
    assert not [line for line in site.nodes[0].processes() if "gcs_server" in line], "the head runs on"
