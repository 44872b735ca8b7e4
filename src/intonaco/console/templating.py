"""Templates with the console's wording, pictures and escaping. The demo's report uses them too."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from intonaco.console import images, present, svg, svg_rollout
from intonaco.rollout.words import expected, number

HERE = Path(__file__).parent


def environment(*folders: Path) -> Environment:
    """Everything is escaped; a name that is not there is an error. ``folders`` are looked in before
    the console's own."""
    env = Environment(
        loader=FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("clock", "moment", "duration", "ago", "percent", "number", "signed", "score"):
        env.filters[name] = getattr(present, name)
    env.filters |= {"interval": present.interval, "money": present.money, "words": present.words}
    env.filters["image_url"] = images.url
    env.filters["in_unit"] = lambda value, metric: number(metric, value).replace("-", "−")
    # Pictures escape the words that they hold.
    env.globals["forest"] = lambda *facts: Markup(svg.forest(*facts))
    env.globals["weights_course"] = lambda *facts: Markup(svg_rollout.weights_course(*facts))
    env.globals["proof_line"] = lambda assessment: Markup(svg_rollout.proof_line(assessment))
    env.globals["share_bars"] = lambda *facts: Markup(svg.share_bars(*facts))
    env.globals["evidence_line"] = lambda *facts: Markup(svg.evidence_line(*facts))
    env.globals["weights_bar"] = lambda arms: Markup(svg.weights_bar(arms))
    env.globals["waits_for"] = expected
    env.globals["vote_split"] = lambda *votes: Markup(svg.vote_split(*votes))
    env.globals["share_line"] = lambda *facts: Markup(svg.share_line(*facts))
    return env
