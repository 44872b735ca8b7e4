"""What does the policy cost over simulated years, against hindsight and against simple rules?"""

from __future__ import annotations

from intonaco.decision import backtest

YEARS = 200
SEED = 2026  # of no year that anything was chosen with


def figures(years: int = YEARS, seed: int = SEED) -> dict[str, float]:
    """``policy.cost_over_oracle`` and beside it the same of each fixed rule; ``policy.overspent``:
    years in which a period saw more than the budget."""
    result = backtest.run(years, seed)
    found = {
        "policy.cost_over_oracle": result.over_oracle,
        "policy.overspent": float(result.overspent),
        "policy.years": float(result.years),
        "policy.quiet_years": float(result.quiet_years),
    }
    for name, cost in result.costs.items():
        if name != "ours":
            label = name.replace(", ", "_").replace(" ", "_").replace(".", "")
            found[f"policy.rule.{label}.cost_over_oracle"] = cost / result.oracle
    return found
