"""docs/results.md and finetune.md: tables are those of the results beside them, and commands are understood."""

import json
import shlex
from pathlib import Path

import pytest
from test_paper import parsed

from overfeat_tf.cli.benchmarks.ladder.choices import LADDERS
from overfeat_tf.cli.benchmarks.ladder.measure import as_markdown
from training.evaluation.evaluate import PROTOCOLS
from training.evaluation.ladders import table_of
from training.recipes import get_recipe, override

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text()
LINES = [line.strip() for line in (PAGE + (DOCS / "finetune.md").read_text()).replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("overfeat ")]
SECTIONS = {
    "digits": "## Digits\n",
    "tinyimagenet": "## Tiny ImageNet",
    "voc": "## Playing cards",
    "finetune": "## Raccoons on pretrained features",
    "finetune-nuclei": "## Nuclei on pretrained features",
}


def results(name: str) -> dict:
    return json.loads((DOCS / f"results-{name}.json").read_text())


@pytest.mark.parametrize("name", SECTIONS)
def test_the_tables_are_those_of_the_results(name):
    section = PAGE.partition(SECTIONS[name])[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith(("|", "**"))]
    assert shown == [line for line in as_markdown(results(name)).splitlines() if line]


@pytest.mark.parametrize("name", SECTIONS)
def test_the_results_are_of_the_ladder_as_it_is(name):
    found, ladder = results(name), LADDERS[name.partition("-")[0]]
    assert (
        found["ladder"] == name.partition("-")[0] and found["settings"] == [*ladder.settings] and found["limit"] is None
    )
    asked = {choice.name: [variant.name for variant in choice.variants] for choice in ladder.choices}
    for choice, variants in found["found"].items():
        assert [*variants] == [
            variant for variant in asked[choice] if variant in variants
        ]  # what is not answered yet is left out
        assert asked[choice][0] in variants


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line):
    verb, given = parsed(line)
    if verb == "train":
        assert override(get_recipe(given["recipe"]), list(given["settings"])).name == given["recipe"]
    elif verb == "evaluate":
        assert table_of(given["protocol"]) or {*(given["protocol"] or "detection").split(",")} <= {*PROTOCOLS}
    else:
        kind, name = shlex.split(line, comments=True)[2:4]
        assert verb == "benchmark" and (kind == "detectors" or (kind == "ladder" and name in LADDERS))
