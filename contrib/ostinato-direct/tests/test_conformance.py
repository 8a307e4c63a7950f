"""Each plugin is held to the contract: settings, resumed runs, company, proof of action."""

import pytest
from ostinato_direct.nash_md import NashMD
from ostinato_direct.ocrm import OCRM
from ostinato_direct.online_dpo import OnlineDPO
from ostinato_direct.online_ipo import OnlineIPO
from ostinato_direct.pilaf import PILAF
from ostinato_direct.xpo import XPO

from ostinato.testing import conformance

CASES = {
    OnlineDPO: {},
    OnlineIPO: {},
    XPO: {},
    NashMD: {},
    PILAF: {},
    OCRM: {"settings": {"power": 0.5}, "with_": ["concat"]},
}


@pytest.mark.parametrize("plugin", CASES)
def test_it_conforms(plugin):
    conformance(plugin, **CASES[plugin])
