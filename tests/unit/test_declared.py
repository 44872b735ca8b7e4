"""What may be declared of a server that is not ours, and what is part of a release's id."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.fixtures_upstreams import WEBUI, openai

from intonaco.config import Config, parse
from intonaco.declared import Upstream
from intonaco.errors import ConfigError
from intonaco.releases import release_id
from intonaco.upstreams import serving_spec

BASE = openai("https://images.example.org")


def config(upstream: dict[str, Any], **more: Any) -> Config:
    serving = {"type": "http", "upstreams": {"theirs": upstream}}
    return parse(yaml.safe_dump({"service": "s", "serving": serving, **more}))


def test_both_kinds_are_taken() -> None:
    assert config(BASE).serving.upstreams["theirs"].secrets() == ("THEIR_KEY",)
    webui = config({"url": "http://10.0.0.3:7860/", **WEBUI}).serving.upstreams["theirs"]
    assert webui.address(str(webui.path)) == "http://10.0.0.3:7860/sdapi/v1/txt2img"
    assert webui.address("images/generations") == "http://10.0.0.3:7860/images/generations"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "ftp://x"}, "http://HOST"),
        ({"url": "https://"}, "http://HOST"),
        ({"url": "https://user:pa55word@x"}, "use headers"),
        ({"url": "https://x/v1?key=pa55word"}, "use headers"),
        ({"headers": {"authorization": "Bearer pa55word"}}, "env:NAME"),
        ({"headers": {"x-api-key": "pa55word"}}, "env:NAME"),
        ({"headers": {"x-tenant": "pa55word\r\nhost: x"}}, "printable"),
        ({"headers": {"Host": "pa55word"}}, "cannot be set"),
        ({"path": "/x"}, "for api: mapping"),
        ({"api": "mapping"}, "needs path and response"),
        ({"api": "mapping", "path": "http://other/x", "response": {"image": "a"}}, "a path"),
        ({"api": "mapping", "path": "//other/x", "response": {"image": "a"}}, "a path"),
        ({**WEBUI, "edits": True}, "edits are for api: openai"),
        ({**WEBUI, "request": {"seed": "$seed"}}, r"\$prompt is nowhere"),
        ({**WEBUI, "seed": False}, "exactly if seed is true"),
        ({**WEBUI, "request": {"prompt": "$prompt $sede"}}, r"\$sede is unknown"),
        ({**WEBUI, "response": {"image": "a", "encoding": "url"}}, "needs fetch_own_urls"),
        ({**WEBUI, "response": {"encoding": "base64"}}, "give image"),
        ({**WEBUI, "response": {"image": "a", "encoding": "binary"}}, "give image"),
        ({"request": {"a": "$model"}, "model": None}, "no model is given"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"colour": "red"}, "unknown field; allowed: api, edits"),
    ],
)
def test_what_is_wrong_is_named_and_never_repeated(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        config(BASE | changes)
    assert "theirs" in str(caught.value)
    assert "pa55word" not in str(caught.value)


def test_http_and_upstreams_go_together() -> None:
    with pytest.raises(ConfigError, match="go together"):
        parse("service: s\nserving: {type: http}")
    text = "service: s\nserving: {upstreams: {a: {url: 'http://x', model: pa55word}}}"
    with pytest.raises(ConfigError, match="go together") as caught:
        parse(text)
    assert "pa55word" not in str(caught.value)


def test_what_does_not_fit_a_server_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        config(BASE, model={"path": "models/x"})
    with pytest.raises(ConfigError, match=r"theirs\.seed is false"):
        config(BASE, monitoring={"probes": ["a cat"]})
    assert config(BASE | {"seed": True}, monitoring={"probes": ["a cat"]}).monitoring.probes


def identity(name: str = "theirs", steps: int = 10, **changes: Any) -> str:
    upstream = Upstream.model_validate(BASE | changes)
    return release_id(serving_spec(name, upstream, {"steps": steps}))


def test_the_id_is_of_all_that_decides_an_image() -> None:
    others = [
        identity(name="other"),
        identity(steps=11),
        identity(url="https://other.example.org/v1"),
        identity(model="other"),
        identity(version="2"),
        identity(seed=True),
        identity(edits=True),
        identity(request={"quality": "high"}),
        identity(headers={"authorization": "Bearer env:OTHER"}),
        identity(**(WEBUI | {"health": None})),
    ]
    assert len({identity(), *others}) == 1 + len(others)


def test_the_id_is_not_of_how_long_one_waits() -> None:
    assert identity(timeout_s=5, health="/health", fetch_own_urls=True) == identity()
