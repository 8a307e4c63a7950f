"""Folders of finished runs, made without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ostinato.config.yaml_files import dumped

PROMPT = {"prompt": "the <soup> :", "proxy": 0.5}


def eval_row(k: int, step: int, gold: float | None, response: str) -> dict[str, Any]:
    missing = gold is None
    return {
        "kind": "eval",
        "iteration": k,
        "step": step,
        "gold_sft_std": gold,
        "proxy_sft_std": 0.5 * step,
        "gold_wins": None if gold is None else 0.5 + gold / 10,
        "proxy_wins": 0.5 + step / 10,
        "gap": None if gold is None else 1.0 - gold,
        "gap_se": None if missing else 0.125,
        "gap_latest": None if gold is None else 2.0 - 2.0 * gold,
        "kl": float(step),
        "mmd": None if missing else 0.5 / k,
        "spearman": None if missing else 0.25,
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
    facts = {
        "format": 2,
        "config": whole,
        "plugins": [plugin],
        "owners": {"combine_data": "concat"},
    }
    (path / "run.yaml").write_text(dumped(facts), encoding="utf-8")
    rows = []
    for k, gold in enumerate(golds, start=1):
        rows += [eval_row(k, 0, gold and 0.0, "bland & dull"), eval_row(k, 4, gold, "tasty")]
        rows.append({**rows[-1], "kind": "iteration", "peak_gold": gold, "accuracy": 0.7})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path


def change_rows(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Each row of metrics.jsonl as ``change`` leaves it."""
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
