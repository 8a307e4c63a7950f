"""Each plugin against all that a run takes for granted of one."""

import json

import pytest
from ostinato_shaping.abc_credit import ABCCredit
from ostinato_shaping.add_functions import AddFunctions
from ostinato_shaping.chi_squared import ChiSquared
from ostinato_shaping.constrained import Constrained
from ostinato_shaping.length_calibration import LengthCalibration
from ostinato_shaping.lsc import LSC
from ostinato_shaping.odin import ODIN
from ostinato_shaping.par import PAR
from ostinato_shaping.rcfd import RCfD

from ostinato import testing


def words(completions):
    """A rule: the number of words."""
    return [float(len(text.split())) for text in completions]


CASES = {
    PAR: {"settings": {"references": 2}},
    LSC: {"settings": {"references": 2}},
    ODIN: {},
    AddFunctions: {"settings": {"functions": [f"{__file__}:words"]}},
    ChiSquared: {},
    Constrained: {"settings": {"constraint": "at_least"}},
    LengthCalibration: {},
    ABCCredit: {},
}


@pytest.mark.parametrize("plugin", CASES, ids=lambda plugin: plugin.__name__)
def test_it_conforms(plugin):
    testing.conformance(plugin, **CASES[plugin])


def test_rcfd_conforms(tmp_path):
    path = tmp_path / "shown.jsonl"
    rows = [{"prompt": p, "completion": "good soup"} for p in testing.prompts(1000).texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    testing.conformance(RCfD, {"data": str(path)})
