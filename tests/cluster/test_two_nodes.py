"""Two nodes as an operator has them, each its own `ray start` with its own folder and token auth: the service over both
nodes, and a batch that is killed and submitted again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch  # noqa: F401  # before Ray's own threads are

from tests.small_model import make_small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 120.0


@dataclass
class Nodes:
    """A cluster of two, and how its operator's shell is set."""

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path
    processes: list[subprocess.Popen[bytes]]
    http_port: int  # Serve keeps the first that it is told

    def ray(self, *args: str, check: bool = True) -> str:
        done = subprocess.run(
            [BIN / "ray", *args], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *command: str, wait: bool = True) -> str:
        return self.ray("job", "submit", *([] if wait else ["--no-wait"]), "--working-dir", "jobs", "--", *command)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], Any], what: str, seconds: float = START_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="pr"))  # short: sockets lie below it
    token = folder / "token"
    token.write_text("of-a-test-" + "x" * 40)
    token.chmod(0o600)
    gcs, dashboard = free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": str(ROOT),
        "PASTA_RAY_API_KEYS": "a-key-of-this-test",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=150000000", "--block"]
    common += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    other = [f"--address=127.0.0.1:{gcs}"]
    processes = []
    for number, own in enumerate((head, other)):
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}/{number}"]
        start = [BIN / "ray", "start", *own, *common, *ports]
        with (folder / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
        processes.append(process)
        time.sleep(8 if own is head else 0)
    cluster = Nodes(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, folder, processes, free_port())
    try:
        until(
            lambda: "/4.0 CPU" in cluster.ray("status", check=False),
            "two nodes",
        )
        yield cluster
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(nodes: Nodes) -> Path:
    return make_small_model(nodes.folder)


def actors(nodes: Nodes) -> list[dict[str, Any]]:
    """Those that live."""
    told = nodes.ray("list", "actors", "--format=json", "--limit=1000", "--filter", "state=ALIVE", check=False)
    start = told.find("[")
    return json.loads(told[start : told.rfind("]") + 1]) if start >= 0 else []


def test_a_batch_that_is_killed_and_submitted_again_has_one_answer_a_row(nodes: Nodes, model: Path) -> None:
    """Guards jobs/generate.py as it is submitted: on both nodes, through a kill of its driver."""
    prompts, out = nodes.folder / "in.jsonl", nodes.folder / "out.parquet"
    rows = [{"id": f"p{number}", "instruction": f"question {number}", "seed": number} for number in range(60)]
    rows[7]["max_tokens"] = 100_000
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [str(prompts), "--out", str(out), "--model", str(model), "--adapter", "none", "--max-tokens", "300"]
    options += ["--num-workers", "2", "--batch", "4", "--temperature", "1.0", "--json"]
    nodes.submit("python", "generate.py", *options, wait=False)
    journal = out.with_name("out.parquet.partial.jsonl")
    until(lambda: journal.exists() and len(journal.read_bytes().splitlines()) >= 5, "some answers")
    (driver,) = [
        int(pid)
        for pid in subprocess.run(
            ["pgrep", "-f", f"python.*generate.py {prompts}"], capture_output=True, text=True, check=True
        ).stdout.split()
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"python\0")
    ]
    os.kill(driver, signal.SIGSTOP)  # it might end while the workers are being listed
    workers = {actor["node_id"] for actor in actors(nodes) if "MapWorker" in actor["class_name"]}
    assert len(workers) == 2
    os.kill(driver, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{driver}").exists(), "the driver's end")
    before = len(journal.read_bytes().splitlines())
    assert before < 60
    told = nodes.submit("python", "generate.py", *options)
    (counts,) = [json.loads(line) for line in told.splitlines() if line.startswith('{"rows"')]
    assert counts["rows"] == 60
    assert counts["answered_before"] + counts["answered"] == 60
    assert before - 1 <= counts["answered_before"] <= before
    import pyarrow.parquet as pq

    answers = pq.read_table(out).to_pylist()
    assert [answer["row"] for answer in answers] == list(range(60))
    assert [answer["id"] for answer in answers] == [f"p{number}" for number in range(60)]
    assert [answer["row"] for answer in answers if answer["error"]] == [7]
    assert "max_tokens 100000 exceed" in answers[7]["error"]
    assert all(answer["text"] is not None for answer in answers if answer["row"] != 7)
    assert not journal.exists()


def deploy(nodes: Nodes, **args: Any) -> httpx.Client:
    """The app, as a file says it, and a client of it."""
    app = {"name": "pasta-ray", "import_path": "pasta_ray.serve.app:build_app", "route_prefix": "/", "args": args}
    http_options = {"host": "127.0.0.1", "port": nodes.http_port, "request_timeout_s": None}
    file = nodes.folder / "serve.json"
    file.write_text(json.dumps({"http_options": http_options, "applications": [app]}))
    subprocess.run([BIN / "serve", "deploy", file], env=nodes.environment, check=True, capture_output=True)
    headers = {"Authorization": "Bearer a-key-of-this-test"}
    return httpx.Client(base_url=f"http://127.0.0.1:{nodes.http_port}", timeout=120, headers=headers)


def test_the_default_model_answers_on_two_nodes_as_it_does_here(nodes: Nodes) -> None:
    """Guards what ships, where the other tests have a small random model: a batch, and the service."""
    questions = ("Give me three tips for sleeping well.", "Name two seas.", "What are the benefits of exercise?")
    prompts, here, there = (nodes.folder / name for name in ("real.jsonl", "here.jsonl", "there.jsonl"))
    rows = [{"id": f"p{number}", "instruction": question} for number, question in enumerate(questions)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--max-tokens", "300", "--quantization", "none"]
    generate = [BIN / "pasta-ray", "generate", "--in-process", "--prompts", prompts, "--out", here, *options]
    subprocess.run(generate, check=True, capture_output=True)
    nodes.submit("python", "generate.py", str(prompts), "--out", str(there), "--num-workers", "2", *options)
    expected, batch = ([json.loads(line) for line in file.read_text().splitlines()] for file in (here, there))
    assert {answer["finish_reason"] for answer in expected} == {"stop"}  # where a limit cuts depends on the placement
    assert [answer["document"] for answer in batch] == [answer["document"] for answer in expected]
    assert sum(answer["parallel"]["num_promises"] for answer in batch) > 0
    served = {"models": {"pasta": {"adapter": "pasta"}}, "replicas": 2, "num_coordinators": 2, "num_ingress": 2}
    with deploy(nodes, cpus_per_replica=0.25, num_threads=1, quantization="none", **served) as client:
        until(lambda: both_ready(client, "pasta"), "both replicas")
        assert len({actor["node_id"] for actor in actors(nodes) if actor["class_name"] == "DecodeActor"}) == 2
        for _ in range(2):
            for question, answer in zip(questions, expected, strict=True):
                message = {"role": "user", "content": question}
                body = {"model": "pasta", "messages": [message], "max_tokens": 300, "temperature": 0}
                told = client.post("/v1/chat/completions", json=body).json()
                assert told["choices"][0]["message"]["content"] == answer["text"]


def both_ready(client: httpx.Client, model: str) -> bool:
    """Of the app that serves this model: the one before it answers until it is replaced."""
    try:
        health = client.get("/health").json()
    except (httpx.HTTPError, ValueError):
        return False
    states = [replica["state"] for replica in health.get("replicas", [])]
    return states == ["ready", "ready"] and [served["name"] for served in health["models"]] == [model]


def test_the_service_answers_from_both_nodes_and_shows_their_metrics(nodes: Nodes, model: Path) -> None:
    """Guards the way from `serve deploy` to an answer, replicas that all land on one node, and metrics of one alone."""
    small = {"model": str(model), "models": {"small": {"adapter": None}}, "log_format": "json", "log_level": "debug"}
    with deploy(nodes, replicas=2, cpus_per_replica=1.5, num_threads=1, **small) as client:
        check_service(nodes, client)


def check_service(nodes: Nodes, client: httpx.Client) -> None:
    until(lambda: both_ready(client, "small"), "both replicas")
    replicas = {actor["node_id"] for actor in actors(nodes) if actor["class_name"] == "DecodeActor"}
    assert len(replicas) == 2
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "temperature": 1.0}
    answers = [
        client.post("/v1/chat/completions", json=body | {"seed": seed}, headers={"x-request-id": f"t{seed}"})
        for seed in range(6)
    ]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [[f"t{seed}"] for seed in range(6)]
    promises = sum(answer.json()["pasta"]["parallel"]["num_promises"] for answer in answers)
    assert promises > 0
    assert httpx.get(f"{client.base_url}/v1/models").status_code == 401

    def measured() -> str | None:
        page = client.get("/metrics").text
        ours = [line for line in page.splitlines() if 'model="small"' in line]  # a batch has its own
        done = {line.split("} ")[1] for line in ours if line.startswith("ray_pasta_promises_total{")}
        wanted = ('status="401"', 'replica="r0"', 'replica="r1"', "ray_pasta_steps_total{")  # each process in its time
        return page if done == {str(float(promises))} and all(word in page for word in wanted) else None

    page = until(measured, "metrics")
    families = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))

    logs = [
        line for log in nodes.folder.glob("*/session_2*/logs/worker-*.err") for line in log.read_text().splitlines()
    ]
    lines = [json.loads(line) for line in logs if line.startswith('{"time"')]
    traced = [line for line in lines if line.get("trace") == "t0"]
    assert {"asked", "decoded", "answered", "response"} <= {line["message"] for line in traced}
    opened = [line for line in lines if line["message"] == "branch opened"]
    assert len(opened) == promises
    assert {line["trace"] for line in opened} <= {f"t{seed}" for seed in range(6)}
