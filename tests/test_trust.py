"""Nothing runs what a file says: no pickle, no eval, no remote code, no archive unpacked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import maskery

PACKAGE = Path(maskery.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What `torch.load` raises for a file that is not what it says.
HARMLESS_MEMBERS = {"UnpicklingError"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
# Methods that unpickle, by the name they are called by.
UNSAFE_METHODS = {
    "broadcast_object_list",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "extractall",
    "unpack_archive",
}


def called(node: ast.Call) -> tuple[str, str]:
    """The name that is called, and what stands before its dot."""
    if isinstance(node.func, ast.Name):
        return node.func.id, ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr, ast.unparse(node.func.value)
    return "", ""


def keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in node.keywords if k.arg == name), None)


def constant(value: ast.expr | None) -> object:
    return value.value if isinstance(value, ast.Constant) else value


def unsafe(tree: ast.AST) -> list[str]:
    """What in a module could run what a file says, each with its line."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
            names = {alias.name for alias in node.names} - HARMLESS_MEMBERS
            found += [f"line {node.lineno}: imports {name}" for name in names]
        if isinstance(node, ast.Import):
            # Renamed, its use could not be followed.
            renamed = [a.name for a in node.names if a.name in UNSAFE_MODULES and a.asname]
            found += [f"line {node.lineno}: renames {name}" for name in renamed]
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in UNSAFE_MODULES
            and node.attr not in HARMLESS_MEMBERS
        ):
            found.append(f"line {node.lineno}: uses {ast.unparse(node)}")
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {what}" for what in unsafe_call(node)]
    return found


def unsafe_call(node: ast.Call) -> list[str]:
    name, before = called(node)
    found = []
    if name in UNSAFE_CALLS and not before:
        found.append(f"calls {name}")
    if name in UNSAFE_METHODS:
        found.append(f"calls {name}")
    if name == "load" and before == "torch" and constant(keyword(node, "weights_only")) is not True:
        found.append("torch.load without weights_only=True")
    if before == "os" and name in ("system", "popen"):
        found.append(f"calls os.{name}")
    if constant(keyword(node, "allow_pickle")) not in (None, False):
        found.append("numpy.load with allow_pickle")
    if name in ("load", "load_all", "unsafe_load", "full_load") and before == "yaml":
        found.append(f"yaml.{name} instead of safe_load")
    trusting = constant(keyword(node, "trust_remote_code"))
    if trusting not in (None, False):
        found.append("trust_remote_code")
    if constant(keyword(node, "shell")) is True:
        found.append("a shell")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_module_runs_what_a_file_says(path: Path) -> None:
    assert unsafe(ast.parse(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(data)",
        "import pickle as harmless",
        "os.system(text)",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "tar.extractall(folder)",
        "torch.distributed.broadcast_object_list(objects)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_test_finds_what_it_looks_for(line: str) -> None:
    assert len(unsafe(ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "model.eval()",
        "json.load(stream)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "re.compile(text)",
        "np.load(path, allow_pickle=False)",
        "platform.system()",
        "pickle.UnpicklingError",
    ],
)
def test_what_is_harmless_passes(line: str) -> None:
    assert unsafe(ast.parse(line)) == []
