#!/usr/bin/env python
"""Mutation testing: put one fault at a time into a copy of the code, and see whether a test fails.

    python scripts/mutants.py                  # run those without a result: results/mutants.json
    python scripts/mutants.py --minutes 25     # stop after 25 CPU minutes; the next call goes on
    python scripts/mutants.py --only loop.py   # mutants whose file or text contains this
    python scripts/mutants.py --again          # run survivors once more, after tests were added
    python scripts/mutants.py --list           # print the mutants, run nothing
    python scripts/mutants.py --table          # write the results into docs/mutants.md, run nothing

A mutant is the package with one line changed: an operator, a constant, a branch, a call. It is
killed if a test fails, and survives if all tests pass. A survivor is a fault that the tests miss,
unless the change has no effect (it is equivalent).

Two kinds of mutants: those of scripts/mutants.yaml, written by hand, and a sample of all changes
that `Finder` finds in the syntax tree. The sample depends on --seed and on the code that is
changed, so other edits leave most of it as it is.

The working tree is never changed. Each mutant runs in a fork of this process, which has imported
torch and the other libraries already, so that no mutant pays for that. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from math import ceil
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "mutants.json"
PAGE = ROOT / "docs" / "mutants.md"
BY_HAND = Path(__file__).with_suffix(".yaml")
COPIED = ("latent_robust", "pixel", "tests", "configs", "pyproject.toml")

# How many mutants of each package are sampled.
SAMPLED = {"core": 30, "training": 30, "data": 14, "audit": 10, "latent": 16}

# Loaded before the forks. Nothing of this project, which each fork imports from the copy.
PRELOADED = (
    "torch", "torch.distributed", "torchvision.transforms.v2", "diffusers",
    "diffusers.optimization", "diffusers.training_utils", "accelerate", "transformers", "peft",
    "datasets", "scipy.integrate", "scipy.stats", "sklearn.datasets", "sklearn.metrics",
    "pydantic", "yaml", "PIL.Image", "safetensors.torch", "tqdm.auto", "pytest",
    "torch._dynamo", "torch.utils.tensorboard",
)  # fmt: skip
PRELOADED_CLASSES = {
    "diffusers": "DDPMScheduler FlowMatchEulerDiscreteScheduler EulerDiscreteScheduler "
    "StableDiffusionPipeline StableDiffusionXLPipeline StableDiffusion3Pipeline FluxPipeline "
    "UNet2DModel UNet2DConditionModel AutoencoderKL DDIMScheduler PNDMScheduler",
    "transformers": "CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer T5EncoderModel "
    "T5Tokenizer",
}

# Which tests concern a file: the first match counts. Each group of pytest's arguments is one run;
# the next one follows only if it passes.
IN_ONE_PROCESS = ("tests/training/test_loop.py", "-k", "not signal and not killed and not ranks")
IN_TWO_PROCESSES = ("tests/training/test_loop.py", "-k", "ranks")
CORE = [("tests/core",)]
OWN = ("tests/core/test_{name}.py",)
FINETUNE = [("tests/latent/test_finetune.py", "-k", "first_step or other_data or recommends")]
LORA = "new_adapters or only_the_adapters or which_layers or kohya_layers or seed or from_a_file"
TESTS: list[tuple[str, list[tuple[str, ...]]]] = [
    (r"core/(rows|batch|seeds|registry|factory)", [*CORE, IN_ONE_PROCESS]),
    (r"core/radius", [("tests/core/test_perturbation.py",), *CORE]),
    (r"core/(peers|process|forecast|parameterization|perturbation)", [OWN, *CORE]),
    (r"core/", CORE),
    (r"training/batches", [("tests/training/test_batches.py",), IN_ONE_PROCESS]),
    (r"training/checkpoint", [("tests/training/test_checkpoint.py",), IN_ONE_PROCESS]),
    (r"training/loop", [IN_ONE_PROCESS, IN_TWO_PROCESSES]),
    (
        r"training/options",
        [("tests/training/test_options.py", "tests/commands/test_help.py"), IN_ONE_PROCESS],
    ),
    (
        r"training/(config|directory|plan|continuation|objectives)",
        [("tests/training/test_options.py",), IN_ONE_PROCESS],
    ),
    (r"training/(nonfinite|state|resume|log|optimizer)", [IN_ONE_PROCESS]),
    (r"audit/spectrum", [("tests/audit/test_spectrum.py",)]),
    (
        r"audit/(dataset|pictures/)",
        [("tests/audit/test_pictures.py",), ("tests/audit/test_dataset.py",)],
    ),
    (r"audit/captions", [("tests/audit/test_captions.py",)]),
    (
        r"audit/(judge|trusted|hidden)",
        [("tests/audit/test_judge.py", "tests/audit/test_hidden.py")],
    ),
    (r"audit/", [("tests/audit/test_levels.py", "tests/audit/test_scoring.py")]),
    (r"data/buckets", [("tests/data/test_buckets.py", "tests/data/test_pairs.py")]),
    (r"data/(decode|images|scan)", [("tests/data/test_decode.py", "tests/data/test_sources.py")]),
    (r"data/contamination/(pair|kinds/caption)", [("tests/data/test_contaminated_pairs.py",)]),
    (
        r"data/contamination/",
        [("tests/data/test_contamination.py", "tests/data/test_contaminated_pairs.py")],
    ),
    (
        r"data/(pairs|sources/pair)",
        [("tests/data/test_pairs.py", "tests/data/test_pair_shards.py")],
    ),
    (r"data/sources/scene", [("tests/data/test_scenes.py",)]),
    (r"data/", [("tests/data/test_sources.py",)]),
    (r"latent/task", [("tests/latent/test_task.py",)]),
    (r"latent/cache/", [("tests/latent/test_cache.py",)]),
    (r"latent/lora/(adapters|kohya)", [("tests/latent/test_lora.py", "-k", LORA)]),
    (r"latent/validation_loss", [("tests/latent/test_validation.py",)]),
    (r"latent/scene_match", [("tests/latent/test_scene_match.py",)]),
    (r"latent/base/families", [("tests/latent/test_families.py",)]),
    (r"latent/(data|preparation|session)", FINETUNE),
]
# Sampled mutants of these would need the slow tests of whole runs.
NOT_SAMPLED = r"latent/(data|preparation|session)"


@dataclass(frozen=True)
class Mutant:
    """before, after: the changed text; line: its number; function: dotted; kind: of change."""

    file: str
    line: int
    function: str
    kind: str
    before: str
    after: str
    source: str  # of the whole changed file

    @property
    def key(self) -> str:
        """Does not depend on the line's number, nor on the rest of the file."""
        parts = (self.file, self.function, self.before, self.after)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} [{self.kind}] {self.before}  =>  {self.after}"


# ------------------------------------------------------------------ which mutants there are

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
}  # fmt: skip
# x.f(...) becomes x.
UNWRAPPED = {
    "detach", "clamp", "clamp_min", "clamp_max", "square", "sqrt", "abs", "log", "exp", "sign",
    "float", "clone", "flatten", "eval", "sort", "flip", "cumsum", "requires_grad_", "resolve",
}  # fmt: skip
OTHER_FUNCTION = {
    "min": "max", "max": "min", "floor": "ceil", "ceil": "floor", "any": "all", "all": "any",
    "amax": "amin", "amin": "amax", "mean": "sum", "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip
DROPPED_KEYWORDS = {
    "generator", "seed", "start", "rank", "ranks", "correction", "attacked", "levels",
    "step_index", "limit", "keepdim", "regularize", "steps",
}  # fmt: skip
# Exchanged arguments of these fail at once.
ORDERED = {"isinstance", "getattr", "setattr", "map"}
# Calls whose arguments are text for people.
SPOKEN = {
    "print", "say", "setting", "warning", "info", "Field", "field", "namedtuple", "TypeVar",
    "tqdm", "join", "write_text",
}  # fmt: skip


class Finder(ast.NodeVisitor):
    """Every change of one file, as (node, new text, kind, function)."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, str, str, str]] = []
        self.names: list[str] = []

    def add(self, node: ast.AST, new: str, kind: str) -> None:
        self.found.append((node, new, kind, ".".join(self.names)))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.names.append(node.name)
        for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(child)
        self.names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.append(node.name)
        for child in node.body:
            self.visit(child)
        self.names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages are not mutated, nor are the texts below."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_MatchValue(self, node: ast.MatchValue) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        if test == "TYPE_CHECKING":
            return
        if not isinstance(node.test, ast.Compare | ast.UnaryOp):  # these have mutants of their own
            self.add(node.test, f"not ({test})", "branch")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        body, test, other = map(ast.unparse, (node.body, node.test, node.orelse))
        self.add(node, f"({other} if {test} else {body})", "branch")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            operator = COMPARISONS[type(node.ops[0])]()
            self.add(
                node, self.new(ast.Compare(node.left, [operator], node.comparators)), "compare"
            )
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = ARITHMETIC.get(type(node.op))
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        text = any(
            isinstance(side, texts)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if other and not text:
            kind = "arithmetic"
            self.add(node, self.new(ast.BinOp(node.left, other(), node.right)), kind)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.add(node, self.new(ast.BoolOp(other, node.values)), "boolean")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add(node, self.new(node.operand), "not")
        elif isinstance(node.op, ast.USub | ast.Invert):
            self.add(node, self.new(node.operand), "sign")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool(value):
                self.add(node, str(not value), "constant")
            case int(value):
                self.add(node, str(value + 1), "constant")
            case float(value):
                self.add(node, repr(2 * value if value else 1.0), "constant")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) not in SPOKEN:
            self.add(node, "pass", "call removed")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name in SPOKEN:
            return
        if isinstance(node.func, ast.Attribute) and name in UNWRAPPED:
            self.add(node, self.new(node.func.value), "call removed")
        if name in OTHER_FUNCTION:
            start = ast.unparse(node.func)[: -len(name)]
            self.add(node.func, start + OTHER_FUNCTION[name], "other function")
        first = node.args[:2] if name not in ORDERED else []
        if len(first) == 2 and all(isinstance(x, ast.Name | ast.Attribute) for x in first):
            swapped = ast.Call(node.func, [first[1], first[0], *node.args[2:]], node.keywords)
            self.add(node, ast.unparse(swapped), "arguments swapped")
        for keyword in node.keywords:
            if keyword.arg in DROPPED_KEYWORDS:
                kept = [k for k in node.keywords if k is not keyword]
                kind = "argument dropped"
                self.add(node, ast.unparse(ast.Call(node.func, node.args, kept)), kind)
        self.generic_visit(node)

    @staticmethod
    def new(node: ast.expr) -> str:
        return f"({ast.unparse(node)})"


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def all_mutants(file: str) -> Iterator[Mutant]:
    """file: from ROOT. Equal changes of equal texts in one function count once."""
    source = (ROOT / file).read_bytes()
    starts = [0]  # ast counts columns in bytes
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    finder = Finder()
    finder.visit(ast.parse(source))
    for node, new, kind, function in finder.found:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        begin, stop = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", end)
        before = _one_line(source[begin:stop])
        after = _one_line(source[begin:start] + new.encode() + source[end:stop])
        mutated = (source[:start] + new.encode() + source[end:]).decode()
        yield Mutant(file, node.lineno, function, kind, before, after, mutated)


def _one_line(text: bytes) -> str:
    return re.sub(r"\s+", " ", text.decode()).strip()


def sampled(package: str, count: int, seed: int) -> list[Mutant]:
    """As many of each kind, as far as there are."""
    folder = ROOT / "latent_robust" / package
    files = (str(path.relative_to(ROOT)) for path in sorted(folder.rglob("*.py")))
    kinds: dict[str, dict[str, Mutant]] = defaultdict(dict)
    fast = [file for file in files if tests_of(file) and not re.search(NOT_SAMPLED, file)]
    for mutant in chain.from_iterable(map(all_mutants, fast)):
        kinds[mutant.kind][mutant.key] = mutant

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.key}".encode()).hexdigest()

    queues = [sorted(kinds[kind].values(), key=rank) for kind in sorted(kinds)]
    dealt = [mutant for turn in zip_longest(*queues) for mutant in turn if mutant]
    return dealt[:count]


def by_hand() -> list[Mutant]:
    """Of scripts/mutants.yaml. SystemExit if one no longer applies."""
    mutants = []
    for row in yaml.safe_load(BY_HAND.read_text())["mutants"]:
        source = (ROOT / row["file"]).read_text()
        if source.count(row["before"]) != 1:
            raise SystemExit(
                f"{BY_HAND.name}: {row['before']!r} occurs {source.count(row['before'])} times in "
                f"{row['file']}, not once; adapt it to the code"
            )
        line = source[: source.index(row["before"])].count("\n") + 1
        mutated = source.replace(row["before"], row["after"])
        before, after = _one_line(row["before"].encode()), _one_line(row["after"].encode())
        mutants.append(Mutant(row["file"], line, "", row["what"], before, after, mutated))
    return mutants


def tests_of(file: str) -> list[tuple[str, ...]]:
    groups = next((groups for pattern, groups in TESTS if re.search(pattern, file)), [])
    return [tuple(word.format(name=Path(file).stem) for word in group) for group in groups]


# ------------------------------------------------------------------ running them


def preload() -> None:
    os.environ.update(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        PYTHONDONTWRITEBYTECODE="1",  # two versions of a file may have the same size and time
    )
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name, classes in PRELOADED_CLASSES.items():
        for part in classes.split():
            with contextlib.suppress(ImportError, AttributeError):
                getattr(importlib.import_module(name), part)
    importlib.import_module("torch").set_num_threads(1)


def copy_of_the_project(folder: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)


@dataclass(frozen=True)
class Limit:
    """Seconds of a run of tests. Another busy program makes the wall clock's longer."""

    cpu: float = 600
    wall: float = 3000


def pytest_in_a_fork(copy: Path, arguments: Sequence[str], limit: Limit) -> tuple[str, float]:
    """=>  "passed", "failed" or "timeout"; CPU seconds. What it says is in copy/output."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(copy)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = ceil(used.ru_utime + used.ru_stime + limit.cpu)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["PYTHONPATH"] = str(copy)  # of processes that a test starts
        sys.path.insert(0, str(copy))
        code = 3
        with contextlib.suppress(BaseException):
            import pytest

            common = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
            code = int(pytest.main([*common, *arguments]))
            import latent_robust

            if not str(latent_robust.__file__).startswith(str(copy)):
                code = 5
        sys.stdout.flush()
        os._exit(code)
    done, end = 0, time.monotonic() + limit.wall
    try:
        while not done and time.monotonic() < end:
            time.sleep(0.05)
            done, status, usage = os.wait4(pid, os.WNOHANG)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # also processes that it started
    if not done:
        _, _, usage = os.wait4(pid, 0)
        return "timeout", usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return "timeout", usage.ru_utime + usage.ru_stime
    if code in (4, 5):
        raise SystemExit(f"pytest ran nothing:\n{(copy / 'output').read_text()}")
    return "failed" if code else "passed", usage.ru_utime + usage.ru_stime


class Runner:
    """Runs tests on the copy, mutated or not."""

    def __init__(self, copy: Path):
        self.copy = copy
        self.limits: dict[tuple[str, ...], Limit] = {}

    def limit(self, group: tuple[str, ...]) -> Limit:
        """Several times what a group of tests takes without a fault."""
        if group not in self.limits:
            started = time.monotonic()
            outcome, seconds = pytest_in_a_fork(self.copy, group, Limit())
            if outcome != "passed":
                output = (self.copy / "output").read_text()
                raise SystemExit(f"{' '.join(group)} fails without a fault:\n{output[-3000:]}")
            wall = time.monotonic() - started
            self.limits[group] = Limit(20 + 4 * seconds, 60 + 8 * wall)
            print(f"without a fault: {' '.join(group)} passes, {seconds:.0f} s", flush=True)
        return self.limits[group]

    def run(self, mutant: Mutant) -> dict:
        """=>  its row of the results."""
        file, seconds = self.copy / mutant.file, 0.0
        limits = [(group, self.limit(group)) for group in tests_of(mutant.file)]
        outcome, killer = "survived", None
        original = file.read_bytes()
        file.write_text(mutant.source)
        try:
            for group, limit in limits:
                found, cost = pytest_in_a_fork(self.copy, group, limit)
                seconds += cost
                if found != "passed":
                    outcome, killer = "killed", group[0]
                    output = (self.copy / "output").read_text(errors="replace")
                    test = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
                    if found == "timeout":
                        killer = f"{group[0]} (timeout)"
                    elif test:
                        killer = test[1]
                    break
        finally:
            file.write_bytes(original)
        row = {key: value for key, value in asdict(mutant).items() if key != "source"}
        found = {"outcome": outcome, "by": killer, "seconds": round(seconds, 1)}
        return {"key": mutant.key, **row, **found}


# ------------------------------------------------------------------ what came out


def load_results() -> dict[str, dict]:
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return {row["key"]: row for row in rows}


def save_results(rows: dict[str, dict], mutants: Sequence[Mutant]) -> None:
    """Of the present mutants, in their order."""
    kept = [rows[mutant.key] for mutant in mutants if mutant.key in rows]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def package_of(file: str) -> str:
    return file.split("/")[1]


def table() -> str:
    """Markdown: the rate of each package, and the survivors."""
    rows, equivalent = (
        list(load_results().values()),
        yaml.safe_load(BY_HAND.read_text())["equivalent"],
    )
    lines = [
        "| package | mutants | killed | equivalent | survived | kill rate |",
        "|---|---|---|---|---|---|",
    ]

    def line(name: str, rows: Sequence[dict]) -> str:
        killed = sum(row["outcome"] == "killed" for row in rows)
        same = sum(row["key"] in equivalent for row in rows if row["outcome"] == "survived")
        rate = f"{100 * killed / max(1, len(rows) - same):.0f} %"
        missed = len(rows) - killed - same
        return f"| {name} | {len(rows)} | {killed} | {same} | {missed} | {rate} |"

    packages = sorted({package_of(row["file"]) for row in rows})
    for package in packages:
        lines.append(line(f"`{package}`", [r for r in rows if package_of(r["file"]) == package]))
    lines += [line("all", rows), ""]
    lines.append("The kill rate leaves out equivalent mutants. Survivors:\n")
    lines += ["| file | line without and with the fault | verdict |", "|---|---|---|"]
    for row in rows:
        if row["outcome"] == "survived":
            verdict = equivalent.get(row["key"])
            verdict = f"equivalent: {verdict}" if verdict else "gap"
            change = f"`{_cell(row['before'])}`<br>`{_cell(row['after'])}`"
            lines.append(
                f"| `{row['file'].removeprefix('latent_robust/')}` | {change} | {verdict} |"
            )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_page() -> None:
    start, end = "<!-- mutants -->", "<!-- end mutants -->"
    before, rest = PAGE.read_text().split(start)
    PAGE.write_text(f"{before}{start}\n{table()}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--minutes", type=float, help="stop after this much CPU time")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the file or the change")
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--table", action="store_true", help="write docs/mutants.md and stop")
    args = parser.parse_args()
    if args.table:
        write_page()
        return
    samples = (sampled(package, count, args.seed) for package, count in SAMPLED.items())
    mutants = [*by_hand(), *chain.from_iterable(samples)]
    chosen = [mutant for mutant in mutants if args.only in str(mutant)]
    rows = load_results()
    if args.list:
        for mutant in chosen:
            print(f"{rows.get(mutant.key, {}).get('outcome', 'not run'):9} {mutant.key} {mutant}")
        return

    def is_due(mutant: Mutant) -> bool:
        row = rows.get(mutant.key)
        return row is None or (args.again and row["outcome"] == "survived")

    due, spent = [mutant for mutant in chosen if is_due(mutant)], 0.0
    preload()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the fork as well
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_project(Path(folder))
        runner = Runner(Path(folder))
        for number, mutant in enumerate(due, 1):
            if args.minutes and spent > 60 * args.minutes:
                print(f"{args.minutes:g} minutes are over; {len(due) - number + 1} mutants remain")
                break
            row = rows[mutant.key] = runner.run(mutant)
            spent += row["seconds"]
            save_results(rows, mutants)
            print(f"{number}/{len(due)} {row['outcome']}, {row['seconds']} s: {mutant}", flush=True)
    found = [rows[mutant.key]["outcome"] for mutant in mutants if mutant.key in rows]
    print(f"{found.count('killed')} of {len(found)} mutants killed")


if __name__ == "__main__":
    main()
