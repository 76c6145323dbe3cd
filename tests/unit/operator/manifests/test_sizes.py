from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoints import endpoint

from tierline.errors import UsageError
from tierline.operator.config import OperatorConfig
from tierline.operator.manifests.sizes import GIB, cache_size, instance_types, quantity

USUAL = OperatorConfig()
FOUR_GPUS: dict[str, Any] = {"nvidia.com/gpu": "4"}


def l1_gib(resources: dict[str, Any], instance_type: str | None = "ml.g5.24xlarge") -> float | None:
    size = cache_size(endpoint({"instanceType": instance_type}), resources, USUAL).l1_bytes
    return None if size is None else size / GIB


def test_half_of_what_a_pod_can_have_beyond_its_request_is_l1() -> None:
    # 384 GiB, less 10 % for the system and 20 % for the node store.
    assert l1_gib({"requests": {"memory": "30Gi"}, "limits": FOUR_GPUS}) == pytest.approx((384 * 0.7 - 30) / 2)


def test_pods_that_share_a_machine_share_its_memory() -> None:
    assert l1_gib({"limits": {"nvidia.com/gpu": 1}}) == pytest.approx(384 * 0.7 / 4 / 2)


def test_slices_of_a_gpu_share_it() -> None:
    # Two of seven slices of each of eight GPUs: 28 pods on 1152 GiB.
    size = l1_gib({"limits": {"nvidia.com/mig-2g.10gb": 1}}, "ml.p4d.24xlarge")

    assert size == pytest.approx(1152 * 0.7 / 28 / 2, rel=1e-6)


def test_network_devices_are_no_accelerators() -> None:
    devices = {"nvidia.com/gpu": 2, "vpc.amazonaws.com/efa": 32}

    assert l1_gib({"limits": devices}, "ml.p5.48xlarge") == pytest.approx(2048 * 0.7 / 4 / 2)


def test_a_limit_bounds_the_pod() -> None:
    assert l1_gib({"requests": {"memory": "30Gi"}, "limits": {**FOUR_GPUS, "memory": "50Gi"}}) == 10


def test_a_pod_that_may_have_what_it_asks_for_keeps_a_fifth_of_it() -> None:
    assert l1_gib({"requests": {"memory": "50Gi"}, "limits": {**FOUR_GPUS, "memory": "50Gi"}}) == 10


def test_of_machines_that_nobody_knows_a_fifth_of_the_request_is_taken_and_told_of() -> None:
    size = cache_size(endpoint({"instanceType": "ml.z9.large"}), {"requests": {"memory": "10Gi"}}, USUAL)

    assert size.l1_bytes == 2 * GIB
    assert "ml.z9.large" in size.notices[0].message


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert l1_gib({}, None) is None


def test_the_smallest_of_several_machines_counts() -> None:
    wanted = endpoint({"instanceType": None, "instanceTypes": ["ml.p5.48xlarge", "ml.g5.24xlarge"]})

    size = cache_size(wanted, {"limits": FOUR_GPUS}, USUAL)

    assert size.l1_bytes == 384 * GIB * 70 // 100 // 2


def test_an_annotation_says_it() -> None:
    size = cache_size(endpoint(annotations={"l1-size": "40GiB"}), {"limits": FOUR_GPUS}, USUAL)

    assert size.l1_bytes == 40 * GIB


def test_a_file_adds_machines_and_corrects_them(tmp_path: Path) -> None:
    file = tmp_path / "types.yaml"
    file.write_text("rack-1: {memory_gib: 512, accelerators: 2}\nml.g5.24xlarge: {memory_gib: 100}\n")

    table = instance_types(file)

    assert table["rack-1"].accelerators == 2
    assert table["ml.g5.24xlarge"].memory_gib == 100
    assert table["ml.p5.48xlarge"].memory_gib == 2048


@pytest.mark.parametrize("text", ["- a\n", "rack-1: {memory: 5}\n", "rack-1: [\n"])
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "types.yaml"
    file.write_text(text)

    with pytest.raises(UsageError, match=r"types\.yaml"):
        instance_types(file)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (4, 4),
        ("4", 4),
        ("500m", "0.5"),
        ("30Gi", 30 * GIB),
        ("1.5Ki", 1536),
        ("2k", 2000),
        ("1e3", 1000),
        ("1E", 10**18),
    ],
)
def test_quantities_are_those_of_kubernetes(text: int | str, number: int | str) -> None:
    assert quantity(text) == Decimal(number)


@given(
    requested=st.integers(1, 2048),
    limit=st.none() | st.integers(1, 4096),
    gpus=st.integers(0, 8),
    kind=st.sampled_from(sorted(instance_types(None))),
)
def test_l1_and_what_pods_ask_for_fit_beside_the_node_store(
    requested: int, limit: int | None, gpus: int, kind: str
) -> None:
    machine = instance_types(None)[kind]
    resources: dict[str, Any] = {"requests": {"memory": f"{requested}Gi"}, "limits": {}}
    if limit is not None and limit >= requested:
        resources["limits"]["memory"] = f"{limit}Gi"
    if 0 < gpus <= machine.accelerators:
        resources["limits"]["nvidia.com/gpu"] = gpus

    size = cache_size(endpoint({"instanceType": kind}), resources, USUAL).l1_bytes

    assert size is not None
    pods = machine.accelerators // gpus if 0 < gpus <= machine.accelerators else 1
    # A pod that asks for more than its share has what it asks for: the scheduler puts fewer of them on a machine.
    assert size + requested * GIB <= max(machine.memory_gib * GIB * 0.7 / pods, requested * GIB * 1.2)
