"""Each plugin is held to the contract: settings, resumed runs, company, proof of action."""

from dataclasses import replace

import pytest
from ostinato_group.cispo import CISPO
from ostinato_group.dapo import DAPO
from ostinato_group.dr_grpo import DrGRPO
from ostinato_group.gradient_regularisation import GradientRegularisation
from ostinato_group.gspo import GSPO
from ostinato_group.remax import ReMax

import ostinato
from ostinato.testing import conformance

TWO = {"responses": 2}


class Signs:
    """Rewards of 1 and -1, of which groups are often one."""

    @ostinato.hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score.sign())


CASES = {
    DrGRPO: {"settings": TWO},
    GSPO: {"settings": TWO},
    CISPO: {"settings": TWO},
    DAPO: {"settings": TWO | {"refill": 4}, "with_": [DAPO, Signs]},  # where rewards tie
    ReMax: {},
    GradientRegularisation: {},
}


@pytest.mark.parametrize("plugin", CASES)
def test_it_conforms(plugin):
    conformance(plugin, **CASES[plugin])
