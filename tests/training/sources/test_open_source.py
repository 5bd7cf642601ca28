"""What the command line's SOURCE opens, and what it says when it can't."""

import pytest

from training.sources import open_source
from training.sources.formats.digits import DigitScenes


def test_digits_open():
    assert open_source("digits") == DigitScenes()


@pytest.mark.parametrize("spec", ["digit", "Digits", "digts:x"])
def test_a_slip_names_the_nearest(spec):
    with pytest.raises(ValueError, match=rf"^expected a data source.*; got '{spec}'; did you mean 'digits'\?$"):
        open_source(spec)


@pytest.mark.parametrize("spec", ["", "voc", "voc:", "digits:train", "imagenet"])
def test_the_wrong_form_says_what_was_expected(spec):
    with pytest.raises(ValueError, match=rf"^expected a data source, one of digits, voc:DIR, .*; got '{spec}'$"):
        open_source(spec)


def test_voc_opens_the_folder_after_the_colon(tmp_path):
    with pytest.raises(ValueError, match="expected a Pascal VOC folder") as caught:
        open_source(f"voc:{tmp_path / 'C:'}")
    assert str(tmp_path / "C:") in str(caught.value)


@pytest.mark.parametrize("kind", ["ilsvrc", "folder", "voc"])
def test_a_folder_that_is_not_there_is_one_line(kind, tmp_path):
    with pytest.raises(ValueError, match=r"^expected an? [^\n]*nowhere[^\n]*$"):
        open_source(f"{kind}:{tmp_path / 'nowhere'}")
