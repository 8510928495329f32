"""What stands at the top of the repository and must agree with the rest."""

import re
import tomllib
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
