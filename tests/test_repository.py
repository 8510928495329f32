"""What stands at the top of the repository and must agree with the rest."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_ci_runs_the_readme_test_command() -> None:
    command = "pip install -e '.[test]' && pytest"
    line = re.compile(rf"^\s*{re.escape(command)}\s*(#.*)?$", re.MULTILINE)
    assert line.search((ROOT / "README.md").read_text())
    assert f'\nbash -c "{command}"\n' in (ROOT / ".ci/run").read_text()


def test_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def sources() -> Iterator[Path]:
    """Every Python file of ours."""
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    for name in [*mypy["files"], "tests"]:
        yield from [ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py")


def test_files_and_functions_are_short() -> None:
    """Under 300 lines, and under 40 after the signature (CONTRIBUTING.md), the tests as well."""
    long = []
    for path in sources():
        text, name = path.read_text(), path.relative_to(ROOT)
        long += [f"{name}: {n} lines"] if (n := len(text.splitlines())) >= 300 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                long += [f"{name}: {node.name} has {lines} lines"] if lines >= 40 else []
    assert not long
