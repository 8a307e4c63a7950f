"""Folders of finished runs, made without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

PROMPT = {"prompt": "the <soup> :", "proxy": 0.5}


def eval_row(k: int, step: int, gold: float | None, response: str) -> dict[str, Any]:
    return {
        "kind": "eval",
        "iteration": k,
        "step": step,
        "gold_reward": gold,
        "proxy_reward": 0.5 * step,
        "gap": None if gold is None else 1.0 - gold,
        "gap_latest": None if gold is None else 2.0 - 2.0 * gold,
        "kl": float(step),
        "mmd": None if gold is None else 0.5 / k,
        "samples": [{**PROMPT, "response": response, "gold": gold}],
    }


def make_run(
    path: Path, seed: int = 0, golds: tuple[float | None, ...] = (0.25, 0.75), **config: Any
) -> Path:
    path.mkdir(parents=True)
    whole = {"seed": seed, "iterations": len(golds), "rl": {"rollouts": 4}, **config}
    plugin = {
        "name": "concat",
        "hooks": ["combine_data"],
        "distribution": "ostinato",
        "version": "0.1.0",
        "settings": {},
    }
    facts = {"config": whole, "plugins": [plugin], "owners": {"combine_data": "concat"}}
    (path / "run.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    rows = []
    for k, gold in enumerate(golds, start=1):
        rows += [eval_row(k, 0, gold and 0.0, "bland & dull"), eval_row(k, 4, gold, "tasty")]
        rows.append({**rows[-1], "kind": "iteration", "peak_gold": gold, "accuracy": 0.7})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path
