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
CASES = {
    DrGRPO: TWO,
    GSPO: TWO,
    CISPO: TWO,
    ReMax: {},
    GradientRegularisation: {},
}


class Signs:
    """Rewards of 1 and -1, of which groups are often one."""

    @ostinato.hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score.sign())


@pytest.mark.parametrize("plugin", CASES)
def test_it_conforms(plugin):
    conformance(plugin, CASES[plugin])


def test_dapo_conforms_where_rewards_tie():
    conformance(DAPO, TWO | {"refill": 4}, with_=[DAPO, Signs])
