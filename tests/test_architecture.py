"""The layout, checked: who may import whom, one home per heavy library, mirrored tests."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lert_ds", "distill", "prune")
MODULES = sorted(path for top in PACKAGES for path in (ROOT / top).rglob("*.py"))

LEAVES = {
    f"lert_ds.{name}"
    for name in (
        "arithmetic", "config", "distributed", "errors", "files", "labels", "launchers", "machine",
        "objective", "op_builds", "redaction", "termination", "text_table",
    )
}  # fmt: skip
# What a later stage takes from lert_ds; a new public module is added here on purpose.
FOR_COMPRESSION = LEAVES | {
    f"lert_ds.{name}"
    for name in (
        "architecture", "cli", "configuration_lert", "corpora", "data", "edge", "evaluation",
        "finetune", "kernels", "model_dir",
        "model_source", "model_surgery", "modeling_lert", "tokenizer_files",
        "pretraining_objective", "run_folder", "run_lock", "train", "training",
        "training_data", "training_run",
        "vocabulary_view",
    )
}  # fmt: skip

# A module may import what its row names, and its own row's modules. The longest row wins.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "lert_ds.data": LEAVES,
    "lert_ds.corpus": LEAVES | {"lert_ds.data.shards", "lert_ds.__version__"},
    "lert_ds.train": LEAVES - {"lert_ds.labels"},  # it trains any Objective and knows no LERT
    "lert_ds.configuration_lert": set(),  # both travel inside model folders, where we are not
    "lert_ds.modeling_lert": {"lert_ds.configuration_lert"},
    "lert_ds.kernels": LEAVES,  # they know BERT's modules and the batch, no training
    "lert_ds": {"lert_ds"},
    "distill": FOR_COMPRESSION,
    "prune": FOR_COMPRESSION,
    # A recovery is a distillation whose student was pruned: the one bridge, and one way.
    "prune.recover": FOR_COMPRESSION | {"distill", "lert_ds.pretrain", "prune.run"},
}
_LTP = {"lert_ds.corpus.annotators.ltp_models"}
HOMES = {
    # The doctor asks DeepSpeed about a configuration, without an engine.
    "deepspeed": {"lert_ds.train.engine", "lert_ds.doctor.deepspeed_check"},
    "datatrove": {"lert_ds.corpus.build"},
    "ltp": _LTP,
    "ltp_core": _LTP,
    "ltp_extension": _LTP,
    "jieba": {"lert_ds.corpus.annotators.jieba_annotator"},
    "textbrewer": {"distill.textbrewer_losses"},
    "textpruner": {"prune.importance.textpruner_model"},
    "onnxruntime": {"lert_ds.edge.graph"},
    "openvino": {"prune.export.openvino_graph"},
    "nncf": {"prune.export.openvino_graph"},
    "tensorflow": {"lert_ds.convert.tensorflow_checkpoint"},
    "wandb": {"lert_ds.train.tracking"},
}
# transformers copies a model folder's files by their relative imports.
MAY_IMPORT_RELATIVELY = {"lert_ds.modeling_lert": {".configuration_lert"}}
# The table of commands names modules as strings, so that one loads only when it is called.
MAY_IMPORT_BY_STRING = {"lert_ds.cli"}
TRAVELLING_NEED = sys.stdlib_module_names | {"huggingface_hub", "torch", "transformers"}
LARGEST_FILE_BYTES = 500_000

# What runs code that stands in a file, or what a shell makes of a text: docs/security.md.
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"}
UNSAFE_ARGUMENTS = {"allow_pickle": False, "trust_remote_code": False, "shell": False}
"""Argument to the one value that it may have."""
MAY_BE_UNSAFE: dict[str, set[str]] = {
    # Between a process and its own children, through pipes that nobody else has.
    "prune.benchmark.turns": {"pickle"},
    "prune.benchmark.worker": {"pickle"},
    # The name of an error: weights are read by torch.load(…, weights_only=True).
    "lert_ds.model_weights": {"pickle"},
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of everything that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _unsafe(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, what) of everything in a module that could run code out of a file."""
    for line, target in _imports(path):
        if (top := target.split(".")[0]) in UNSAFE_MODULES:
            yield line, top
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE_CALLS:
            yield node.lineno, called
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            yield node.lineno, "torch.load"
        if re.match(r"Auto\w+\.from_", called) and "trust_remote_code" not in given:
            yield node.lineno, "trust_remote_code"  # None would ask at the terminal
        for name, value in UNSAFE_ARGUMENTS.items():
            if given.get(name, str(value)) != str(value):
                yield node.lineno, name


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _row(name: str) -> str:
    return max((row for row in MAY_IMPORT if _within(name, row)), key=len)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_follow_the_layers(path: Path) -> None:
    row = _row(_name(path))
    allowed = MAY_IMPORT[row] | {row}
    wrong = [
        f"line {line}: {target}"
        for line, target in _imports(path)
        if target.split(".")[0] in (*PACKAGES, "tests")
        and not any(_within(target, package) for package in allowed)
    ]
    assert not wrong, f"{row} may not import {', '.join(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_heavy_library_has_one_home(path: Path) -> None:
    wrong = [
        f"line {line}: {target} belongs to {' or '.join(sorted(home))}"
        for line, target in _imports(path)
        if (home := HOMES.get(target.split(".")[0])) is not None and _name(path) not in home
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_are_by_the_full_name(path: Path) -> None:
    allowed = MAY_IMPORT_RELATIVELY.get(_name(path), set())
    wrong = [
        f"line {line}: {target}"
        for line, target in _imports(path)
        if target.startswith(".") and not any(_within(target, name) for name in allowed)
    ]
    assert not wrong, f"import by the full name: {', '.join(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_command_table_imports_by_string(path: Path) -> None:
    if _name(path) not in MAY_IMPORT_BY_STRING:
        assert not re.search(r"\b(import_module|__import__)\(", path.read_text("utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_runs_code_out_of_a_file(path: Path) -> None:
    allowed = MAY_BE_UNSAFE.get(_name(path), set())
    wrong = [f"line {line}: {what}" for line, what in _unsafe(path) if what not in allowed]
    assert not wrong, f"see docs/security.md: {', '.join(wrong)}"


def test_what_is_unsafe_is_found(tmp_path: Path) -> None:
    unsafe = {
        "import pickle": "pickle",
        "from marshal import loads": "marshal",
        "eval(text)": "eval",
        "os.system(text)": "os.system",
        "torch.load(path)": "torch.load",
        "torch.load(path, weights_only=False)": "torch.load",
        "np.load(path, allow_pickle=True)": "allow_pickle",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)": "trust_remote_code",
        "AutoModel.from_pretrained(path)": "trust_remote_code",
        "subprocess.run(text, shell=True)": "shell",
    }
    safe = "model.eval()\ntorch.load(path, weights_only=True)\nf(trust_remote_code=False)\n"
    path = tmp_path / "module.py"
    for text, what in unsafe.items():
        path.write_text(f"{safe}{text}\n")
        assert list(_unsafe(path)) == [(4, what)], text


def test_every_exception_is_still_needed() -> None:
    for name, allowed in MAY_BE_UNSAFE.items():
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        assert {what for _, what in _unsafe(path)} == allowed, name


@pytest.mark.parametrize("name", ["configuration_lert", "modeling_lert"])
def test_what_travels_in_a_model_folder_needs_only_transformers(name: str) -> None:
    targets = [target for _, target in _imports(ROOT / "lert_ds" / f"{name}.py")]
    assert targets
    foreign = {target.split(".")[0] for target in targets if not target.startswith(".")}
    assert not foreign - TRAVELLING_NEED


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "__init__"], ids=_name)
def test_every_module_has_its_test_file(path: Path) -> None:
    place = path.relative_to(ROOT)
    wanted = Path("tests") / place.parent / f"test_{place.name.strip('_')}"
    if place.stem == "__main__":
        wanted = wanted.with_name("test_main.py")
    assert (ROOT / wanted).is_file(), f"{wanted} is missing"


def test_every_row_and_home_is_there() -> None:
    """A rule about a module that was renamed would hold nothing."""
    names = {_name(path) for path in MODULES}
    wanted = set(MAY_IMPORT) | FOR_COMPRESSION | set(MAY_IMPORT_RELATIVELY) | MAY_IMPORT_BY_STRING
    wanted |= {home for homes in HOMES.values() for home in homes}
    assert not wanted - names


def test_no_module_takes_the_name_of_a_library() -> None:
    # With its own folder first on the path, as in `python lert_ds/cli.py`, it would shadow it.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    demands = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [demand for some in demands for demand in some]
    ours = {re.split(r"[^\w-]", demand)[0].replace("-", "_") for demand in wanted}
    assert {"torch", "deepspeed", "textbrewer"} <= ours
    taken = sys.stdlib_module_names | ours | HOMES.keys() | {"datasets", "onnx", "evaluate"}
    assert not {_name(p) for p in MODULES if p.stem in taken and not p.stem.startswith("__")}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_under_test_are_those_of_this_checkout(package: str) -> None:
    # PyPI has a foreign "prune", and a second checkout may be installed.
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / package / "__init__.py"


def test_the_tests_are_no_package() -> None:
    # ltp_core installs a top-level package `tests` of its own.
    assert not list((ROOT / "tests").rglob("__init__.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / "tests").rglob("*.py")
        for line, target in _imports(path)
        if target.startswith((".", "tests."))
    ]
    assert not wrong


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert paths
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    assert not {str(path): size for path, size in sizes.items() if size > LARGEST_FILE_BYTES}
