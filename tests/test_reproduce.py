"""Every table of RESULTS.md still runs: a row of each kind, for next to no steps."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce  # noqa: E402


def missing_data(table: dict) -> str | None:
    """A folder that the table reads and that is not on this machine."""
    for settings in [table.get("common", {}), *table["rows"]]:
        for key, value in settings.items():
            # "fashion-mnist:DIR", "outliers:fraction=0.3,source=fashion-mnist:DIR", or DIR itself
            path = re.split("[:=]", value)[-1] if isinstance(value, str) else ""
            if key == "cache_dir":  # is made
                continue
            if re.match(r"(/|runs/)\S+$", path) and not (ROOT / path).exists():
                return path
    return None


@pytest.mark.parametrize("name", reproduce.tables())
def test_each_kind_of_row_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = reproduce.read_table(name)
    if table.get("command") == "finetune-latent":  # seconds a run; tests/latent runs all objectives
        monkeypatch.setattr(reproduce, "one_of_each_kind", lambda rows: rows[:1])
    if missing := missing_data(table):
        pytest.skip(f"{missing} is not here")
    assert reproduce.main([name, "--quick", "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / f"{name}.json").read_text())
    wanted = {row["name"] for row in reproduce.one_of_each_kind(table["rows"])}
    assert wanted <= {row["row"] for row in rows}
    assert "| training |" in reproduce.markdown(
        table, reproduce.finished(tmp_path / f"{name}.json")
    )


def test_rows_that_draw_from_another_name_one_that_is_there():
    for name in reproduce.tables():
        for row in reproduce.read_table(name)["rows"]:
            reproduce.Job(name, row, 0).base  # noqa: B018


def test_settings_of_the_tables_are_those_of_their_commands():
    assert set(reproduce.QUICK) == set(reproduce.MODULES)
    for name in reproduce.tables():
        assert (
            yaml.safe_load((ROOT / f"configs/tables/{name}.yaml").read_text()).get(
                "command", "train-pixel"
            )
            in reproduce.MODULES
        )


def test_results_have_every_row_of_the_tables():
    """On a clone a table trains nothing: each of its rows was measured."""
    bench = reproduce.Bench(ROOT / "results")
    for name in reproduce.tables():
        wanted = {(job.row["name"], job.seed) for job in reproduce.jobs_of(name)}
        assert wanted <= bench.current(name).keys(), name
