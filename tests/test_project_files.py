"""What outsiders rely on: one version, one pinned linter, workflows and links that exist."""

import re
import tomllib
from pathlib import Path

import yaml

from latent_robust import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_changelog_and_package_have_the_same_version():
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"] == __version__


def test_ruff_is_pinned_to_one_version():
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins = [one for one in PROJECT["project"]["optional-dependencies"]["dev"] if "ruff" in one]
    assert pins == [f"ruff=={hooks['rev'].removeprefix('v')}"]


def test_the_workflow_runs_what_a_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert oldest in job["strategy"]["matrix"]["python-version"]


def test_issue_forms_are_valid_yaml_with_a_name():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.name == "config.yml" or {"name", "description", "body"} <= form.keys()


def test_links_to_files_exist():
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"
