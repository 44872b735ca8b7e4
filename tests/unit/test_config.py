"""Every way to get ``intonaco.yaml`` wrong says which field, what was given and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from intonaco import app, config
from intonaco.config import Config, reading
from intonaco.errors import ConfigError
from intonaco.types import StepKind
from intonaco.workspace import Workspace


def _message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    return str(caught.value)


def test_the_name_of_the_service_is_enough() -> None:
    parsed = config.parse("service: digits")
    assert parsed.service == "digits"
    assert parsed.approval.mode == "ask"  # nobody's traffic moves before somebody said so
    assert parsed.serving.gateway.host == "127.0.0.1"
    assert parsed.console.host == "127.0.0.1"
    assert parsed.rollout.steps[-1].weight == 1.0
    assert parsed.rollout.steps[0].kind is StepKind.SHADOW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # a field that does not exist: its path and those that do
        (
            "service: s\nmodle: {}",
            "intonaco.yaml: modle: unknown field; allowed: approval, console, data, decision,",
        ),
        (
            "service: s\nserving: {gateway: {prot: 80}}",
            "intonaco.yaml: serving.gateway.prot: unknown field; allowed: api_keys,",
        ),
        (
            "service: s\ntraining: {recipes: {fine_tune: {lora: {rnak: 4}}}}",
            "intonaco.yaml: training.recipes.fine_tune.lora.rnak: unknown field; "
            "allowed: alpha, fused, rank, targets",
        ),
        (
            "service: s\nmonitoring: {signals: {p: {of: errors, tolerence: 1}}}",
            "intonaco.yaml: monitoring.signals.p.tolerence: unknown field; allowed: call,",
        ),
        (
            "service: s\nrollout: {steps: [{weight: 1, minutes: 5}]}",
            "intonaco.yaml: rollout.steps.0.minutes: unknown field; "
            "allowed: deadline_s, kind, min_seconds, min_units, on_timeout, weight",
        ),
        # a field that must be there
        ("{}", "intonaco.yaml: service: required and not given"),
        (
            "service: s\nextractor: {}",
            "intonaco.yaml: extractor.path: required and not given",
        ),
        # a wrong value: what was given and what is allowed
        (
            "service: s\nserving: {gateway: {port: 99999}}",
            "intonaco.yaml: serving.gateway.port: "
            "Input should be less than or equal to 65535 (given: 99999)",
        ),
        (
            "service: s\ndecision: {mode: automatic}",
            "intonaco.yaml: decision.mode: "
            "Input should be 'auto', 'ask' or 'watch' (given: 'automatic')",
        ),
        (
            "service: s\nevaluation: {alpha: often}",
            "intonaco.yaml: evaluation.alpha: Input should be a valid number, "
            "unable to parse string as a number (given: 'often')",
        ),
        (
            "service: s\nrollout: {margins: {errors: 0}}",
            "intonaco.yaml: rollout.margins.errors: Input should be greater than 0 (given: 0)",
        ),
        (
            "service: Digits!",
            "intonaco.yaml: service: String should match pattern",
        ),
        (
            "service: s\nrollout: {metrics: [errors, speed]}",
            "intonaco.yaml: rollout.metrics: no metric 'speed'; there are: "
            "errors, latency, clip_score, slow, cost",
        ),
        (
            "service: s\nrollout: {metrics: [errors, slow, slow]}",
            "intonaco.yaml: rollout.metrics: a metric is named twice",
        ),
        (
            "service: s\nrollout: {metrics: [latency]}",
            "intonaco.yaml: rollout.metrics: errors cannot be left out",
        ),
        (
            "service: s\nrollout: {harm_tolerances: {cost: -1}}",
            "intonaco.yaml: rollout.harm_tolerances.cost: Input should be greater than or equal",
        ),
        # what only the whole says
        (
            "service: s\nrollout: {strategy: blue_green, metrics: [errors, latency]}",
            "intonaco.yaml: rollout: metrics: latency needs a step that gives some users",
        ),
        (
            "service: s\nrollout: {steps: [{weight: 1.0}], metrics: [errors, cost]}",
            "intonaco.yaml: rollout: metrics: cost needs a step that gives some users",
        ),
        (
            "service: s\nrollout: {strategy: shadow_only, metrics: [errors, feedback]}",
            "intonaco.yaml: rollout: metrics: feedback needs a step that gives some users",
        ),
        (
            "service: s\nrollout: {steps: [{kind: bake}]}",
            "intonaco.yaml: rollout.steps: a bake comes after promote",
        ),
        (
            "service: s\nrollout: {steps: [{weight: 0.5}, {weight: 0.1}, {weight: 1}]}",
            "intonaco.yaml: rollout.steps: canary weights must not fall",
        ),
        (
            "service: s\ndecision: {fine_tune: [quick]}",
            "intonaco.yaml: decision.fine_tune names the recipe 'quick'; "
            "training.recipes has: fine_tune, full",
        ),
        (
            "service: s\nserving: {share_base: true, worker: {offload: model}}",
            "intonaco.yaml: serving: share_base keeps the base on the device, and worker.offload "
            "is 'model'",
        ),
        (
            "service: s\ntraining: {recipes: {fine_tune: {init: 'a:b', lora: {fused: false}}, "
            "full: {}}}",
            "intonaco.yaml: training.recipes.fine_tune: lora.fused: false needs a base on disk",
        ),
        (
            "service: s\ntraining: {recipes: {fine_tune: {vae: {steps: 1}, lora: {fused: false}}, "
            "full: {}}}",
            "intonaco.yaml: training.recipes.fine_tune: lora.fused: false leaves the base as it is",
        ),
        # numbers that are none: a time-out without end is no time-out
        (
            "service: s\nserving: {gateway: {request_timeout_s: .inf}}",
            "intonaco.yaml: serving.gateway.request_timeout_s: Input should be a finite number",
        ),
        (
            "service: s\nserving: {gateway: {limits: {area_factor: .inf}}}",
            "intonaco.yaml: serving.gateway.limits.area_factor: Input should be a finite number",
        ),
        (
            "service: s\nserving: {worker: {batch_wait_ms: .inf}}",
            "intonaco.yaml: serving.worker.batch_wait_ms: Input should be a finite number",
        ),
        # no configuration at all
        ("", "intonaco.yaml: expected a mapping at the top, got NoneType"),
        ("- a\n- b", "intonaco.yaml: expected a mapping at the top, got list"),
        (
            "service: s\n  model: {",
            "intonaco.yaml: line 2, column 8: not valid YAML: mapping values are not allowed here",
        ),
    ],
)
def test_mistake(text: str, message: str) -> None:
    found = _message(text)
    assert found.startswith(message)
    assert "\n" not in found


def test_a_loss_on_held_out_items_needs_held_out_items() -> None:
    text = "service: s\ndecision: {fine_tune: [r], full_retrain: [r]}\n"
    text += "training: {recipes: {r: {validation: {every: 5, items: 2}}}}"
    assert "training.recipes.r.validation needs data.reference" in _message(text)
    config.parse(f"{text}\ndata: {{reference: held}}")


def test_a_long_value_is_cut() -> None:
    found = _message(f"service: s\nmodel: {{name: [{', '.join(['x'] * 200)}]}}")
    assert len(found) < 200
    assert found.endswith("...)")


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse("service: s\na: 1\nb: 2\nc: 3")
    assert caught.value.hint == "and 2 more; `intonaco check` lists them"


def test_yaml_cannot_make_objects() -> None:
    assert "not valid YAML" in _message("service: !!python/object/apply:os.getcwd []")


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "intonaco.yaml"
    file.write_text("service: digits\n")
    assert config.load(file).service == "digits"


def test_load_says_which_file(tmp_path: Path) -> None:
    file = tmp_path / "intonaco.yaml"
    file.write_text("service: 5")
    with pytest.raises(ConfigError, match=rf"^{file}: service: "):
        config.load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        config.load(tmp_path / "intonaco.yaml")
    assert "intonaco init" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "intonaco.yaml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(file)


def test_a_lora_recipe_gets_its_settings() -> None:
    parsed = config.parse("service: s")
    lora = parsed.training.recipes["fine_tune"].lora
    assert lora is not None
    assert lora.rank == 16
    assert parsed.training.recipes["full"].lora is None


def test_configuration_cannot_be_changed() -> None:
    parsed = config.parse("service: s")
    with pytest.raises(ValueError, match="frozen"):
        parsed.service = "other"


def test_defaults_are_valid_as_written() -> None:
    """What `config show` prints can be read again and means the same."""
    parsed = config.parse("service: s")
    again = config.parse(json.dumps(parsed.model_dump(mode="json")))
    assert again == parsed


def test_every_section_refuses_unknown_fields() -> None:
    seen: set[type[BaseModel]] = set()

    def walk(section: type[BaseModel]) -> None:
        seen.add(section)
        for field in section.model_fields.values():
            found = reading._section_in(field.annotation)
            if found is not None and found not in seen:
                walk(found)

    walk(Config)
    assert len(seen) > 15
    assert [s.__name__ for s in seen if s.model_config.get("extra") != "forbid"] == []


def test_json_schema_names_every_section() -> None:
    schema = config.json_schema()
    assert schema["required"] == ["service"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)


def test_a_review_is_asked_for_with_settings_that_fit() -> None:
    given = config.parse(
        "service: svc\nevaluation: {review: {required: true, questions: [quality, style]}}"
    ).evaluation.review
    assert given.required
    assert given.questions == ("quality", "style")
    assert not config.parse("service: svc").evaluation.review.required
    for wrong in (
        "{questions: []}",
        "{questions: [quality, quality]}",
        "{questions: [beauty]}",
        "{margin: 0.5}",
        "{checks: 0.9}",
        "{votes_per_pair: 0}",
        "{timeout_s: 0}",
    ):
        with pytest.raises(ConfigError, match=r"evaluation\.review"):
            config.parse(f"service: svc\nevaluation: {{review: {wrong}}}")


def test_who_is_told_is_checked() -> None:
    (log,) = config.parse("service: s").notify
    assert (log.type, log.name, log.patterns) == ("log", "log", ("*",))
    given = config.parse(
        "service: s\nnotify:\n"
        "  - {type: webhook, name: on-call, url: 'env:HOOK', secret: 'env:KEY',"
        " events: ['rollout.*']}\n  - {type: webhook, url: 'https://h.example/x'}\n"
    ).notify
    assert [(n.name, n.patterns) for n in given] == [
        ("on-call", ("rollout.*",)),
        ("webhook", config.ON_CALL),
    ]
    assert config.parse("service: s\nnotify: []").notify == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{type: webhook}", "a webhook needs one"),
        ("{type: webhook, url: 'ftp://h/'}", "url"),
        ("{type: webhook, url: 'file:///etc/passwd'}", "url"),
        ("{type: webhook, url: 'http://h/', secret: plain}", "secret"),
        ("{type: webhook, url: 'http://h/', give_up_s: 1}", "give_up_s"),
        ("{type: log, url: 'http://h/'}", "url is not read by type 'log'"),
        ("{type: log, timeout_s: 3}", "timeout_s is not read by type 'log'"),
        ("{type: pigeon}", "type"),
        ("{type: log}, {type: log}", "two are named 'log'"),
        ("{type: log, events: ['Rollout!']}", "events"),
    ],
)
def test_a_wrong_notifier(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(f"service: s\nnotify: [{entry}]")


def test_tolerances_of_harm_are_the_metrics_own_or_the_common_one() -> None:
    rollout = config.parse(
        "service: s\nrollout: {harm_tolerance: 0.02, harm_tolerances: {slow: 0.1, cost: 0.3}}"
    ).rollout
    assert {m: rollout.tolerance(m) for m in config.ONLINE_METRICS} == {
        "errors": 0.02,
        "latency": 0.05,
        "clip_score": 0.02,
        "slow": 0.1,
        "cost": 0.3,
        "feedback": 0.02,
        "end_to_end": 0.05,
    }
    assert rollout.metrics == ("errors", "latency", "clip_score")


BASELINE = "rollout: {baseline: true, "


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (BASELINE + "metrics: [errors, end_to_end]}", None),
        (BASELINE + "steps: [{weight: 0.5}, {weight: 1.0}]}", None),
        ("rollout: {metrics: [errors, end_to_end]}", "equal slice of the champion only"),
        (BASELINE + "strategy: in_place, force: true}", "strategy in_place gives no share"),
        (BASELINE + "strategy: rolling}", "strategy rolling gives no share"),
        (BASELINE + "strategy: ab}", "strategy ab gives no share"),
        (BASELINE + "strategy: blue_green}", "strategy blue_green gives no share"),
        (BASELINE + "steps: [{weight: 0.6}]}", "no canary step has a weight of 0.5 or less"),
        (BASELINE + "}\nserving: {share_base: true}", "serving.share_base is on"),
        (
            BASELINE + "}\nserving: {replicas: 2, worker: {memory_gb: 5, device_memory_gb: 24}}",
            "6 workers of 5 GB each, and serving.worker.device_memory_gb is 24",
        ),
        (
            BASELINE + "}\nserving: {replicas: 1, worker: {memory_gb: 8, device_memory_gb: 24}}",
            None,
        ),
        (
            BASELINE + "}\nserving: {type: http, upstreams: {a: {url: 'http://x'}}}",
            "serving.type is http",
        ),
    ],
)
def test_the_equal_slice_is_asked_for_where_there_can_be_one(
    given: str, problem: str | None
) -> None:
    if problem is None:
        config.parse(f"service: s\n{given}")
    else:
        with pytest.raises(ConfigError, match=problem):
            config.parse(f"service: s\n{given}")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("rollout: {metrics: [errors, latency]}", None),
        ("rollout: {metrics: [errors, clip_score]}", "clip_score needs an extractor"),
        (
            "extractor: {type: clip, path: .}\nserving: {gateway: {prompts: hash}}\n"
            "monitoring: {signals: {errors: {of: errors}}}\n"
            "rollout: {metrics: [errors, clip_score]}",
            "clip_score needs prompts, and serving.gateway.prompts is 'hash'",
        ),
        ("rollout: {metrics: [errors, cost]}", "cost needs serving.hourly_price"),
        ("serving: {hourly_price: 2}\nrollout: {metrics: [errors, cost]}", None),
        (
            "rollout: {metrics: [errors, feedback]}",
            "feedback counts once an image is 24 h old (monitoring.feedback.mature_after_s), and "
            "rollout.max_seconds ends a rollout after 24 h",
        ),
        ("rollout: {metrics: [errors, feedback], max_seconds: 259200}", None),
        ("rollout: {metrics: [errors, feedback], on_inconclusive: hold}", None),
        (
            "monitoring: {feedback: {mature_after_s: 3600}}\n"
            "rollout: {metrics: [errors, feedback]}",
            None,
        ),
        ("", None),  # the default without an extractor is a note
    ],
)
def test_what_a_metric_of_the_rollout_needs_is_checked(
    tmp_path: Path, given: str, problem: str | None
) -> None:
    problems = app.check(config.parse(f"service: s\n{given}"), Workspace(tmp_path))
    said = [p for p in problems if p.startswith("rollout.metrics")]
    assert len(said) == (problem is not None)
    assert problem is None or problem in said[0]


@pytest.mark.parametrize(
    ("given", "judged"),
    [
        ("{}", ("errors", "latency", "clip_score")),
        ("{strategy: blue_green}", ("errors", "slow", "clip_score")),
        ("{steps: [{kind: shadow, weight: 1}, {weight: 1}]}", ("errors", "slow", "clip_score")),
        ("{strategy: shadow_only, metrics: [errors]}", ("errors",)),
        ("{metrics: [errors, cost]}", ("errors", "cost")),
    ],
)
def test_where_requests_are_only_copied_latency_is_not_judged(
    given: str, judged: tuple[str, ...]
) -> None:
    assert config.parse(f"service: s\nrollout: {given}").rollout.guardrails == judged
