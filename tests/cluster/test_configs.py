"""What `cluster/` holds, against Ray's own schemas and the service's own options."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pasta_ray.actors.metrics import ANSWER_METRICS, COORDINATOR_METRICS, REPLICA_METRICS, Metric
from pasta_ray.engine.weights import shipped_adapters
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.metrics import ENDED, RESPONSES, SERVED

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHED = ("aws.yaml", "gcp.yaml", "onprem.yaml")
METRICS: tuple[Metric[Any], ...] = (
    *REPLICA_METRICS,
    *COORDINATOR_METRICS,
    *ANSWER_METRICS,
    *SERVED,
    *ENDED,
    *RESPONSES,
)


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def manifests() -> dict[str, Any]:
    names = ("rayservice.yaml", "rayjob.yaml")
    return {each["kind"]: each for name in names for each in yaml.safe_load_all((CLUSTER / name).read_text())}


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_the_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards `ray up` by what it does first itself; a misspelt key is an error there."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    config = prepare_config(load(name))
    validate_config(config)
    with pytest.raises(Exception, match="no_such_key"):
        validate_config(config | {"no_such_key": 1})
    if name == "onprem.yaml":
        assert config["available_node_types"]["local.cluster.node"]["min_workers"] == len(
            config["provider"]["worker_ips"]
        )
    else:
        assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launched_cluster_asks_for_the_token_and_keeps_its_ports_inside(name: str) -> None:
    """Guards Ray's ports, which run anybody's code."""
    config = load(name)
    starts = [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key]]
    starting = [line for line in starts if "ray start" in line]
    assert len(starting) == 2
    assert all(line.startswith("export RAY_AUTH_MODE=token;") for line in starting)
    assert "--dashboard-host=127.0.0.1" in starting[0]
    assert any(remote.endswith(".ray/auth_token") for remote in config["file_mounts"])
    assert not config["provider"].get("security_group", {}).get("IpPermissions"), "Ray would add SSH from everywhere"


@pytest.mark.parametrize("source", ["serve.yaml", "RayService"])
def test_serve_deploy_takes_the_config(source: str) -> None:
    """Guards `serve deploy` and KubeRay by Serve's schema, and the app's arguments by the app's."""
    from ray.serve.schema import ServeDeploySchema

    told = load(source) if source == "serve.yaml" else yaml.safe_load(manifests()[source]["spec"]["serveConfigV2"])
    deployed = ServeDeploySchema.model_validate(told)
    (app,) = deployed.applications
    assert app.import_path == "pasta_ray.serve.app:build_app"
    assert deployed.http_options.request_timeout_s is None
    config = ServeConfig.model_validate(app.args)
    assert len(config.served) > 1
    assert {model.adapter for model in config.served.values()} - {None} <= set(shipped_adapters())
    assert config.num_threads == config.cpus_per_replica
    assert not config.allow_without_keys
    if source == "serve.yaml":
        assert config.api_keys_file is not None
        assert str(config.api_keys_file) in load("aws.yaml")["file_mounts"]


def test_both_ways_serve_the_same_models() -> None:
    service = yaml.safe_load(manifests()["RayService"]["spec"]["serveConfigV2"])
    one, other = (each["applications"][0]["args"] for each in (load("serve.yaml"), service))
    assert {key: other[key] for key in ("model", "models", "replicas")} == {
        key: one[key] for key in ("model", "models", "replicas")
    }


@pytest.mark.parametrize(("kind", "place"), [("RayService", "rayClusterConfig"), ("RayJob", "rayClusterSpec")])
def test_a_manifest_has_what_kuberay_reads(kind: str, place: str) -> None:
    """KubeRay's schemas are not at hand: structure, versions, the token, and room for what is asked of the cluster."""
    cluster = manifests()[kind]["spec"][place]
    assert manifests()[kind]["apiVersion"] == "ray.io/v1"
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "registry.example.org/pasta-ray:0.1.0"
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert group["template"]["metadata"]["labels"] == {"app.kubernetes.io/name": "pasta-ray"}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    cpus = workers["replicas"] * int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    if kind == "RayService":
        args = yaml.safe_load(manifests()[kind]["spec"]["serveConfigV2"])["applications"][0]["args"]
        assert args["replicas"] * args["cpus_per_replica"] <= cpus
    else:
        options = shlex.split(manifests()[kind]["spec"]["entrypoint"])
        workers_asked, threads = (int(options[options.index(name) + 1]) for name in ("--num-workers", "--threads"))
        assert workers_asked * threads <= cpus


def test_the_jobs_entrypoint_is_one_that_the_command_takes() -> None:
    """Guards options that were renamed."""
    from typer.main import get_command

    from pasta_ray.cli import app

    python, script, *args = shlex.split(manifests()["RayJob"]["spec"]["entrypoint"])
    assert python == "python"
    script_here = ROOT / Path(script).relative_to("/home/ray/pasta-ray")
    assert 'main(["batch", *sys.argv[1:]])' in script_here.read_text()
    command = get_command(app).commands["batch"]  # type: ignore[attr-defined]
    context = command.make_context("batch", args)
    assert context.params["out"] == Path("/data/answers.parquet")


def test_only_the_services_port_is_open_to_all() -> None:
    policy = manifests()["NetworkPolicy"]["spec"]
    label = {"app.kubernetes.io/name": "pasta-ray"}
    assert policy["podSelector"]["matchLabels"] == label
    assert [rule["ports"] for rule in policy["ingress"] if "from" not in rule] == [[{"port": 8000}]]
    assert manifests()["RayJob"]["spec"]["submitterPodTemplate"]["metadata"]["labels"] == label


def test_the_container_is_of_the_pinned_ray_and_its_lines_run() -> None:
    text = (CLUSTER / "Containerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", text)) == {pinned("ray")}
    for copied in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
    (code,) = re.findall(r'python -c "(.+)"', text)
    compile(code, "Containerfile", "exec")
    imports = [statement for statement in code.split("; ") if statement.startswith("from ")]
    exec("; ".join(imports), {})
    assert len(imports) == 2


def expressions() -> list[str]:
    panels = json.loads((CLUSTER / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_shows_metrics_that_are_there_and_all_of_them() -> None:
    """Guards panels against a renamed metric, which would be empty without a word, and metrics that nobody sees."""
    series = {}
    for metric in METRICS:
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        series |= {metric.exported + end: metric.name for end in ends}
    shown = {name for expression in expressions() for name in re.findall(r"ray_\w+", expression)}
    assert shown <= set(series)
    assert {series[name] for name in shown} == {metric.name for metric in METRICS}


def test_the_dashboards_labels_are_those_that_are_published() -> None:
    by_table = {
        "model": (ANSWER_METRICS, SERVED, ENDED),
        "replica": (REPLICA_METRICS,),
        "outcome": (ENDED,),
        "status": (RESPONSES,),
    }
    for expression in expressions():
        names = set(re.findall(r"ray_(pasta_\w+?)(?:_bucket|_sum|_count|_total)?\b", expression))
        used = set(re.findall(r"(\w+)=~", expression)) | set(re.findall(r"by \((\w+)\)", expression)) - {"le"}
        for label in used:
            known = {metric.name for table in by_table[label] for metric in table}
            assert names <= known, f"{label} in {expression}"


def test_names_of_metrics_are_distinct() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("pasta_[a-z_]+", name) for name in names)
