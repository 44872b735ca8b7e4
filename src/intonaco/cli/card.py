"""A finding in the terminal, to be judged in ten seconds. Users' words are printed without markup
and without control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from intonaco.console.present import ago, clock, duration, number, percent, score, words

Facts = Mapping[str, Any]
WIDTH = 28  # characters of a share's bar
CLUSTERS = 4
ACTIONS = {"tell": "tell a person", "collect_data": "ask for data"}


def card(facts: Facts, now: float) -> RenderableType:
    f = facts["finding"]
    parts: list[RenderableType] = [Text(clean(facts["headline"]), style="bold red"), Text()]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row("finding", Text(f"{f['finding_id']}  {words(f['signal'])}"))
    table.add_row("since", Text(_since(facts, now)))
    near = facts["nearest"]
    if near is not None:
        side = "after" if near["seconds_before"] >= 0 else "before"
        away = duration(abs(near["seconds_before"]))
        table.add_row("nearest", Text(f"{away} {side}: {clean(near['text'])}"))
    diagnosis, plan = facts["diagnosis"], facts["plan"]
    if diagnosis is None:
        table.add_row("cause", Text("being looked into: more requests are awaited", "yellow"))
    else:
        factor = f" ({words(diagnosis['factor'])})" if diagnosis["factor"] else ""
        table.add_row("cause", Text(words(diagnosis["cause"]) + factor, style="bold"))
    if plan is not None:
        action = ACTIONS.get(plan["action"]) or words(plan["action"])
        table.add_row("plan", Text(action, style="bold"))
        table.add_row("", Text(clean(plan["reason"]), style="dim"))
    for other in facts["also_planned"]:
        action = ACTIONS.get(other["action"]) or words(other["action"])
        table.add_row("besides", Text(f"{words(other['cause'])}: {action}", style="bold"))
        table.add_row("", Text(clean(other["reason"]), style="dim"))
    if f["threshold"] is not None and not facts["probes"]:
        said = f"{number(f['evidence'])} of {number(f['threshold'])}"
        values = f"{number(f['value_before'])} → {number(f['value_now'])} {f['unit']}"
        table.add_row("evidence", Text(f"{said}; {values}"))
    for name, share in facts["shares"].items():
        table.add_row("", Text(f"{percent(share)} on {clean(name)}", style="dim"))
    parts.append(table)
    parts += _clusters(f["clusters"])
    parts += _parts(facts)
    parts += _probes(facts["probes"])
    if diagnosis is not None:
        parts += [Text(), Text("Why", style="bold"), Text(clean(diagnosis["reason"]))]
    for name, why in facts["excluded"].items():
        parts.append(Text(f"not {words(name)}: {clean(why)}", style="dim"))
    quiet = [s for s in facts["others"] if s["armed"] and not s["firing"]]
    firing = [s for s in facts["others"] if s["firing"]]
    unseen = [s for s in facts["others"] if not s["armed"]]
    for name, found in (("also firing", firing), ("quiet", quiet), ("not watched yet", unseen)):
        if found:
            said = ", ".join(words(s["signal"]) for s in found)
            parts.append(Text(f"{name}: {said}", style="dim"))
    return Group(*parts)


def line(found: Facts, now: float) -> Text:
    """A finding on one line of a list."""
    text = Text(f"  {found['finding_id'][:8]}  ", style="dim")
    text.append(f"{ago(found['at'], now):<12}", style="dim")
    text.append(clean(found["headline"]))
    if found["cause"]:
        action = ACTIONS.get(found["action"] or "") or words(found["action"] or "no plan")
        text.append(f"  {words(found['cause'])} → {action}", style="yellow")
    return text


def clean(text: str) -> str:
    """One line without control characters."""
    joined = " ".join(str(text).split())
    return "".join(c if unicodedata.category(c)[0] != "C" else "�" for c in joined)


def _since(facts: Facts, now: float) -> str:
    f = facts["finding"]
    if facts["probes"]:
        return (
            f"between {clock(f['since_at'])} and {clock(f['at'])} UTC, the last good round and "
            "this one"
        )
    after = f", after {f['requests_to_detect']} requests" if f["requests_to_detect"] > 0 else ""
    return (
        f"{clock(f['since_at'])} UTC, {ago(f['since_at'], now)}; found "
        f"{duration(facts['seconds_to_find'])} later{after}"
    )


def _clusters(clusters: Sequence[Facts]) -> list[RenderableType]:
    if not clusters:
        return []
    top = max(max(c["share_before"], c["share_now"]) for c in clusters) or 1.0
    parts: list[RenderableType] = [Text(), Text("What moved", style="bold")]
    for c in clusters[:CLUSTERS]:
        low, high = c["share_now_interval"]
        heading = Text(f"{percent(c['share_before'])} → {percent(c['share_now'])} ", style="bold")
        heading.append(f"({percent(low)} to {percent(high)}) of requests", style="dim")
        if c["quality_inside"] is not None:
            worse = c["quality_outside"] is not None and c["quality_inside"] < c["quality_outside"]
            heading.append(f"  score {score(c['quality_inside'])}", style="red" if worse else "")
            if c["quality_outside"] is not None:
                heading.append(f", elsewhere {score(c['quality_outside'])}", style="dim")
        parts.append(heading)
        for share, style in ((c["share_before"], "dark_cyan"), (c["share_now"], "dark_orange")):
            parts.append(Text("  " + _bar(share / top), style=style))
        if c["sample_prompts"]:
            said = Text("  ")
            said.append("; ".join(f"“{clean(p)}”" for p in c["sample_prompts"]))
            parts.append(said)
        if c["sample_images"]:
            parts.append(Text(f"  pictures: {' '.join(c['sample_images'][:3])}", style="dim"))
    if len(clusters) > CLUSTERS:
        parts.append(Text(f"and {len(clusters) - CLUSTERS} more", style="dim"))
    return parts


def _bar(share: float) -> str:
    return "█" * max(1, round(WIDTH * share)) if share > 0 else "▏"


def _parts(facts: Facts) -> list[RenderableType]:
    if not facts["parts"] and not facts["kinds"]:
        return []
    parts: list[RenderableType] = [Text(), Text("Who holds the change", style="bold")]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("", "", "of the change", "before", "now", "of requests"):
        table.add_column(name)
    for p in facts["parts"]:
        table.add_row(
            Text(p["by"], style="dim"),
            Text(clean(p["value"]), style="bold"),
            percent(min(1.0, p["share_of_change"])),
            number(p["before"]),
            number(p["now"]),
            f"{percent(p['share_before'])} → {percent(p['share_now'])}",
        )
    if facts["parts"]:
        parts.append(Padding(table, (0, 0, 0, 2)))
    if facts["kinds"]:
        kinds = ", ".join(f"{n} {words(k)}" for k, n in facts["kinds"].items())
        parts.append(Text(f"  failed attempts since: {kinds}"))
    return parts


def _probes(probes: Sequence[Facts]) -> list[RenderableType]:
    if not probes:
        return []
    parts: list[RenderableType] = [Text(), Text("Probes that changed", style="bold")]
    for p in probes:
        unit = "cosine distance" if p["measure"] == "embedding" else "of 255 levels"
        limit = "the same bits are promised" if p["measure"] == "bits" else f"limit {p['limit']:g}"
        said = f"  “{clean(p['prompt'] or p['key'])}”: {number(p['distance'])} {unit} ({limit})"
        parts.append(Text(said))
        if p["images"]:
            parts.append(Text(f"    {' → '.join(p['images'])}", style="dim"))
    return parts
