"""The files in `cluster/`, checked against what reads them as far as that goes offline."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raypeft.runtime.metrics import METRICS

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("local", "aws", "gcp")
MANIFESTS = ("kuberay-rayjob", "kuberay-raycluster")
KUBERAY = json.loads((ROOT / "tests" / "schemas" / "kuberay.json").read_text())


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return values


# --- Ray's cluster launcher -------------------------------------------------------------------


def launcher_schema() -> dict[str, Any]:
    import ray

    path = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text())
    return schema


def check_as_ray_up_does(values: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(values)))


@pytest.mark.ray
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_what_ray_up_takes(name: str) -> None:
    jsonschema.validate(read(name), launcher_schema())
    check_as_ray_up_does(read(name))


@pytest.mark.ray
def test_slips_of_the_pen_in_a_launcher_file_are_caught() -> None:
    wrong = read("aws") | {"idle_timeout_minute": 5}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, launcher_schema())
    with pytest.raises(jsonschema.ValidationError):
        check_as_ray_up_does(wrong)
    wrong = read("gcp") | {"head_node_type": "heed"}
    with pytest.raises(ValueError, match="head_node_type"):
        check_as_ray_up_does(wrong)


def start_commands(values: dict[str, Any]) -> list[str]:
    found = [*values["head_start_ray_commands"], *values["worker_start_ray_commands"]]
    return [command for command in found if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launched_cluster_has_a_token_and_no_public_dashboard(name: str) -> None:
    values = read(name)
    commands = start_commands(values)
    assert len(commands) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    (token,) = {re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", command)[0] for command in commands}
    assert token in values["file_mounts"]
    assert f"chmod 600 {token}" in values["setup_commands"]
    assert "--dashboard-host=127.0.0.1" in commands[0]
    rules = values["provider"].get("security_group", {}).get("IpPermissions", [])
    assert all((rule["FromPort"], rule["ToPort"]) == (22, 22) for rule in rules)
    assert all(one["CidrIp"] != "0.0.0.0/0" for rule in rules for one in rule["IpRanges"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launched_head_computes_nothing_and_workers_say_what_they_are(name: str) -> None:
    values = read(name)
    assert "--num-cpus=0 --num-gpus=0" in start_commands(values)[0]
    types = values.get("available_node_types")
    if types is None:
        assert '--labels="raypeft/hw=' in start_commands(values)[1]
        return
    head = types.pop(values["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(one["labels"]["raypeft/hw"] and one["resources"]["GPU"] for one in types.values())


# --- Kubernetes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_custom_resource(name: str) -> None:
    jsonschema.validate(read(name), KUBERAY)


def changed(path: str, value: Any) -> dict[str, Any]:
    values = read("kuberay-rayjob")
    *parents, last = path.split(".")
    place: Any = values
    for part in parents:
        place = place[int(part)] if part.isdecimal() else place[part]
    place[last] = value
    return values


GROUP = "spec.rayClusterSpec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.ttlSecondAfterFinished", 600),
        ("spec.shutdownAfterJobFinishes", "yes"),
        ("spec.backoffLimit", -1),
        ("spec.submissionMode", "k8sJobMode"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.autoscalerOptions.idleTimeoutSecond", 5),
        (f"{GROUP}.maxReplicas", "8"),
        (f"{GROUP}.label", {}),
        (f"{GROUP}.labels", {"raypeft/hw": 1}),
        (f"{GROUP}.template.spec.terminationGracePeriod", 5),
        (f"{GROUP}.template.spec.containers", []),
        (f"{GROUP}.template.spec.containers.0.resources.limits", {"memory": "64 GB"}),
        (f"{GROUP}.template.spec.tolerations.0.operator", "exists"),
        ("kind", "RayService"),
    ],
)
def test_slips_of_the_pen_in_a_manifest_are_caught(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(path, value), KUBERAY)


def cluster_of(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_keeps_what_the_operator_wants_and_nobody_else_in(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52)  # else no token
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    images = [
        container["image"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
    ]
    assert all(cluster["rayVersion"] in image for image in images)
    if (job := read(name)["spec"]).get("ttlSecondsAfterFinished"):
        assert job["shutdownAfterJobFinishes"] is True  # the operator refuses it otherwise


@pytest.mark.parametrize("name", MANIFESTS)
def test_gpu_pods_can_be_placed_and_have_shared_memory_and_time_to_end(name: str) -> None:
    for group in cluster_of(name)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert group["labels"]["raypeft/hw"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1
        assert any(one["key"] == "nvidia.com/gpu" for one in pod["tolerations"])
        assert pod["terminationGracePeriodSeconds"] > 30  # what Ray drains for
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (shm,) = [one for one in pod["volumes"] if one["name"] == mounts["/dev/shm"]]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}


# --- SLURM ------------------------------------------------------------------------------------


def test_the_batch_script_parses() -> None:
    script = CLUSTER / "slurm.sbatch"
    ended = subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    if (shellcheck := shutil.which("shellcheck")) is not None:
        ended = subprocess.run([shellcheck, str(script)], capture_output=True, check=False)
        assert ended.returncode == 0, ended.stdout


def run_script(folder: Path, *, status: dict[str, Any], code: int) -> tuple[int, str]:
    """Run the batch script where every program of a cluster is a stand-in."""
    programs = {
        "scontrol": "echo node1",
        "srun": f'echo "srun $*"; echo "token $(cat "$RAY_AUTH_TOKEN_PATH")"; exit {code}',
        "scancel": "exit 0",
        "raypeft": f"""if [ "$3" = --json ]; then echo '{json.dumps(status)}'; fi""",
    }
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    ended = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sbatch"), "sweep.yaml"],
        env={
            "PATH": f"{folder / 'bin'}:{Path(shutil.which('python') or '/usr/bin/python').parent}"
            ":/usr/bin:/bin",
            "HOME": str(folder),
            "RAYPEFT_OUTPUT": "runs/x",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "8",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


ENDED = {"phase": "ended", "counts": {"waiting": 0, "running": 0, "scoring": 0}}


def test_the_batch_script_leaves_with_the_code_of_the_run(tmp_path: Path) -> None:
    code, said = run_script(tmp_path, status=ENDED, code=0)
    assert code == 0, said
    assert "ray symmetric-run --address node1:6379 --min-nodes 2" in said
    assert re.search(r"token [0-9a-f]{64}\n", said)
    assert not list(tmp_path.glob(".raypeft-token-*"))  # gone with the job
    assert run_script(tmp_path, status=ENDED, code=3)[0] == 3


def test_the_batch_script_does_not_believe_a_ray_that_never_started(tmp_path: Path) -> None:
    never = {"phase": "killed", "counts": {"waiting": 6, "running": 0, "scoring": 0}}
    assert run_script(tmp_path, status=never, code=0)[0] == 1


# --- watching ---------------------------------------------------------------------------------

NAME = re.compile(r"\bray_raypeft_\w+")


def used_names() -> dict[str, set[str]]:
    board = json.loads((CLUSTER / "grafana-raypeft.json").read_text())
    rules = read("prometheus-rules")
    texts = {
        "board": [target["expr"] for panel in board["panels"] for target in panel["targets"]],
        "rules": [rule["expr"] for group in rules["groups"] for rule in group["rules"]],
    }
    return {where: set(NAME.findall(" ".join(found))) for where, found in texts.items()}


def test_every_name_on_the_board_and_in_the_rules_is_a_metric_of_ours() -> None:
    ours = {metric.exported_name for metric in METRICS}
    for where, names in used_names().items():
        assert names, where
        assert names <= ours, where
    assert used_names()["board"] == ours  # nothing is measured that nobody sees


def test_labels_in_queries_are_labels_of_the_metric() -> None:
    board = (CLUSTER / "grafana-raypeft.json").read_text()
    rules = (CLUSTER / "prometheus-rules.yaml").read_text()
    labels = {label for metric in METRICS for label in (*metric.labels, "sweep")}
    used = re.findall(r"\bby \(([^)]*)\)", board + rules)
    assert used
    assert {name.strip() for group in used for name in group.split(",")} <= labels


def test_the_rules_have_the_form_that_prometheus_reads() -> None:
    for group in read("prometheus-rules")["groups"]:
        assert set(group) == {"name", "interval", "rules"}
        for rule in group["rules"]:
            kind = {"record"} & set(rule) or {"alert"}
            allowed = (
                {"record", "expr"}
                if kind == {"record"}
                else {"alert", "expr", "for", "labels", "annotations"}
            )
            assert {*kind, "expr"} <= set(rule) <= allowed
            assert rule["expr"].count("(") == rule["expr"].count(")")
    if (promtool := shutil.which("promtool")) is not None:
        rules = str(CLUSTER / "prometheus-rules.yaml")
        subprocess.run([promtool, "check", "rules", rules], check=True)


def test_panels_do_not_lie_on_one_another() -> None:
    board = json.loads((CLUSTER / "grafana-raypeft.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells


# --- what to take -----------------------------------------------------------------------------


def test_the_page_names_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    for path in CLUSTER.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in page, path.name


def test_no_image_is_the_newest_one() -> None:
    texts = [path.read_text() for path in CLUSTER.glob("*.yaml")]
    images = [name for text in texts for name in re.findall(r"image: (\S+)", text)]
    assert images
    assert all(":" in image and not image.endswith(":latest") for image in images)
