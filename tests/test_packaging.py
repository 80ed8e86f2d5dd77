# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What is handed out: the wheel in a clean environment, the versions it promises, the reference and the citation."""

import ast
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import HeaderParser
from graphlib import TopologicalSorter
from pathlib import Path

import pdoc
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from variants import tiny_model

import modeling_aoarm


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The files of the package's modules, by name.
PACKAGE_MODULES = {
    ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts): ROOT / path
    for path in (each.relative_to(ROOT) for each in (ROOT / "modeling_aoarm").rglob("*.py"))
}
# What lies about in a working copy, and in no clone.
LITTER = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__", "figures")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import modeling_aoarm

print(modeling_aoarm.__file__)
for module in pkgutil.walk_packages(modeling_aoarm.__path__, "modeling_aoarm."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""
# Only the package's own imports: other libraries choose theirs by the system.
REFUSE_UNIX = """
import builtins

UNIX = "crypt curses fcntl grp nis ossaudiodev posix pty pwd resource spwd syslog termios tty".split()


found = builtins.__import__


def refuse_unix(name, globals=None, *args, **kwargs):
    if name.split(".")[0] in UNIX and (globals or {}).get("__name__", "").startswith("modeling_aoarm"):
        raise ModuleNotFoundError(f"{globals['__name__']} imports {name}")
    return found(name, globals, *args, **kwargs)


builtins.__import__ = refuse_unix
"""
# An untrained model where the README has a converted one, then the README's Python blocks, then a model card.
USE = """
import re, sys
from pathlib import Path
from modeling_aoarm import AOARMConfig, AOARMForCausalLM
from modeling_aoarm.model_card import make_model_card
from modeling_aoarm.data.tokenizers import character_tokenizer

readme = Path(sys.argv[1]).read_text(encoding="utf-8")
tokenizer = character_tokenizer([readme])
special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
config = AOARMConfig(vocab_size=len(tokenizer), **sizes, **special)
for saved in (AOARMForCausalLM(config), tokenizer):
    saved.save_pretrained("outputs/smollm2")
exec("\\n".join(re.findall(r"```python\\n(.*?)```", readme, flags=re.DOTALL)))
print(make_model_card(config, {}, model_id="outputs/smollm2").data.library_name)
"""


def run(*command, **kwargs):
    """Runs a command that must succeed; returns what it printed."""
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution, which is built from a copy of the repository; no network."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "source", ignore=LITTER)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """Python in an environment with the wheel and this environment's other packages, without the repository."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    # An editable installation hangs on a .pth file of its own, and those are not read in folders that a .pth file adds.
    (clean_packages,) = folder.glob("lib/python*/site-packages")
    (clean_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE_MODULES.values()}
    cards = {f"modeling_aoarm/model_cards/{path.name}" for path in (ROOT / "model_cards").iterdir() if path.is_file()}
    assert len(modules) > 25 and len(cards) == 3
    assert {name for name in names if ".dist-info/" not in name} == modules | cards
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if re.search("examples|tests|study|benchmark", name)]


def test_the_wheels_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(archive.read(path).decode())
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set("train eval peft gguf lm-eval space test dev".split())
    required = [Requirement(each) for each in metadata.get_all("Requires-Dist")]
    assert {each.name for each in required if each.marker is None} == {"jinja2", "numpy", "torch", "transformers"}
    # The page of the package index is the README.
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_module_is_imported_from_the_wheel_and_needs_no_module_of_unix(clean_python, tmp_path):
    file, *names = run(clean_python, "-I", "-c", REFUSE_UNIX + IMPORT_EVERYTHING, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(clean_python.parents[1])
    expected = PACKAGE_MODULES.keys() - {"modeling_aoarm", "modeling_aoarm.__main__"}
    assert set(names) == expected | {"modeling_aoarm.model_cards"}


def test_the_readme_runs_from_the_wheel(clean_python, tmp_path):
    lines = run(clean_python, "-I", "-c", USE, ROOT / "README.md", cwd=tmp_path).splitlines()
    assert lines[0].startswith("The capital of ") and "<blank" not in lines[0]
    assert lines[-1] == "transformers"
    command = (clean_python, "-I", "-m", "modeling_aoarm", "infill", "outputs/smollm2", "a <blank:2> b")
    filled = run(*command, cwd=tmp_path).strip()
    assert filled.startswith("a ") and filled.endswith(" b") and "<blank" not in filled


# The layout: what travels, and who may import whom


def imports_of(name):
    """What a module imports anywhere in its code: names of modules of the package, and of other top-level packages."""
    path, imported = PACKAGE_MODULES[name], set()
    package = name.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            members = {f"{source}.{alias.name}" for alias in node.names}
            imported |= (members & PACKAGE_MODULES.keys()) or {source}
    return imported


@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_exactly_the_flat_modules_that_end_in_aoarm_travel_with_a_model(variant, tmp_path):
    tiny_model(variant).save_pretrained(tmp_path)
    flat = {path.name for path in (ROOT / "modeling_aoarm").glob("*_aoarm.py")}
    assert {path.name for path in tmp_path.glob("*.py")} == flat
    assert not [path for path in (ROOT / "modeling_aoarm").glob("*/**/*_aoarm.py")]
    for name in flat:
        own = {each for each in imports_of(f"modeling_aoarm.{name[:-3]}") if each.startswith("modeling_aoarm")}
        assert {f"{each.split('.')[-1]}.py" for each in own} <= flat, f"{name} needs what does not travel"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports_of(name) & PACKAGE_MODULES.keys() - {name} for name in PACKAGE_MODULES}
    TopologicalSorter(graph).prepare()


def test_the_package_imports_itself_its_requirements_and_the_standard_library_alone():
    """Nothing of `examples`, whose scripts, benchmarks and study use the package."""
    required = {each.name.lower().replace("-", "_") for each in requirements(*PROJECT["optional-dependencies"])}
    # What the requirements require.
    required |= {"filelock", "huggingface_hub", "pyarrow", "safetensors", "tokenizers", "tqdm", "yaml"}
    for name in PACKAGE_MODULES:
        roots = {each.split(".")[0] for each in imports_of(name)}
        assert roots <= required | {"modeling_aoarm"} | sys.stdlib_module_names, name


def requirements(*extras):
    """The package's requirements, with those of extras."""
    groups = (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras))
    return [each for each in map(Requirement, sum(groups, [])) if each.name != PROJECT["name"]]


def pins(file):
    """Names and versions in a file of constraints."""
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-newest.txt"])
def test_the_tested_versions_are_in_the_promised_ranges(file):
    tested = pins(file)
    assert all(tested[name] >= version for name, version in pins("constraints.txt").items())
    for each in requirements(*PROJECT["optional-dependencies"]):
        assert tested[each.name.lower().replace("_", "-")] in each.specifier


def test_the_oldest_tested_versions_are_the_lower_bounds():
    tested = pins("constraints-oldest.txt")
    for each in requirements("train", "eval", "peft", "gguf", "lm-eval", "space", "test"):
        (bound,) = (Version(part.version) for part in each.specifier if part.operator == ">=")
        assert tested[each.name.lower().replace("_", "-")] == bound, each.name


def public_modules():
    """The package's modules, by name, except its entry point."""
    names = (each.name for each in pkgutil.walk_packages(modeling_aoarm.__path__, "modeling_aoarm."))
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def test_every_public_name_has_a_docstring():
    names = {(modeling_aoarm, name) for name in modeling_aoarm.__all__}
    for module in public_modules():
        assert module.__doc__, module.__name__
        defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        public = getattr(module, "__all__", [name for name in defined if not name.startswith("_")])
        names.update((module, name) for name in public)
    assert len(names) > 80
    for module, name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            # Not one that a base class or `dataclass` wrote.
            own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
            assert own and not own.startswith(f"{name}("), name


def test_the_reference_has_every_public_name(tmp_path):
    """`make docs` names every module, and pdoc builds a page of them."""
    plan = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True)
    (command,) = (line for line in plan.stdout.splitlines() if "pdoc" in line)
    files = {each.__name__ for each in public_modules() if not each.__file__.endswith("__init__.py")}
    assert files <= set(command.split())
    pdoc.render.configure(docformat="google", show_source=False, search=False)
    pdoc.pdoc("modeling_aoarm", output_directory=tmp_path)
    page = (tmp_path / "modeling_aoarm.html").read_text(encoding="utf-8")
    assert [name for name in modeling_aoarm.__all__ if f'id="{name}"' not in page] == []


def test_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    for reference in citation["references"]:
        assert reference["type"] and reference["title"] and reference["authors"]
    # The papers that the README's variants and ways of decoding come from.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cited = {reference["url"].removeprefix("https://arxiv.org/abs/") for reference in citation["references"]}
    assert cited >= set(re.findall(r"\b\d{4}\.\d{5}\b", readme))


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(PROJECT['version'])})\]", changelog, flags=re.MULTILINE)
