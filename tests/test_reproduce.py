"""The tables of docs/results run, and their pages and RESULTS.md show what results/ holds."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce  # noqa: E402
import results_io  # noqa: E402

SUMMARY = ROOT / "RESULTS.md"
PAGES = sorted(results_io.PAGES.glob("*.md"))
OTHER_TABLES = ["benchmark", "benchmark-run", "sd15"]  # of the scripts that measure time
OTHER_TABLES += [f"geometry-{toy}" for toy in ("plane", "plane-outliers", "mixture", "pca")]


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


@pytest.mark.parametrize("name", [*reproduce.tables(), *OTHER_TABLES])
def test_each_table_has_exactly_one_page(name):
    results_io.page_of(name)
    text = "".join(page.read_text() for page in PAGES)
    assert len(re.findall(rf"<!-- table {name}\s", text)) == 1
    assert text.count(f"<!-- end {name} -->") == 1


@pytest.mark.parametrize("name", reproduce.tables())
def test_a_page_shows_the_numbers_of_its_results(name):
    entries = reproduce.Bench(ROOT / "results").current(name)
    assert_shows(name, reproduce.markdown(reproduce.read_table(name), entries))


def test_pages_of_the_other_scripts_show_the_numbers_of_their_results():
    import audit_rates
    import benchmark
    import benchmark_run
    import geometry
    import measure_sd15

    renderers = {
        "audit-rates": audit_rates.markdown,
        "benchmark": benchmark.markdown,
        "benchmark-run": benchmark_run.markdown,
        "sd15": measure_sd15.markdown,
    }
    for name, markdown in renderers.items():
        assert_shows(name, markdown(json.loads((ROOT / f"results/{name}.json").read_text())))
    for toy in geometry.TOYS:
        assert_shows(f"geometry-{toy}", geometry.markdown(toy, ROOT / "results/geometry.json"))


def assert_shows(name: str, text: str) -> None:
    page = results_io.page_of(name)
    assert results_io.filled(page.read_text(), name, text) == page.read_text(), page.name


TABLE = """\
| training | seeds | FD |
|---|---|---|
| DDPM | 3 | 1.5 |
| robust, weight 3 | 1 | diverged |
| *truth* | 3 | - |

A note."""


def test_a_marker_chooses_rows_and_columns_and_folds_the_whole_table():
    choice = "columns: [FD]\nrows: [truth, 'robust, weight 3']"
    cut, note, details, *_ = results_io.excerpt(TABLE, choice).split("\n\n")
    assert cut.splitlines() == [
        "| training | FD |",
        "|---|---|",
        "| robust, weight 3 | diverged |",
        "| *truth* | - |",
    ]
    assert note == "A note."
    assert details.startswith('<details markdown="1">')
    assert TABLE.partition("\n\n")[0] in results_io.excerpt(TABLE, choice)
    assert results_io.excerpt(TABLE, "") == TABLE


@pytest.mark.parametrize("choice", ["columns: [FID]", "rows: [robust]"])
def test_a_marker_that_chooses_what_the_table_lacks_is_an_error(choice):
    with pytest.raises(ValueError, match=r"the table has no (columns FID|rows robust); it has "):
        results_io.excerpt(TABLE, choice)


def test_filling_a_page_changes_only_the_table_and_settles():
    page = "before\n<!-- table a -->\nold\n<!-- end a -->\n<!-- table ab -->\n<!-- end ab -->\n"
    once = results_io.filled(page, "a", TABLE)
    assert once == page.replace("old", TABLE)
    assert results_io.filled(once, "a", TABLE) == once


# ------------------------------------------------------------------ text


def words(text: str) -> list[str]:
    """Whatever has a letter or a digit; a link counts by its text only."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return [word for word in text.split() if re.search(r"\w", word)]


def sentences(text: str) -> list[str]:
    """Of paragraphs, list items and table cells, without markers and commands."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).replace("**", "")
    lines = [line for line in text.splitlines() if not line.startswith(("    ", "#", "<"))]
    cells = [cell for line in lines for cell in line.split("|")]
    return [part for cell in cells for part in re.split(r"(?<=[.!?])\s", cell.strip())]


def test_the_summary_is_short():
    assert len(words(SUMMARY.read_text())) <= 1500


@pytest.mark.parametrize("page", [SUMMARY, *PAGES], ids=lambda page: page.stem)
def test_sentences_are_short(page):
    long = [text for text in sentences(page.read_text()) if len(words(text)) > 35]
    assert not long


@pytest.mark.parametrize("page", [SUMMARY, *PAGES], ids=lambda page: page.stem)
def test_links_resolve(page):
    """Relative links and images, and the headings that they name."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def test_every_image_is_shown():
    text = "".join(page.read_text() for page in [SUMMARY, *PAGES])
    unused = [image.name for image in results_io.IMAGES.iterdir() if image.name not in text]
    assert not unused
