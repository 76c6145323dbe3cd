"""The machine's memory, with limits of control groups of both versions."""

from pathlib import Path

import pytest

from tierline.node.memory import total_memory_bytes

GIB = 1024**3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\n")
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_without_a_control_group_it_is_the_machines(root: Path) -> None:
    assert total_memory_bytes(root) == 16 * GIB


def test_the_tightest_limit_of_a_group_and_those_above_it_counts(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/kubepods/pod7/main\n")
    write(root / "sys/fs/cgroup/kubepods/memory.max", f"{12 * GIB}\n")
    write(root / "sys/fs/cgroup/kubepods/pod7/memory.max", f"{4 * GIB}\n")
    write(root / "sys/fs/cgroup/kubepods/pod7/main/memory.max", "max\n")
    assert total_memory_bytes(root) == 4 * GIB


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_by_it(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/memory.max", f"{2 * GIB}\n")
    assert total_memory_bytes(root) == 2 * GIB


def test_groups_of_version_1_count_and_their_lack_of_a_limit_does_not(root: Path) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/x\n0::/\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root / "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", f"{3 * GIB}\n")
    assert total_memory_bytes(root) == 3 * GIB
