"""What a run takes for granted of every plugin: nothing in place, resumable, in company."""

from __future__ import annotations

import pytest
from ostinato_selection.active_pairs import ActivePairs
from ostinato_selection.apl import APL
from ostinato_selection.best_checkpoint import BestCheckpoint
from ostinato_selection.causal_rm import CausalRM
from ostinato_selection.curriculum import Curriculum
from ostinato_selection.early_stopping import EarlyStopping
from ostinato_selection.ids import IDS
from ostinato_selection.pf_ppo import PFPPO
from ostinato_selection.rrm import RRM
from ostinato_selection.thompson_duels import ThompsonDuels
from ostinato_selection.west_of_n import WestOfN

from ostinato.testing import conformance

TWO = {"reward_model": {"members": 2}}
CASES = {
    ActivePairs: {"run": TWO},
    APL: {},
    BestCheckpoint: {"settings": {"every": 1, "prompts": 4}},
    CausalRM: {"settings": {"bins": 2}, "run": {"generation": {"max_new_tokens": 20}}},
    Curriculum: {},
    # there is always some disagreement, at the end of the run
    EarlyStopping: {"settings": {"kl": 50, "disagreement": 1e-9, "every": 2, "prompts": 4}},
    IDS: {"settings": {"epochs": 2}},
    PFPPO: {"settings": {"pool": "rollout"}},
    RRM: {},
    ThompsonDuels: {"run": TWO | {"preferences": {"responses": 3}}},
    WestOfN: {"settings": {"n": 3}},
}


@pytest.mark.parametrize("plugin", CASES, ids=lambda plugin: plugin.__name__)
def test_it_conforms(plugin):
    conformance(plugin, **CASES[plugin])
