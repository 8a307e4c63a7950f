"""What a run takes for granted of a plugin, of each method of the package."""

import pytest
from ostinato_uncertainty.advpo import AdvPO
from ostinato_uncertainty.bspo import BSPO
from ostinato_uncertainty.ibl import IBL
from ostinato_uncertainty.inform import InfoRM
from ostinato_uncertainty.laplace_head import LaplaceHead
from ostinato_uncertainty.purm import PURM
from ostinato_uncertainty.soft_minimum import SoftMinimum
from ostinato_uncertainty.uarm import UARM
from ostinato_uncertainty.warm import WARM

from ostinato.testing import conformance

TWO = {"reward_model": {"members": 2}}
CASES = {
    AdvPO: {},
    BSPO: {"settings": {"support": 0.05}},
    IBL: {},
    InfoRM: {"settings": {"latent": 4}},
    LaplaceHead: {},
    PURM: {},
    SoftMinimum: {"run": TWO},
    UARM: {"settings": {"responses": 2}, "run": TWO},
    WARM: {"run": TWO},
}


@pytest.mark.parametrize("plugin", CASES, ids=lambda plugin: plugin.__name__)
def test_it_conforms(plugin):
    conformance(plugin, **CASES[plugin])
