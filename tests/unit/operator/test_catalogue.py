"""The catalogue: what a ``JumpStartModel`` becomes by it, and how its files are read and followed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL, changed

from tierline.errors import UsageError
from tierline.operator.catalogue import Catalogue, CatalogueFiles, read
from tierline.operator.endpoint import Endpoint
from tierline.operator.intake import endpoint_of

CATALOGUE = read(None)
GATED = "meta-textgeneration-llama-3-1-8b-instruct"
ENTRY: dict[str, Any] = {
    "id": "tiny",
    "version": "1.0.0",
    "licence": {"name": "MIT", "url": "https://opensource.org/license/mit"},
    "spec": {
        "modelName": "tiny",
        "modelSourceConfig": {"modelSourceType": "s3", "s3Storage": {"bucketName": "models", "region": "eu-west-1"}},
        "loadBalancer": {"healthCheckPath": "/health"},
        "metrics": {"modelMetrics": {"port": 8000}},
        "worker": {
            "image": "engine:1",
            "args": ["--max-model-len=1024", "--max-num-seqs", "8"],
            "environmentVariables": [{"name": "A", "value": "entry"}, {"name": "B", "value": "entry"}],
            "modelInvocationPort": {"containerPort": 8000},
            "modelVolumeMount": {"name": "weights"},
            "resources": {"limits": {"nvidia.com/gpu": 1}},
        },
    },
    "machines": {
        "ml.p5.48xlarge": {"resources": {"limits": {"nvidia.com/gpu": 8}}, "args": ["--tensor-parallel-size", "8"]}
    },
    "settings": {"max-model-len": "--max-model-len", "max-num-seqs": "--max-num-seqs"},
}


def written(folder: Path, *entries: dict[str, Any], name: str = "models.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump({"models": list(entries)}))
    return file


@pytest.fixture
def tiny(tmp_path: Path) -> Catalogue:
    return read(written(tmp_path, ENTRY, ENTRY | {"version": "1.10.0"}, ENTRY | {"version": "1.9.0"}))


def made(catalogue: Catalogue, changes: dict[str, Any] | None = None) -> Endpoint:
    endpoint, verdict = endpoint_of(changed(JUMP_START_MODEL, {"model.modelId": "tiny"} | (changes or {})), catalogue)
    assert endpoint is not None, verdict.errors
    return endpoint


def refused(catalogue: Catalogue, changes: dict[str, Any]) -> dict[str, str]:
    endpoint, verdict = endpoint_of(changed(JUMP_START_MODEL, changes), catalogue)
    assert endpoint is None
    return {finding.path: finding.message for finding in verdict.errors}


def test_an_endpoint_config_is_its_own_endpoint() -> None:
    endpoint, verdict = endpoint_of(INFERENCE_ENDPOINT_CONFIG, CATALOGUE)
    assert verdict.findings == ()
    assert endpoint is not None
    assert (endpoint.kind, endpoint.name, endpoint.namespace) == ("InferenceEndpointConfig", "demo", "default")
    assert endpoint.spec.manifest() == INFERENCE_ENDPOINT_CONFIG["spec"]


def test_a_wrong_annotation_is_an_error_that_names_it() -> None:
    said = {"tierline.ai/rollout-strategy": "fast", "team": "search"}
    resource = {**INFERENCE_ENDPOINT_CONFIG, "metadata": {"name": "demo", "annotations": said}}
    endpoint, verdict = endpoint_of(resource, CATALOGUE)
    assert endpoint is None
    assert [str(finding) for finding in verdict.errors] == [
        "metadata.annotations[tierline.ai/rollout-strategy]: got 'fast'; allowed: in-place, surge, recreate"
    ]


def test_a_model_without_a_version_is_the_newest(tiny: Catalogue) -> None:
    assert made(tiny).spec.model_version == "1.10.0"
    assert made(tiny, {"model.modelVersion": "1.9.0"}).spec.model_version == "1.9.0"


def test_what_the_user_says_comes_before_the_entry(tiny: Catalogue) -> None:
    spec = made(
        tiny,
        {
            "replicas": 3,
            "metrics": {"metricsScrapeIntervalSeconds": 30},
            "environmentVariables": [{"name": "B", "value": "user"}],
            "kvCacheSpec": {"enableL1Cache": False},
        },
    ).spec.manifest()
    assert spec["replicas"] == 3
    assert spec["instanceType"] == "ml.g5.8xlarge"
    assert spec["metrics"] == {"metricsScrapeIntervalSeconds": 30, "modelMetrics": {"port": 8000}}
    assert spec["kvCacheSpec"] == {"enableL1Cache": False}
    assert spec["worker"]["environmentVariables"] == [{"name": "A", "value": "entry"}, {"name": "B", "value": "user"}]


def test_a_setting_is_an_argument_of_the_engine_once(tiny: Catalogue) -> None:
    settings = [{"name": "max-model-len", "value": "4096"}, {"name": "max-num-seqs", "value": "2"}]
    spec = made(tiny, {"model.additionalConfigs": settings}).spec
    assert spec.worker.args == ["--max-model-len", "4096", "--max-num-seqs", "2"]


def test_a_machine_has_resources_and_arguments_of_its_own(tiny: Catalogue) -> None:
    worker = made(tiny, {"server.instanceType": "ml.p5.48xlarge"}).spec.worker
    assert worker.args == ["--tensor-parallel-size", "8"]
    assert worker.resources.limits == {"nvidia.com/gpu": 8}


def test_a_part_of_a_gpu_is_a_resource_of_its_own(tiny: Catalogue) -> None:
    spec = made(tiny, {"server": {"instanceType": "ml.p4d.24xlarge", "acceleratorPartitionType": "mig-1g.5gb+me"}}).spec
    assert spec.worker.resources.limits == {"nvidia.com/mig-1g.5gb.me": 1}


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"instanceType": "ml.p4d.24xlarge", "acceleratorPartitionType": "mig-1g.10gbx"}, "such as mig-1g.5gb"),
        ({"instanceType": "ml.p5.4xlarge", "acceleratorPartitionType": "mig-1g.5gb"}, "ml.p5.4xlarge has mig-1g.10gb"),
        ({"instanceType": "ml.g5.8xlarge", "acceleratorPartitionType": "mig-1g.5gb"}, "have no parts"),
    ],
)
def test_a_part_that_the_machine_does_not_have_is_refused(tiny: Catalogue, server: dict[str, str], words: str) -> None:
    found = refused(tiny, {"model.modelId": "tiny", "server": server})
    assert words in found["spec.server.acceleratorPartitionType"]


def test_whoever_knows_better_can_have_parts_unchecked(tiny: Catalogue) -> None:
    server = {
        "instanceType": "ml.g5.8xlarge",
        "acceleratorPartitionType": "mig-1g.5gb",
        "validations": {"acceleratorPartitionValidation": False},
    }
    assert made(tiny, {"server": server}).spec.worker.resources.limits == {"nvidia.com/mig-1g.5gb": 1}


def test_a_gated_model_is_served_once_its_licence_is_accepted() -> None:
    found = refused(CATALOGUE, {"model.modelId": GATED})
    assert "Llama 3.1 Community License" in found["spec.model.acceptEula"]
    accepted = made(CATALOGUE, {"model.modelId": GATED, "model.acceptEula": True}).spec
    assert accepted.model_source_config.hugging_face_model is not None
    assert accepted.model_source_config.hugging_face_model.token_secret_ref is not None


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"model.modelId": "tiney"}, "spec.model.modelId", "did you mean tiny?"),
        ({"model.modelId": "tiny", "model.modelVersion": "2.0.0"}, "spec.model.modelVersion", "1.10.0, 1.9.0, 1.0.0"),
        (
            {"model.modelId": "tiny", "model.additionalConfigs": [{"name": "max_model_len", "value": "1"}]},
            "spec.model.additionalConfigs[0].name",
            "did you mean max-model-len?",
        ),
    ],
)
def test_what_the_catalogue_lacks_is_named_with_what_it_has(
    tiny: Catalogue, changes: dict[str, Any], path: str, words: str
) -> None:
    assert words in refused(tiny, changes)[path]


@pytest.mark.parametrize("model_id", CATALOGUE.ids)
def test_every_model_that_comes_along_makes_an_endpoint(model_id: str) -> None:
    assert made(CATALOGUE, {"model.modelId": model_id, "model.acceptEula": True}).spec.worker.args


def test_a_user_s_entry_comes_before_the_one_that_comes_along(tmp_path: Path) -> None:
    entry = ENTRY | {"id": GATED, "version": "9.0.0"}
    assert made(read(written(tmp_path, entry)), {"model.modelId": GATED}).spec.model_name == "tiny"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ENTRY | {"version": "1"}, "models[0].version: three numbers in quotes"),
        (ENTRY | {"licences": []}, "models[0].licences"),
        ({key: value for key, value in ENTRY.items() if key != "licence"}, "models[0].licence"),
        (ENTRY | {"spec": ENTRY["spec"] | {"modelNam": "x"}}, "models[0].spec.modelNam: no such field"),
        (ENTRY | {"spec": ENTRY["spec"] | {"instanceTypes": ["a"], "instanceType": "ml.a"}}, "spec.instanceTypes"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(written(tmp_path, entry))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["models: [", "[]", "models: {}", "\x00"])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match="catalogue"):
        read(tmp_path / "c.yaml")


def test_a_mounted_config_map_is_followed_and_survives_a_mistake(tmp_path: Path) -> None:
    for number, entry in enumerate((ENTRY, ENTRY | {"version": "2.0.0"}, {"id": "wrong"})):
        version = tmp_path / f"..version-{number}"
        version.mkdir()
        written(version, entry)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "models.yaml").symlink_to(Path("..") / "..data" / "models.yaml")

    def publish(number: int) -> None:
        # As a kubelet does: the link to the folder of the new version takes the place of the old one.
        (tmp_path / "..tmp").symlink_to(f"..version-{number}")
        (tmp_path / "..tmp").replace(tmp_path / "..data")

    publish(0)
    files = CatalogueFiles(mounted)
    assert files.current().versions("tiny") == ("1.0.0",)
    publish(1)
    assert files.current().versions("tiny") == ("2.0.0",)
    publish(2)
    assert files.current().versions("tiny") == ("2.0.0",)


def test_a_folder_that_goes_while_it_is_read_leaves_what_was_read_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, ENTRY)
    files = CatalogueFiles(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", gone)
        assert files.current().versions("tiny") == ("1.0.0",)
    written(tmp_path, ENTRY | {"version": "2.0.0"})
    assert files.current().versions("tiny") == ("2.0.0",)


def gone(folder: Path) -> None:
    raise FileNotFoundError(folder)
