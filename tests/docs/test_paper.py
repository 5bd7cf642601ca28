"""docs/paper.md: every command on the page is understood, and every row of the tables is there."""

import shlex
from pathlib import Path

import click
import pytest

from overfeat_tf.cli.main import overfeat
from overfeat_tf.models.model import TASKS
from overfeat_tf.models.release_weights import released
from overfeat_tf.network.presets import get_preset
from overfeat_tf.options import InferenceOptions
from training.evaluation.evaluate import PROTOCOLS
from training.evaluation.ladders import rows, table_of
from training.recipes import get_recipe, override

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
LINES = [line.strip() for line in PAGE.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("overfeat ")]
MEMBERS = 7


def parsed(line: str) -> tuple[str, dict]:
    """Give a command's verb and its parameters, as click reads them, without running it."""
    _, verb, *arguments = shlex.split(line, comments=True)
    command = overfeat.get_command(click.Context(overfeat), verb)
    assert command is not None
    return verb, command.make_context(verb, arguments).params


def accepted(verb: str, given: dict) -> None:
    """Check what the parser leaves to the verbs: recipes, settings, protocols, scales."""
    if verb == "train":
        recipe = override(get_recipe(given["recipe"]), list(given["settings"]))
        assert set((given["stage"] or TASKS[0]).split(",")) <= set(TASKS)
        assert given["run"] != given["start"] and recipe.name == given["recipe"]
        return
    if verb == "import-weights":
        assert released(given["preset"]).name in str(given["run"])
        return
    preset = get_preset("fast" if "fast" in given["models"][0] else "accurate")
    table, _, key = given["protocol"].partition(":")
    if table_of(table) is None:
        assert set(given["protocol"].split(",")) <= set(PROTOCOLS)
    elif key:
        assert key in {row.key for row in rows(table, len(preset.scales), len(given["models"]))}
    InferenceOptions(scales=given["scales"]).scale_sizes(preset)
    assert len(given["models"]) in (1, MEMBERS) and len(set(given["models"])) == len(given["models"])


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line):
    accepted(*parsed(line))


@pytest.mark.parametrize(
    "line",
    [
        "overfeat evaluate runs/fast --data x --protocol table2:3-views",
        "overfeat evaluate runs/fast --data x --protocol tables",
        "overfeat evaluate runs/fast --data x --protocol table2 --scales 9",
        "overfeat train imagenet-fst --run x",
        "overfeat import-weights net_weight_0 --preset tiny --run runs/tiny",
        "overfeat train imagenet-fast --run x --set sed=2",
        "overfeat evaluate runs/fast --dtaa x",
    ],
)
def test_a_slip_would_be_noticed(line):
    with pytest.raises((AssertionError, ValueError, click.UsageError)):
        accepted(*parsed(line))


@pytest.mark.parametrize("table, members", [("table2", 1), ("table2", MEMBERS), ("fig9", 1)])
def test_each_row_that_the_paper_has_is_on_the_page_with_its_figure(table, members):
    for row in rows(table, 6, members):
        for published in filter(None, row.paper.split("; ")):
            figure = published.removeprefix("7 ").removeprefix("fast ").removeprefix("accurate ")
            named = "fast" if "fast" in published else "accurate" if table == "table2" else "scr"
            asked = f"--protocol {table}:{row.key}"
            ends = [line for line in COMMANDS if asked in line and line.endswith(f"# {figure}")]
            assert any(f"runs/{named}" in line and (f"{named}{MEMBERS} " in line) == (members > 1) for line in ends)


@pytest.mark.parametrize("run, figure", [("scr", "29.9"), ("pcr", "44.1"), ("det", "19.4"), ("det-context", "24.3")])
def test_what_is_in_no_table_is_on_the_page_with_its_figure(run, figure):
    asked = [line for line in COMMANDS if line.startswith(f"overfeat evaluate runs/{run} ")]
    assert any(figure in line.partition("#")[2] for line in asked)


def test_three_scales_have_no_figure_and_the_pages_own_scales_are_exact():
    (three,) = [line for line in COMMANDS if "fig9:3-scales" in line]
    assert "#" not in three
    chosen = [given for verb, given in map(parsed, COMMANDS) if verb == "evaluate" and given["scales"]]
    assert chosen and all(given["scale_fit"] == "exact" for given in chosen)


def test_the_runs_that_are_scored_are_trained_on_the_page():
    trained = {str(given["run"]) for verb, given in map(parsed, COMMANDS) if verb == "train"}
    scored = {name for verb, given in map(parsed, COMMANDS) if verb == "evaluate" for name in given["models"]}
    likewise = {f"runs/{name}{number}" for name in ("fast", "accurate") for number in range(2, MEMBERS + 1)}
    assert scored <= trained | likewise
