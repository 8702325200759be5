"""Wheel, sdist and compiler-less installs, each used from an environment that holds torch and nothing else of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **environment: str) -> str:
    """Runs a command from outside the source tree and returns its output; a failure shows it."""
    variables = {**os.environ, "JEPA_KERNELS_BUILD_CUDA": "off", **environment}
    finished = subprocess.run(
        [str(part) for part in command],
        env=variables,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-3000:]}\n{finished.stderr[-5000:]}"
    return finished.stdout + finished.stderr


def distributions_of_torch() -> set[str]:
    """torch, numpy and all that they need, by distribution name."""
    wanted, found = ["torch", "numpy"], set()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted += [re.split(r"[ <>=!~;\[(]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line]
    return found - {"triton"}


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv that sees torch and what torch needs (linked from this environment), and no triton."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for name in distributions_of_torch():
        for file in metadata.files(name) or []:
            top = Path(file).parts[0]
            source = (
                Path(file.locate()).parents[len(Path(file).parts) - 2]
                if len(Path(file).parts) > 1
                else Path(file.locate())
            )
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source.resolve())
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def install(environment: Path, package: Path, **variables: str) -> str:
    """Installs with pip's build output shown, where the build says what it leaves out."""
    python = environment / "bin" / "python"
    options = ["--verbose", "--no-deps", "--no-build-isolation", "--force-reinstall", "--no-index"]
    return run(sys.executable, "-m", "pip", "--python", python, "install", *options, package, **variables)


def test_wheel_holds_every_package_and_no_source_of_the_native_modules(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    source = {
        f"jepa_kernels/{path.relative_to(ROOT / 'python/jepa_kernels')}"
        for path in (ROOT / "python/jepa_kernels").rglob("*.py")
    } | {
        f"jepa_kernels/kernels/{path.relative_to(ROOT / 'kernels/jepa_triton')}"
        for path in (ROOT / "kernels/jepa_triton").rglob("*.py")
    }
    assert source <= set(names), sorted(source - set(names))
    assert any(re.fullmatch(r"jepa_kernels/_cpu\..*\.so", name) for name in names)
    assert "jepa_kernels/py.typed" in names and "jepa_kernels/kernels/configs/sm_90.json" in names
    assert "jepa_kernels/train/configs/vjepa2_tiny.toml" in names
    assert not any(
        name.endswith((".cpp", ".cu", ".h")) or name.startswith(("kernels/", "tests/", "csrc/")) for name in names
    )


def test_wheel_works_in_an_environment_with_torch_alone(wheel, empty_environment):
    install(empty_environment, wheel)
    check = """
import jepa_kernels as jk, torch, sys
assert "triton" not in sys.modules
target = torch.zeros(3)
with jk.backend("cpu"):
    jk.ema_update_([target], [torch.ones(3)], 0.75)
assert target.tolist() == [0.25] * 3
try:
    with jk.backend("triton"):
        jk.ema_update_([target], [torch.ones(3)], 0.75)
except jk.BackendError as error:
    assert "triton is not installed" in str(error), error
else:
    raise SystemExit("a forced backend that is absent must raise")
for name in jk.__all__:
    getattr(jk, name)
print(jk.__file__)
"""
    assert str(empty_environment) in run(empty_environment / "bin" / "python", "-c", check, PATH="/nonexistent")


def test_import_adds_under_300_ms_to_torch(wheel, empty_environment):
    install(empty_environment, wheel)
    check = """
import time, torch
start = time.perf_counter()
import jepa_kernels
imported = time.perf_counter() - start
jepa_kernels.masked_attention, jepa_kernels.patch_embed, jepa_kernels.ema_update_
print(imported, time.perf_counter() - start)
"""
    measured = [run(empty_environment / "bin" / "python", "-c", check).split() for _ in range(3)]
    assert min(float(imported) for imported, _ in measured) < 0.3
    assert min(float(with_operators) for _, with_operators in measured) < 0.3


def test_installs_as_pure_python_without_a_compiler(empty_environment, tmp_path):
    tools = tmp_path / "bin"  # git and the like, no compiler
    tools.mkdir()
    message = install(empty_environment, ROOT, PATH=str(tools), CXX="")
    assert "no C++ compiler was found" in message
    check = """
import jepa_kernels as jk, torch
target = torch.zeros(3)
jk.ema_update_([target], [torch.ones(3)], 0.75)
assert target.tolist() == [0.25] * 3
print(jk.explain("ema_update", [target], [torch.ones(3)], 0.75).reasons["cpu"])
"""
    assert "was not built" in run(empty_environment / "bin" / "python", "-c", check)


def test_a_required_compiler_that_is_missing_stops_the_install(empty_environment, tmp_path):
    (tmp_path / "bin").mkdir()
    with pytest.raises(AssertionError, match="no C\\+\\+ compiler was found"):
        install(empty_environment, ROOT, PATH=str(tmp_path / "bin"), CXX="", JEPA_KERNELS_BUILD_CPU="on")


def test_an_editable_install_works_and_follows_the_sources(empty_environment, tmp_path):
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=unwanted)
    python = empty_environment / "bin" / "python"
    options = ["--no-deps", "--no-build-isolation", "--force-reinstall", "--no-index"]
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", *options, "--editable", tree),
        JEPA_KERNELS_BUILD_CPU="off",
    )
    with (tree / "python/jepa_kernels/__init__.py").open("a", encoding="utf-8") as file:
        file.write('\nADDED_AFTER_THE_INSTALL = "yes"\n')
    check = """
import importlib.util, jepa_kernels as jk, torch
target = torch.zeros(3)
jk.ema_update_([target], [torch.ones(3)], 0.75)
assert target.tolist() == [0.25] * 3
print(jk.ADDED_AFTER_THE_INSTALL, importlib.util.find_spec("jepa_kernels.kernels").origin)
"""
    assert run(python, "-c", check).split()[:2] == ["yes", str(tree / "kernels/jepa_triton/__init__.py")]


def test_sdist_holds_what_a_build_needs(tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    archive = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    tracked = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "kernels", "python", "tests")
        for path in (ROOT / folder).rglob("*.*")
    }
    expected = {name for name in tracked if name.endswith((".py", ".cpp", ".cu", ".h", ".json"))}
    assert expected | {"CMakeLists.txt", "LICENSE", "Makefile", "README.md", "constraints.txt"} <= names
