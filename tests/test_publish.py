"""Tables of a run find their place in RESULTS.md, and README's rows follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.publish import BLOCKS, PICTURES, main, placed, refreshed, shown
from splitvla_shared.errors import ConfigError

RESULTS = "# Results\n\n<!-- results: alternatives -->\n\nold\n\n<!-- /results -->\n\nwords\n"
ROOT = Path(__file__).resolve().parent.parent


def test_a_table_takes_the_place_of_the_old_one_and_leaves_the_words_around_it() -> None:
    text = placed(RESULTS, "alternatives", "### New\n\n| a |\n")
    assert text == RESULTS.replace("old", "### New\n\n| a |")
    assert placed(text, "alternatives", "### New\n\n| a |\n") == text


def test_a_table_without_a_place_goes_behind_the_one_before_it() -> None:
    text = placed(placed(RESULTS, "scale", "S"), "links", "L")
    assert [text.index(word) for word in ("old", "L\n", "S\n", "words")] == sorted(
        text.index(word) for word in ("old", "L\n", "S\n", "words")
    )


def test_a_table_that_has_nowhere_to_go_is_named_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="<!-- results: closed-loop -->"):
        placed(RESULTS, "closed-loop", "C")


def test_of_the_stages_only_the_usual_payload_is_shown() -> None:
    table = "### T\n\n| payload | stage |\n| --- | --- |\n| split, f32 | a |\n| split, bf16 | a |\n\nText."
    assert shown("stages", table).splitlines()[-4:] == [
        "| --- | --- |",
        "| split, bf16 | a |",
        "",
        "Text. The other rungs are in the run's folder.",
    ]
    assert shown("links", table) == table


def test_where_a_run_was_written_to_is_not_shown() -> None:
    assert shown("links", "Again: `python -m benchmarks.latency --out /home/me/run --full`") == (
        "Again: `python -m benchmarks.latency --full`"
    )


def test_readme_s_rows_follow_the_results_and_a_lost_one_is_named() -> None:
    readme = "x\n<!-- from RESULTS.md -->\n| a | b | c |\n| --- | --- | --- |\n| 1 | 2 | old |\n\ny\n"
    results = "| a | b | c |\n| --- | --- | --- |\n| 1 | 2 | new |\n"
    assert refreshed(readme, results) == readme.replace("old", "new")
    with pytest.raises(ConfigError, match="no row any more"):
        refreshed(readme, "| a | b | c |\n| --- | --- | --- |\n")


def test_a_run_is_published_and_a_folder_without_tables_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("benchmarks", "docs", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text("nothing marked\n")
    (tmp_path / "benchmarks" / "RESULTS.md").write_text(RESULTS)
    assert main([str(tmp_path / "run"), "--root", str(tmp_path)]) == 2
    assert "holds no table" in capsys.readouterr().err
    (tmp_path / "run" / "alternatives.md").write_text("fresh")
    (tmp_path / "run" / "alternatives.png").write_bytes(b"picture")
    assert main([str(tmp_path / "run"), "--root", str(tmp_path)]) == 0
    assert "fresh" in (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    assert (tmp_path / "docs" / "alternatives.png").read_bytes() == b"picture"


def test_every_table_of_a_run_has_a_place_in_the_results() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for row in BLOCKS:
        for name in row:
            placed(results, name, "table")
    assert set(PICTURES) - {"regions"} <= {name for row in BLOCKS for name in row}


def test_every_picture_of_a_run_is_shown_somewhere() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "benchmarks/RESULTS.md"))
    for name in PICTURES:
        assert f"docs/{name}.png)" in pages
