"""docs/from-2013.md: its commands are understood, and its layers are the release's, counted here once more."""

import re
from pathlib import Path

import pytest
from test_paper import parsed

from overfeat_tf.network.convnet import build
from overfeat_tf.scan.features import layer_names

PAGE = (Path(__file__).parents[2] / "docs" / "from-2013.md").read_text()
COMMANDS = [line.strip().split("| ")[-1] for line in PAGE.splitlines() if re.match(r" {4}(overfeat|convert) ", line)]
# What the release does one after the other: convolutions with rectifier, pooling and zero padding, full layers.
OPERATIONS = {
    "fast": "conv1 relu1 pool1 conv2 relu2 pool2 pad conv3 relu3 pad conv4 relu4 pad conv5 relu5 pool5",
    "accurate": "conv1 relu1 pool1 conv2 relu2 pool2 pad conv3 relu3 pad conv4 relu4 pad conv5 relu5 pad conv6 relu6"
    " pool6",
}
FULL = {
    "fast": ["full6", "full6_relu", "full7", "full7_relu", "scores"],
    "accurate": ["full7", "full7_relu", "full8", "full8_relu", "scores"],
}


def test_the_commands_are_understood():
    assert len(COMMANDS) >= 6
    for line in COMMANDS:
        verb, _ = parsed(line)
        assert verb in ("import-weights", "predict", "features")


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_numbers_of_the_layers_are_the_releases(name):
    column = 1 + list(OPERATIONS).index(name)
    listed: dict[int, str] = {}
    for row in re.findall(r"^\| ([\d, ]+) \|(.*)\|(.*)\|$", PAGE, re.MULTILINE):
        names = re.findall(r"`([a-z]+\d\w*|scores)`", row[column])
        if names:
            listed |= dict(zip(map(int, row[0].split(", ")), names, strict=True))
    expected = ["pixels"]
    for operation in [*OPERATIONS[name].split(), *FULL[name]]:
        expected.append(expected[-1] if operation == "pad" else operation)
    assert {0: "pixels"} | listed == dict(enumerate(expected))
    assert set(expected[1:]) <= set(layer_names(build(name, 10, weights=False)))
