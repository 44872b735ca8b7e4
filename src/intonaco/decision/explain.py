"""A plan's sum in lines, for a person on call. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from intonaco.types import Action, Estimate, Option, Plan, Reckoning

DAY, HOUR = 86_400.0, 3600.0


def explain(plan: Plan, *, time_zone: str = "UTC", prompts: int = 5) -> list[str]:
    """The decision, then what it rests on: rate x value x deficit x time, every action's cost and
    net, the budget, the guards, and which rule decided. ``prompts``: how many samples of what moved
    to show where data is asked for."""
    r = plan.reckoning
    lines = [f"decided   {_words(plan.action)}, because of {_words(plan.cause)}"]
    if plan.would not in (None, plan.action):
        lines[0] += f" (mode is watch; it would have been {_words(str(plan.would))})"
    if r is not None:
        lines.append(f"rule      {r.rule}")
    lines.append(f"reason    {plan.reason}")
    if plan.trigger:
        lines.append(f"trigger   {plan.trigger}")
    if r is not None:
        lines += _stakes(r) + _options(r, plan) + _budget(r, plan)
        if r.checks:
            lines += ["", "checks, in this order"]
            lines += [f"  {name:<26}{said}" for name, said in r.checks]
            if r.rule != "pays":
                lines.append(f"  {r.rule:<26}said no" if plan.action is Action.WATCH else "")
    if plan.look_again_at is not None:
        at = datetime.fromtimestamp(plan.look_again_at, ZoneInfo(time_zone))
        lines += ["", f"judged again at {at:%Y-%m-%d %H:%M} {time_zone}"]
    if plan.action is Action.COLLECT_DATA:
        lines += _wanted(plan, prompts)
    return lines


def _stakes(r: Reckoning) -> list[str]:
    if r.rate is None or r.deficit is None or r.loss_per_day is None:
        return []
    money = r.currency
    return [
        "",
        f"rate      {_range(r.rate)} requests/s",
        f"x value   {r.value:g} {money} for a good image",
        f"x deficit {_range(r.deficit, 3)} of an image's worth is missing, over all requests",
        f"= loss    {_range(r.loss_per_day, 2)} {money} a day",
        f"time      {_span(r.age_s)} old, expected to last {_span(r.lasts_s)} more",
        f"regret    {r.regret:.2f} {money} lost so far"
        + (f", {r.regret_needed:.2f} are waited for" if r.regret_needed > 0 else ""),
    ]


def _options(r: Reckoning, plan: Plan) -> list[str]:
    if not r.options:
        return []
    lines = ["", f"what could be done, in {r.currency} (90 % interval)"]
    for option in r.options:
        mark = ">" if option.action is plan.action else " "
        name = f"{mark} {_words(option.action):<14}"
        if not option.allowed:
            lines.append(f"{name}not open: {option.why}")
        elif option.net is None or option.compute is None:
            lines.append(f"{name}{option.why}")
        else:
            lines += _sum(name, option)
    return lines


def _sum(name: str, o: Option) -> Sequence[str]:
    assert o.net is not None
    assert o.gain is not None
    assert o.compute is not None
    success = f"{o.success.mean:.2f}" if o.success else "1"
    return (
        f"{name}net {_range(o.net, 2)}   {', '.join(o.recipes)}",
        f"{'':16}gain {_range(o.gain, 2)} = loss x recovery {o.recovery:.2f} x success {success} "
        f"x {_span(o.serves_s)} ({_span(o.lead_s)} until it serves)",
        f"{'':16}cost {_range(o.compute, 2)} compute + {o.review:.2f} review + {o.risk:.2f} risk",
        f"{'':16}{o.why}",
    )


def _budget(r: Reckoning, plan: Plan) -> list[str]:
    b = r.budget
    if not b:
        return []
    line = (
        f"budget    {b['left']:.2f} of {b['amount']:.2f} {r.currency} left for any "
        f"{b['per_days']:g} days ({b['spent']:.2f} spent, {b['reserved']:.2f} reserved); "
        f"an update must bring {b['required_return']:.2f} times its cost"
    )
    lines = ["", line]
    if "hours_left" in b:
        lines.append(f"          {b['hours_left']:.1f} h of the training machine left")
    if plan.limits:
        jobs = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.limits.items())
        lines.append(f"reserved  {plan.reserve:.2f} {r.currency}; jobs are stopped after: {jobs}")
    return lines


def _wanted(plan: Plan, count: int) -> list[str]:
    moved = [c for c in plan.clusters if c.moved]
    found = [prompt for c in moved for prompt in c.sample_prompts[:count]]
    if not found:
        return ["", "data is wanted for the moved clusters; no prompts are kept"]
    return ["", "data is wanted for prompts like these", *(f"  {p}" for p in found)]


def _range(e: Estimate, digits: int | None = None) -> str:
    def text(x: float) -> str:
        return f"{x:.3g}" if digits is None else f"{x:.{digits}f}"

    return text(e.mean) if e.low == e.high else f"{text(e.mean)} [{text(e.low)}, {text(e.high)}]"


def _span(seconds: float) -> str:
    for unit, size in (("days", DAY), ("h", HOUR), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _words(value: object) -> str:
    return str(value).replace("_", " ")
