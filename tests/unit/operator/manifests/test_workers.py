"""What the workers of an endpoint are made of, held to golden files, and rules that hold for all of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoints import IMAGE, SPEC, endpoint
from tests.golden_files import require_golden

from tierline.errors import ConfigurationError
from tierline.operator.assumed import cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.node_stores import wants_store
from tierline.operator.manifests.redis import redis
from tierline.operator.manifests.sources import model_source
from tierline.operator.manifests.workers import workers

PLAIN, WITH_S3, WITH_FSX = cluster(), cluster(["s3-csi"]), cluster(["fsx-csi"])
USUAL = OperatorConfig()
OURS = OperatorConfig(connector="tierline")
MINIO = OperatorConfig(s3_endpoint="http://minio.storage:9000")
PROMETHEUS = OperatorConfig(prometheus_address="http://prometheus.monitoring:9090")


def worker(**changes: Any) -> dict[str, Any]:
    return {"worker": {key: value for key, value in {**SPEC["worker"], **changes}.items() if value is not None}}


def source(**changes: Any) -> dict[str, Any]:
    return {"modelSourceConfig": changes}


VLLM_032 = worker(image="vllm/vllm-openai:v0.32.0")
SHA = "0123456789abcdef0123456789abcdef01234567"
FSX = {"fileSystemId": "fs-0123456789abcdef0", "dnsName": "fs-0.fsx.us-west-2.amazonaws.com", "mountName": "abcdefgh"}
HUGGING_FACE = {
    "modelId": "meta-llama/Llama-3.1-8B",
    "commitSHA": SHA,
    "tokenSecretRef": {"name": "hub", "key": "token"},
}
MOVING = source(modelSourceType="huggingface", huggingFaceModel={"modelId": "meta-llama/Llama-3.1-8B"})
S3 = SPEC["modelSourceConfig"]
REDIS: dict[str, Any] = {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}
PAIRS: dict[str, Any] = {
    "pdSpec": {
        "prefillSpec": {
            "replicas": 2,
            "args": ["--max-num-seqs", "16", "--tensor-parallel-size=8"],
            "resources": {"limits": {"nvidia.com/gpu": 8, "vpc.amazonaws.com/efa": 32}},
            "nodeSelector": {"pool": "prefill"},
        },
        "decodingSpec": {"replicas": 3},
    },
}
NEAR: dict[str, Any] = {
    "pdSpec": {"prefillSpec": {}, "decodingSpec": {}, "topologySpec": {"sameAZ": True, "placementGroup": "group-1"}},
    "kvCacheSpec": None,
}
IN_A_ZONE: dict[str, Any] = {
    "pdSpec": {
        "prefillSpec": {},
        "decodingSpec": {},
        "topologySpec": {"availabilityZone": "us-west-2a"},
        "autoScalingSpec": {"decodingAutoScaling": {"prometheusTrigger": {"query": "vector(1)", "targetValue": 4}}},
    },
    "instanceType": None,
    **VLLM_032,
}
SCALED: dict[str, Any] = {
    "autoScalingSpec": {"prometheusTrigger": {"query": "vector(1)", "targetValue": 4, "serverAddress": ""}}
}
CAPTURE: dict[str, Any] = {
    "dataCapture": {
        "modelPod": {
            "enabled": True,
            "initialSamplingPercentage": 10,
            "kmsKeyId": "alias/captures",
            "captureOptions": [{"captureMode": "Input"}, {"captureMode": "Output"}],
            "captureContentTypeHeader": {"jsonContentTypes": ["application/json"], "csvContentTypes": ["text/csv"]},
            "bufferConfig": {"batchSize": 5, "flushIntervalSeconds": 30},
            "payloadConfig": {"maxPayloadSizeKB": 64},
        }
    }
}
EVERYTHING: dict[str, Any] = {
    "instanceType": None,
    "instanceTypes": ["ml.p5.48xlarge", "ml.p4d.24xlarge", "ml.g5.48xlarge"],
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["us-west-2a"]}]},
                {"matchExpressions": [{"key": "capacity", "operator": "NotIn", "values": ["spot"]}]},
            ]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "preference": {"matchExpressions": [{"key": "rack", "operator": "Exists"}]}}
        ],
    },
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}],
    "kubernetes": {
        "initContainers": [
            {"name": "warm", "image": "busybox", "command": ["true"], "resources": {"limits": {"cpu": 1}}}
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": 1073741824}}],
        "schedulerName": "kueue",
        "serviceAccountName": "models",
        "podTemplateAnnotations": {"team": "search"},
    },
    "metricsSidecarResources": {"requests": {"cpu": "1"}},
    "metricsCollectorResources": {"requests": {"cpu": "200m"}},
    "modelVersion": "1.2.0",
    **worker(
        command=["vllm", "serve", "/opt/ml/model"],
        args=["--tensor_parallel_size=8", "--served-model-name=mine"],
        workingDir="/srv",
        resources={"limits": {"nvidia.com/mig-3g.40gb": 2, "memory": "64Gi"}},
        environmentVariables=[
            {"name": "LMCACHE_MAX_LOCAL_CPU_SIZE", "value": "7"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "engine"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "other"}}},
            {"name": "NODE_IP", "value": "10.0.0.1"},
        ],
        probes={"readinessProbe": {"httpGet": {"path": "/ready", "port": 8000}, "timeoutSeconds": 9}},
        requestLimits={"maxConcurrentRequests": 32, "maxQueueSize": 64, "overflowStatusCode": 503},
    ),
}

CASES: list[tuple[str, Endpoint, Capabilities, OperatorConfig]] = [
    ("document", endpoint(), WITH_S3, USUAL),
    ("copied-from-s3", endpoint(), PLAIN, USUAL),
    ("copied-from-minio", endpoint(), WITH_S3, MINIO),
    (
        "prefetched-into-memory",
        endpoint(source(**{**S3, "prefetchEnabled": True}), annotations={"prefetch-medium": "memory"}),
        WITH_S3,
        USUAL,
    ),
    (
        "hugging-face",
        endpoint(source(modelSourceType="huggingface", huggingFaceModel=HUGGING_FACE)),
        PLAIN,
        USUAL,
    ),
    ("hugging-face-main", endpoint(MOVING), PLAIN, USUAL),
    ("fsx", endpoint(source(modelSourceType="fsx", fsxStorage=FSX, modelLocation="llama")), WITH_FSX, USUAL),
    (
        "fsx-prefetched-without-driver",
        endpoint(
            source(
                modelSourceType="fsx",
                fsxStorage={"fileSystemId": "fs-0123456789abcdef0"},
                modelLocation="llama",
                prefetchEnabled=True,
            )
        ),
        PLAIN,
        USUAL,
    ),
    (
        "kubernetes-volume",
        endpoint(
            source(modelSourceType="kubernetesVolume", modelLocation="llama")
            | {"kubernetes": {"volumes": [{"name": "model-weights", "persistentVolumeClaim": {"claimName": "models"}}]}}
        ),
        PLAIN,
        USUAL,
    ),
    (
        "kubernetes-volume-prefetched",
        endpoint(
            source(modelSourceType="kubernetesVolume", prefetchEnabled=True)
            | {"kubernetes": {"volumes": [{"name": "model-weights", "hostPath": {"path": "/models"}}]}}
        ),
        PLAIN,
        USUAL,
    ),
    ("everything", endpoint(EVERYTHING, annotations={"volume-mounts": "scratch=/scratch"}), WITH_S3, USUAL),
    ("our-connector", endpoint(VLLM_032), WITH_S3, OURS),
    ("our-connector-untested", endpoint(), WITH_S3, OURS),
    (
        "redis",
        endpoint({"kvCacheSpec": REDIS}),
        WITH_S3,
        USUAL,
    ),
    (
        "cache-config-file",
        endpoint(
            {
                "kvCacheSpec": {"enableL2Cache": False, "cacheConfigFile": "/etc/lmcache/lmcache.yaml"},
                "kubernetes": {"volumes": [{"name": "lmcache-config", "configMap": {"name": "lmcache"}}]},
            }
        ),
        WITH_S3,
        USUAL,
    ),
    (
        "l2-alone",
        endpoint(
            {"kvCacheSpec": {**SPEC["kvCacheSpec"], "enableL1Cache": False}}
            | {"intelligentRoutingSpec": None, "metrics": {"enabled": False}}
        ),
        WITH_S3,
        USUAL,
    ),
    ("kvaware", endpoint({"intelligentRoutingSpec": {"enabled": True, "routingStrategy": "kvaware"}}), WITH_S3, USUAL),
    ("scaled", endpoint(SCALED), WITH_S3, PROMETHEUS),
    ("pairs", endpoint(PAIRS), WITH_S3, USUAL),
    ("pairs-near", endpoint(NEAR), WITH_S3, USUAL),
    ("pairs-in-a-zone", endpoint(IN_A_ZONE), WITH_S3, PROMETHEUS),
    ("captured", endpoint(CAPTURE), WITH_S3, MINIO),
    ("shell", endpoint(worker(command=["sh", "-c", "exec vllm serve /opt/ml/model -tp 4"], args=None)), WITH_S3, USUAL),
    ("other-engine", endpoint(worker(image="lmsysorg/sglang:v0.5.6", args=["--tp", "4"])), WITH_S3, USUAL),
]
NAMES = [case[0] for case in CASES]


def made(wanted: Endpoint, has: Capabilities = WITH_S3, config: OperatorConfig = USUAL) -> Made:
    return model_source(wanted, has, config) + workers(wanted, has, config)


def pods(answer: Made) -> list[dict[str, Any]]:
    return [manifest["spec"]["template"]["spec"] for manifest in answer.manifests if manifest["kind"] == "Deployment"]


def engine(wanted: Endpoint, has: Capabilities = WITH_S3, config: OperatorConfig = USUAL) -> dict[str, Any]:
    container: dict[str, Any] = pods(made(wanted, has, config))[0]["containers"][0]
    return container


def bucket_of(wanted: Endpoint) -> str:
    text = next(each["value"] for each in engine(wanted)["env"] if each["name"] == "LMCACHE_EXTRA_CONFIG")
    return str(json.loads(text)["sagemaker_hyperpod_bucket"])


@pytest.mark.parametrize(("name", "wanted", "has", "config"), CASES, ids=NAMES)
def test_workers_are_as_their_golden_file_says(
    name: str, wanted: Endpoint, has: Capabilities, config: OperatorConfig
) -> None:
    require_golden(f"operator/workers/{name}", made(wanted, has, config))


@pytest.mark.parametrize(("name", "wanted", "has", "config"), CASES, ids=NAMES)
def test_pods_name_nothing_twice_and_mount_only_what_they_have(
    name: str, wanted: Endpoint, has: Capabilities, config: OperatorConfig
) -> None:
    for pod in pods(made(wanted, has, config)):
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(volumes) == len(set(volumes))
        assert len({container["name"] for container in containers}) == len(containers)
        for container in containers:
            variables = [variable["name"] for variable in container.get("env", [])]
            assert len(variables) == len(set(variables))
            mounts = container.get("volumeMounts", [])
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
            assert {mount["name"] for mount in mounts} <= set(volumes)


@pytest.mark.parametrize(("name", "wanted", "has", "config"), CASES, ids=NAMES)
def test_a_variable_comes_behind_those_that_it_refers_to(
    name: str, wanted: Endpoint, has: Capabilities, config: OperatorConfig
) -> None:
    for pod in pods(made(wanted, has, config)):
        for container in pod["containers"]:
            seen: set[str] = set()
            for variable in container.get("env", []):
                text = variable.get("value", "")
                for known in ("POD_IP", "NODE_IP", "POD_NAME", "NODE_NAME"):
                    assert f"$({known})" not in text or known in seen
                seen.add(variable["name"])


def test_the_first_container_is_named_like_the_endpoint() -> None:
    pod = pods(made(endpoint(name="chat")))[0]

    assert [container["name"] for container in pod["containers"]] == ["chat", "reverse-proxy", "metrics-collector"]


@given(
    names=st.lists(
        st.sampled_from(["LMCACHE_REMOTE_URL", "LMCACHE_LOCAL_CPU", "NODE_IP", "POD_IP", "PYTHONHASHSEED", "OWN"]),
        max_size=8,
    )
)
def test_the_users_variables_win_and_are_there_once(names: list[str]) -> None:
    own = [{"name": name, "value": f"users-{place}"} for place, name in enumerate(names)]

    variables = engine(endpoint(worker(environmentVariables=own)))["env"]

    last = {variable["name"]: variable["value"] for variable in own}
    assert {variable["name"]: variable.get("value") for variable in variables if variable["name"] in last} == last
    assert len({variable["name"] for variable in variables}) == len(variables)


@pytest.mark.parametrize(
    "spelled",
    [
        ["--kv-transfer-config", "{}"],
        ["--kv-transfer-config={}"],
        ["--kv_transfer_config={}"],
        ["--kv-transfer-config.kv_connector", "MyConnector"],
    ],
)
def test_the_users_arguments_win_however_they_are_spelled(spelled: list[str]) -> None:
    arguments = engine(endpoint(worker(args=["--model", "/opt/ml/model", *spelled])))["args"]

    assert sum(word.startswith("--kv") for word in arguments) == 1
    assert arguments[2 : 2 + len(spelled)] == spelled


def test_a_volume_of_the_users_comes_in_place_of_one_of_ours() -> None:
    larger = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}

    volumes = pods(made(endpoint({"kubernetes": {"volumes": [larger]}})))[0]["volumes"]

    assert [volume for volume in volumes if volume["name"] == "shared-memory"] == [larger]


def test_a_python_path_of_the_users_own_comes_before_the_connector() -> None:
    own = worker(image="vllm/vllm-openai:v0.32.0", environmentVariables=[{"name": "PYTHONPATH", "value": "/mine"}])

    variables = {variable["name"]: variable.get("value") for variable in engine(endpoint(own), config=OURS)["env"]}

    assert variables["PYTHONPATH"] == "/mine:/opt/tierline"


def test_a_python_path_that_refers_to_something_stays_and_is_told_of() -> None:
    referred = {"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "folders", "key": "path"}}}
    found = made(endpoint(worker(image="vllm/vllm-openai:v0.32.0", environmentVariables=[referred])), config=OURS)

    assert [each for each in pods(found)[0]["containers"][0]["env"] if each["name"] == "PYTHONPATH"] == [referred]
    assert "PythonPathReferred" in {notice.reason for notice in found.notices}


@given(
    cache=st.fixed_dictionaries(
        {
            "enableL1Cache": st.booleans(),
            "enableL2Cache": st.booleans(),
            "l2CacheSpec": st.sampled_from([{"l2CacheBackend": "tieredstorage"}, {"l2CacheBackend": "redis"}, {}]),
        },
        optional={"cacheConfigFile": st.just("/etc/lmcache/config.yaml")},
    ),
    image=st.sampled_from(["vllm/vllm-openai:v0.32.0", IMAGE]),
    config=st.sampled_from([USUAL, OURS]),
)
def test_what_the_node_store_makes_is_mounted_only_where_a_node_store_is_wanted(
    cache: dict[str, Any], image: str, config: OperatorConfig
) -> None:
    wanted = endpoint({"kvCacheSpec": cache} | worker(image=image))
    found = made(wanted, config=config)
    folders = {volume["hostPath"]["path"] for volume in pods(found)[0]["volumes"] if "hostPath" in volume}

    assert wants_store(wanted, config) or not folders & {"/run/tierline", f"/dev/shm/{config.segment_name}"}


def test_a_file_of_lmcaches_is_told_of_where_our_connector_is_asked_for() -> None:
    file = {"enableL1Cache": False, "enableL2Cache": False, "cacheConfigFile": "/etc/lmcache/config.yaml"}
    alone = made(endpoint({"kvCacheSpec": file} | VLLM_032), config=OURS)
    beside = made(endpoint({"kvCacheSpec": file | {"enableL1Cache": True}} | VLLM_032), config=OURS)

    assert "LMCacheConnectorV1" in " ".join(pods(alone)[0]["containers"][0]["args"])
    assert "LMCacheConnectorV1" not in " ".join(pods(beside)[0]["containers"][0]["args"])
    assert all("FileIsLmcaches" in {notice.reason for notice in each.notices} for each in (alone, beside))


SERVE = "exec vllm serve /opt/ml/model"
ON_A_CLAIM: dict[str, Any] = source(modelSourceType="kubernetesVolume", modelLocation="llama") | {
    "kubernetes": {"volumes": [{"name": "model-weights", "persistentVolumeClaim": {"claimName": "models"}}]}
}
ON_ANOTHER: dict[str, Any] = ON_A_CLAIM | {
    "kubernetes": {"volumes": [{"name": "model-weights", "persistentVolumeClaim": {"claimName": "others"}}]}
}
PATCHED: dict[str, Any] = {"kubernetes": {"initContainers": [{"name": "merge", "image": "adapters:2"}]}}
QUANTIZED: dict[str, Any] = {
    "pdSpec": {"prefillSpec": {"args": ["--quantization=fp8"]}, "decodingSpec": {"args": ["--quantization=fp8"]}}
}
BY_VARIABLE = [*SPEC["worker"]["environmentVariables"], {"name": "SM_VLLM_QUANTIZATION", "value": "fp8"}]


@pytest.mark.parametrize(
    ("changes", "of"),
    [
        ({"modelVersion": "2"}, {}),
        (source(**{**S3, "modelLocation": "models/other"}), {}),
        (worker(image=IMAGE.replace("0.11.1", "0.11.2")), {}),
        (worker(args=[*SPEC["worker"]["args"], "--quantization", "fp8"]), {}),
        (
            worker(command=["sh", "-c", f"{SERVE} --quantization fp8"], args=None),
            worker(command=["sh", "-c", SERVE], args=None),
        ),
        (worker(environmentVariables=BY_VARIABLE), {}),
        (worker(workingDir="/opt/ml/model/next"), {}),
        (ON_ANOTHER, ON_A_CLAIM),
        (PATCHED, {}),
        (QUANTIZED, {"pdSpec": {"prefillSpec": {}, "decodingSpec": {}}}),
    ],
)
def test_what_changes_the_meaning_of_a_cache_changes_its_bucket(changes: dict[str, Any], of: dict[str, Any]) -> None:
    assert bucket_of(endpoint(changes)) != bucket_of(endpoint(of))


def test_what_does_not_change_its_meaning_keeps_the_bucket() -> None:
    alike = {
        "replicas": 5,
        "kvCacheSpec": {**SPEC["kvCacheSpec"], "enableL1Cache": False},
        **source(**{**S3, "prefetchEnabled": True}),
        **worker(resources={"limits": {"nvidia.com/gpu": 4}}, requestLimits={"maxConcurrentRequests": 8}),
    }

    assert bucket_of(endpoint(alike)) == bucket_of(endpoint())


def test_endpoints_whose_names_are_joined_to_the_same_have_buckets_of_their_own() -> None:
    assert bucket_of(endpoint(name="b-c", namespace="a")) != bucket_of(endpoint(name="c", namespace="a-b"))


def test_a_redis_of_our_own_has_one_cache_in_it() -> None:
    def url(changes: dict[str, Any], name: str = "demo") -> str:
        wanted = endpoint({"kvCacheSpec": REDIS, **changes}, name=name)
        found = str(next(each["value"] for each in engine(wanted)["env"] if each["name"] == "LMCACHE_REMOTE_URL"))
        services = [each["metadata"] for each in redis([wanted], WITH_S3, USUAL).manifests if each["kind"] == "Service"]
        assert [f"redis://{each['name']}.{each['namespace']}.svc:6379" for each in services] == [found]
        return found

    before = url({})
    other = source(**{**S3, "modelLocation": "models/other"})
    assert len({before, url(other), url({}, "other"), url(other, "other")}) == 4
    assert url({"replicas": 5}) == before


def test_pods_that_may_have_other_files_each_share_no_cache() -> None:
    wanted = endpoint(MOVING)

    names = [variable["name"] for variable in engine(wanted)["env"]]
    assert bucket_of(wanted).endswith("-$(TIERLINE_POD_UID)")
    assert names.index("TIERLINE_POD_UID") < names.index("LMCACHE_EXTRA_CONFIG")
    assert [notice.reason for notice in made(wanted).notices] == ["RevisionMoves"]


def weights_of(wanted: Endpoint) -> list[str | None]:
    """Return what the pods of each Deployment say their KV is of, which their proxies hold requests to."""
    templates = [each["spec"]["template"] for each in made(wanted).manifests if each["kind"] == "Deployment"]
    for template in templates:
        said = template["metadata"].get("annotations", {}).get("tierline.ai/weights")
        [proxy] = [each for each in template["spec"]["containers"] if each["name"] == "reverse-proxy"]
        held_to = [word for word in proxy["args"] if word.startswith("--weights=")]
        assert held_to == ([] if said is None else [f"--weights={said}"])
    return [template["metadata"].get("annotations", {}).get("tierline.ai/weights") for template in templates]


def test_pods_that_prefill_and_pods_that_decode_say_what_their_kv_is_of() -> None:
    first, second = weights_of(endpoint(PAIRS))
    assert first == second != None  # noqa: E711
    for change in (
        worker(image="vllm/vllm-openai:v0.14.0"),
        source(**{**S3, "modelLocation": "models/other"}),
        {"pdSpec": {**PAIRS["pdSpec"], "decodingSpec": {"args": ["--quantization", "fp8"]}}},
    ):
        other, same = weights_of(endpoint(PAIRS | change))
        assert other == same != first
    more = {"pdSpec": {**PAIRS["pdSpec"], "decodingSpec": {"replicas": 7}}}
    assert weights_of(endpoint(PAIRS | more)) == [first, first]
    assert weights_of(endpoint()) == [None]


def test_no_word_of_the_users_makes_pairs_of_pods_with_other_weights() -> None:
    said = {"kubernetes": {"podTemplateAnnotations": {"tierline.ai/weights": "mine"}}}
    assert weights_of(endpoint(PAIRS | said)) != ["mine", "mine"]


def test_pods_that_may_have_other_files_each_are_not_paired() -> None:
    wanted = endpoint(PAIRS | MOVING)
    assert weights_of(wanted) == ["own", "own"]
    assert ("WorkersReady", "RevisionMoves") in {(each.condition, each.reason) for each in made(wanted).notices}
    pinned = source(modelSourceType="huggingface", huggingFaceModel=HUGGING_FACE)
    others = source(modelSourceType="huggingface", huggingFaceModel=HUGGING_FACE | {"commitSHA": SHA[::-1]})
    assert len({*weights_of(endpoint(PAIRS | pinned)), *weights_of(endpoint(PAIRS | others)), "own"}) == 3


def test_pods_that_may_have_other_files_each_are_given_no_redis() -> None:
    wanted = endpoint({"kvCacheSpec": REDIS, **MOVING})

    assert "LMCACHE_REMOTE_URL" not in {variable["name"] for variable in engine(wanted)["env"]}
    assert not redis([wanted], WITH_S3, USUAL).manifests
    assert [notice.reason for notice in made(wanted).notices] == ["RevisionMoves"]


def test_of_a_store_of_the_users_own_it_is_said_what_must_not_be_in_it() -> None:
    given = {**REDIS, "l2CacheSpec": {"l2CacheBackend": "redis", "l2CacheLocalUrl": "redis://redis.default:6379"}}

    assert [each.reason for each in made(endpoint({"kvCacheSpec": given})).notices] == ["KeysNameThePath"]
    assert not made(endpoint({"kvCacheSpec": REDIS})).notices


def test_settings_of_lmcache_of_the_users_own_are_joined_by_the_models_bucket() -> None:
    given = [{"name": "LMCACHE_EXTRA_CONFIG", "value": '{"sagemaker_hyperpod_max_connections": 64, "own": "$(HOME)"}'}]
    wanted = endpoint({**worker(environmentVariables=given), **MOVING})
    environment = engine(wanted)["env"]
    (told,) = [each for each in environment if each["name"] == "LMCACHE_EXTRA_CONFIG"]
    found = json.loads(told["value"])
    assert (found["sagemaker_hyperpod_max_connections"], found["own"]) == (64, "$(HOME)")
    assert found["sagemaker_hyperpod_bucket"].endswith("-$(TIERLINE_POD_UID)")
    names = [each["name"] for each in environment]
    assert names.index("TIERLINE_POD_UID") < names.index("LMCACHE_EXTRA_CONFIG")
    own = [{"name": "LMCACHE_EXTRA_CONFIG", "value": '{"sagemaker_hyperpod_bucket": "mine"}'}]
    assert bucket_of(endpoint(worker(environmentVariables=own))) == "mine"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"name": "LMCACHE_EXTRA_CONFIG", "value": "$(ELSEWHERE)"}, "BucketNotJoined"),
        (
            {"name": "LMCACHE_EXTRA_CONFIG", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            "BucketNotJoined",
        ),
        ({"name": "LMCACHE_REMOTE_URL", "value": "redis://mine:6379"}, "KeysNameThePath"),
    ],
)
def test_where_the_users_own_variables_keep_the_bucket_away_it_is_said(given: dict[str, Any], reason: str) -> None:
    wanted = endpoint(worker(environmentVariables=[given]))
    assert given in engine(wanted)["env"]
    assert reason in [notice.reason for notice in made(wanted).notices]


def test_of_a_file_of_lmcaches_it_is_said_that_keys_name_the_path() -> None:
    wanted = endpoint({"kvCacheSpec": {**SPEC["kvCacheSpec"], "cacheConfigFile": "/etc/lmcache/config.yaml"}})
    assert "KeysNameThePath" in [notice.reason for notice in made(wanted).notices]


def test_prefill_and_decode_have_one_bucket() -> None:
    found = {
        next(each["value"] for each in pod["containers"][0]["env"] if each["name"] == "LMCACHE_EXTRA_CONFIG")
        for pod in pods(made(endpoint({"pdSpec": {"prefillSpec": {"args": ["-tp", "4"]}, "decodingSpec": {}}})))
    }

    assert len({json.loads(text)["sagemaker_hyperpod_bucket"] for text in found}) == 1


def test_a_copied_model_has_the_room_that_its_size_says() -> None:
    def pod(medium: str) -> dict[str, Any]:
        return pods(made(endpoint(annotations={"model-size": "140GiB", "prefetch-medium": medium}), PLAIN))[0]

    size = "140Gi"
    assert pod("disk")["volumes"][0]["emptyDir"] == {"sizeLimit": size}
    assert pod("memory")["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}
    assert pod("disk")["initContainers"][0]["resources"]["requests"]["ephemeral-storage"] == size
    assert "ephemeral-storage" not in pod("memory")["initContainers"][0]["resources"]["requests"]


def test_another_source_is_another_volume() -> None:
    def volume(wanted: Endpoint) -> str:
        return str(model_source(wanted, WITH_S3, USUAL).manifests[0]["metadata"]["name"])

    assert volume(endpoint(source(**{**S3, "modelLocation": "models/other"}))) != volume(endpoint())
    assert volume(endpoint(namespace="other")) != volume(endpoint())


def test_names_of_the_longest_endpoint_are_allowed() -> None:
    longest: dict[str, Any] = {"name": "n" * 63, "namespace": "s" * 63}
    wanted = endpoint(source(**{**S3, "prefetchEnabled": True}) | PAIRS, **longest)

    answer = made(wanted) + model_source(endpoint(**longest), WITH_S3, USUAL)

    names = [manifest["metadata"]["name"] for manifest in answer.manifests]
    names += [container["name"] for pod in pods(answer) for container in pod["initContainers"] + pod["containers"]]
    assert max(map(len, names)) <= 63


def test_a_pod_with_accelerators_gives_them_up_before_its_successor_starts() -> None:
    def strategy(wanted: Endpoint) -> dict[str, Any]:
        found: dict[str, Any] = workers(wanted, WITH_S3, USUAL).manifests[0]["spec"]["strategy"]
        return found

    in_place = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert strategy(endpoint()) == in_place
    assert strategy(endpoint(worker(resources={"requests": {"cpu": 4}}))) == surge
    assert strategy(endpoint(annotations={"rollout-strategy": "surge"})) == surge
    assert strategy(endpoint(annotations={"rollout-strategy": "recreate"})) == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("annotations", "named"),
    [
        ({"rollout-strategy": "fast"}, "tierline.ai/rollout-strategy"),
        ({"l1-size": "40GB"}, "tierline.ai/l1-size"),
        ({"model-size": "140GB"}, "tierline.ai/model-size"),
        ({"connector": "mooncake"}, "tierline.ai/connector"),
        ({"engine": "sglang"}, "tierline.ai/engine"),
        ({"volume-mounts": "nothing=/there"}, "tierline.ai/volume-mounts"),
    ],
)
def test_a_wrong_annotation_is_named(annotations: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        made(endpoint(annotations=annotations), PLAIN)


def test_machines_that_the_cluster_does_not_have_are_told_of() -> None:
    drivers = frozenset({"s3.csi.aws.com"})
    small = Capabilities(csi_drivers=drivers, instance_types=frozenset({"m5.large"}))
    of_another_distribution = Capabilities(csi_drivers=drivers, instance_types=frozenset({"g5.24xlarge"}))

    assert "NoSuchInstanceType" in {notice.reason for notice in made(endpoint(), small).notices}
    assert not made(endpoint(), of_another_distribution).notices


@pytest.mark.parametrize(
    ("variables", "setting", "region"),
    [
        ({}, None, "us-west-2"),
        ({}, "eu-central-1", "eu-central-1"),
        ({"AWS_REGION": "eu-west-1"}, None, None),
        ({"AWS_REGION": "eu-west-1"}, "eu-central-1", "eu-central-1"),
    ],
)
def test_what_is_captured_goes_to_a_bucket_of_the_region_that_is_said(
    variables: dict[str, str], setting: str | None, region: str | None
) -> None:
    given = worker(environmentVariables=[{"name": name, "value": value} for name, value in variables.items()])
    wanted = endpoint({**CAPTURE, **given})

    proxy = pods(workers(wanted, WITH_S3, OperatorConfig(s3_region=setting)))[0]["containers"][1]
    assert [word for word in proxy["args"] if "region" in word] == ([f"--s3-region={region}"] if region else [])
    assert {each["name"]: each.get("value") for each in proxy["env"]}.items() >= variables.items()


def test_what_is_captured_needs_a_place() -> None:
    wanted = endpoint({**CAPTURE, "tlsConfig": None})

    assert [notice.reason for notice in made(wanted).notices] == ["CaptureHasNoPlace"]
    assert not any("--capture" in word for word in pods(made(wanted))[0]["containers"][1]["args"])
