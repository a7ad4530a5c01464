"""cluster.yaml, jobs/kubernetes and the Dockerfile against the schemas of Ray, EC2, Kubernetes and Ray Serve."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import kubernetes_validate
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft7Validator
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME
from ray.serve.schema import ServeDeploySchema

from genret.serving.app import Arguments, build

PROJECT = Path(__file__).parents[2]
KUBERNETES = ["pipeline.yaml", "serving.yaml"]
SERVE_APPLICATION = f"{build.__module__}:{build.__name__}"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "cluster.yaml").read_text())


def kubernetes_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "jobs" / "kubernetes" / name).read_text())


def ray_cluster(name: str) -> dict[str, Any]:
    spec = kubernetes_file(name)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def test_the_cluster_file_fits_rays_schema(cluster: dict[str, Any]):
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(cluster)) == []
    validate_config(prepare_config(cluster))


def test_a_broken_cluster_file_does_not_fit(cluster: dict[str, Any]):
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(cluster | {"max_worker": 3}))
    head = cluster["available_node_types"]["head"] | {"resource": {}}
    assert list(Draft7Validator(schema).iter_errors(cluster | {"available_node_types": {"head": head}}))


def test_every_machine_is_one_that_ec2_understands(cluster: dict[str, Any]):
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for kind in cluster["available_node_types"].values():
        request = kind["node_config"] | {"MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(request, shape).has_errors()
        unknown = set(kind["node_config"]) - set(shape.members)
        assert not unknown, f"not in EC2's RunInstances: {unknown}"


def test_the_cluster_starts_from_nothing_and_its_head_takes_no_work(cluster: dict[str, Any]):
    kinds = cluster["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    workers = {name: kind for name, kind in kinds.items() if name != cluster["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert cluster["idle_timeout_minutes"] > 0
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]


def written_policies() -> list[list[dict[str, Any]]]:
    """The statements of each policy that the head of cluster.yaml has its reader make."""
    lines = (PROJECT / "cluster.yaml").read_text().splitlines()
    header = "\n".join(line[1:] for line in lines if line.startswith("#"))
    return [json.loads(text)["Statement"] for text in re.findall(r"--policy-document '([^']+)'", header)]


def test_the_head_may_do_to_workers_what_ray_does(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    asked = set()
    with mock_aws():
        image = boto3.client("ec2", "us-east-1").describe_images()["Images"][0]["ImageId"]
        provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
        subnets = [subnet.id for subnet in provider.ec2.subnets.all()]
        for resource in (provider.ec2, provider.ec2_fail_fast):
            resource.meta.client.meta.events.register("before-call", lambda model, **_: asked.add(f"ec2:{model.name}"))
        worker = cluster["available_node_types"]["cpu_on_demand"]["node_config"]
        request = {"ImageId": image, "SubnetIds": subnets, "InstanceType": worker["InstanceType"]}
        provider.create_node(request, {"ray-node-kind": "worker"}, 1)
        (node,) = provider.non_terminated_nodes({})
        provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
        provider.terminate_nodes([node])
        assert provider.non_terminated_nodes({}) == []
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} < asked
    (rights,) = (policy for policy in written_policies() if "ec2:RunInstances" in json.dumps(policy))
    allowed = [
        action
        for part in rights
        for action in ([part["Action"]] if isinstance(part["Action"], str) else part["Action"])
    ]
    assert set(allowed) == asked | {"iam:PassRole"}


def test_the_head_hands_workers_a_profile_that_may_not_start_machines(cluster: dict[str, Any]):
    kinds = cluster["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    head = profiles.pop(cluster["head_node_type"])
    (worker,) = set(profiles.values())
    assert head != worker
    text = (PROJECT / "cluster.yaml").read_text()
    assert f"for name in {head} {worker}; do" in text and f"--role-name {head} --policy-name workers" in text
    conditions = [part.get("Condition") for policy in written_policies() for part in policy]
    assert {"StringEquals": {f"ec2:ResourceTag/{TAG_RAY_CLUSTER_NAME}": cluster["cluster_name"]}} in conditions
    (passed,) = (part for policy in written_policies() for part in policy if part["Action"] == "iam:PassRole")
    assert passed["Resource"].endswith(f":role/{worker}")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_on_demand_stands_in_for_spot(cluster: dict[str, Any], kind: str):
    spot, paid = (cluster["available_node_types"][f"{kind}_{market}"] for market in ("spot", "on_demand"))
    assert spot["resources"] == paid["resources"]
    assert spot["priority"] > paid["priority"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == paid["node_config"]


def test_nothing_is_open_to_the_world(cluster: dict[str, Any]):
    assert cluster["provider"]["use_internal_ips"] is True
    assert "IpPermissions" not in cluster["provider"]["security_group"]
    text = (PROJECT / "cluster.yaml").read_text()
    assert "0.0.0.0" not in text
    assert "RAY_AUTH_MODE=token" in cluster["head_start_ray_commands"][-1]
    for name in KUBERNETES:
        assert ray_cluster(name)["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_nodes_install_the_projects_own_lock(cluster: dict[str, Any]):
    installs = [*cluster["setup_commands"], *cluster["available_node_types"]["gpu_spot"]["worker_setup_commands"]]
    installs = [command for command in installs if "pip install" in command]
    assert len(installs) == 2
    extras = set(re.findall(r"^([\w-]+) = \[", (PROJECT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    for command in [*installs, (PROJECT / "Dockerfile").read_text().replace("${EXTRAS}", "s3,vllm,deepspeed")]:
        assert "--constraint constraints.txt" in command
        named = re.search(r'"\.\[([\w,-]+)\]"', command)
        assert named is not None and set(named[1].split(",")) <= extras


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_fit_kubernetes_schema(name: str):
    spec = ray_cluster(name)
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
    broken = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [{"nam": "a"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.34", strict=True)


# The fields of ray.io/v1 (KubeRay's API reference) that may be used here; no package carries its schema.
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "minReplicas", "replicas", "maxReplicas", "rayStartParams", "template"}
JOB = {
    "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "metadata", "runtimeEnvYAML",
    "rayClusterSpec",
}  # fmt: skip
SERVICE = {"upgradeStrategy", "excludeHeadPodFromServeSvc", "serveConfigV2", "rayClusterConfig"}


@pytest.mark.parametrize(
    ("name", "kind", "fields"), [("pipeline.yaml", "RayJob", JOB), ("serving.yaml", "RayService", SERVICE)]
)
def test_fields_are_those_of_kuberay(name: str, kind: str, fields: set[str]):
    resource = kubernetes_file(name)
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", kind)
    assert set(resource["spec"]) <= fields
    spec = ray_cluster(name)
    assert set(spec) <= CLUSTER
    assert set(spec["headGroupSpec"]) <= {"serviceType", "rayStartParams", "template"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert set(group) == GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["rayVersion"] == ray.__version__


def test_the_job_runs_a_script_that_is_there():
    spec = kubernetes_file("pipeline.yaml")["spec"]
    script = spec["entrypoint"].split()[1]
    assert (PROJECT / script).is_file()
    assert yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"] == "/home/ray/genret"


def test_what_the_job_may_grow_to_is_what_its_pods_ask_for():
    spec = ray_cluster("pipeline.yaml")
    (growth,) = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    told = yaml.safe_load(growth["value"])["available_node_types"]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"])} | (
            {"GPU": limits["nvidia.com/gpu"]} if "nvidia.com/gpu" in limits else {}
        )
        assert told[group["groupName"]] == {"max_workers": group["maxReplicas"], "resources": resources}


def test_the_service_deploys_the_serve_application():
    config = ServeDeploySchema.model_validate(yaml.safe_load(kubernetes_file("serving.yaml")["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == SERVE_APPLICATION
    assert Arguments.model_validate(application.args).run.startswith("s3://")
