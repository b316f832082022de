"""The page of families says what the code decides."""

from server.startup.mlx_lm_source import find_architecture, mlx_lm_folder
from tests.models.table import PAGE, ROWS, on_page, table


def test_every_family_of_the_page_is_one_that_mlx_lm_has():
    for row in ROWS:
        assert find_architecture({"model_type": row.model_type}, mlx_lm_folder()), row


def test_the_page_has_the_table_as_the_script_makes_it():
    assert PAGE.read_text("utf-8") == on_page(table()), "python -m tests.models.table --write"
