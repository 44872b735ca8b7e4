"""The backend of servers that are not ours keeps the promises of the others, where it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.fixtures_upstreams import (
    ENVIRON,
    KEY,
    OpenAIServer,
    WebUI,
    add_release,
    both,
    facts_file,
    in_threads,
    openai,
)

from intonaco.clock import FakeClock, SystemClock
from intonaco.config import Serving
from intonaco.errors import BackendError
from intonaco.protocols import ServingBackend
from intonaco.serving.remote import HttpServingBackend, smoke_test
from intonaco.testing.serving import check_serving_backend
from intonaco.types import Release
from intonaco.workspace import Workspace


class Place:
    """Both servers, declared, with a backend."""

    def __init__(self, root: Path, urls: Sequence[str]) -> None:
        self.workspace = Workspace(root)
        self.clock = FakeClock()
        self.upstreams = both(urls)
        self.old, self.new = (add_release(self.workspace, n, d) for n, d in self.upstreams.items())

    def backend(self, environ: dict[str, str] = ENVIRON) -> HttpServingBackend:
        config = Serving.model_validate({"type": "http", "upstreams": self.upstreams})
        return HttpServingBackend(self.workspace, config, self.clock, environ)


@pytest.fixture
def theirs() -> OpenAIServer:
    return OpenAIServer()


@pytest.fixture
def webui() -> WebUI:
    return WebUI()


@pytest.fixture
def place(tmp_path: Path, theirs: OpenAIServer, webui: WebUI) -> Iterator[Place]:
    with in_threads(theirs.app(), webui.app()) as urls:
        yield Place(tmp_path, urls)


def test_the_http_backend(place: Place, theirs: OpenAIServer, webui: WebUI) -> None:
    backend = place.backend()
    assert isinstance(backend, ServingBackend)
    for release in (place.old, place.new):
        check_serving_backend(backend, release, timeout_s=5, poll_s=0)
    # Retired or not, their servers are as they were, and nobody was asked for a picture.
    assert theirs.asked == webui.asked == []
    again = place.backend()
    again.deploy(place.old)
    assert again.status(place.old.release_id).ready
    again.close()
    backend.close()


def test_it_cannot_be_scaled(place: Place) -> None:
    backend = place.backend()
    with pytest.raises(BackendError, match="served elsewhere and cannot be scaled to 2"):
        backend.scale(place.old, 2)
    backend.close()


def test_a_ready_release_says_that_nothing_is_proved(place: Place) -> None:
    backend = place.backend()
    backend.deploy(place.old)
    status = backend.status(place.old.release_id)
    assert status.urls == ("upstream:theirs",)
    assert status.facts["identity"] == "declared, not proved"
    assert status.facts["url"] == place.upstreams["theirs"]["url"]
    assert KEY not in repr(status)
    # Another process finds it deployed.
    other = place.backend()
    assert other.status(place.old.release_id).ready
    backend.close()
    other.close()


def test_a_declaration_that_changed_is_another_release(place: Place) -> None:
    place.backend().deploy(place.old)
    place.upstreams["theirs"]["timeout_s"] = 7
    assert place.backend().status(place.old.release_id).ready
    place.upstreams["theirs"]["version"] = "2"
    status = place.backend().status(place.old.release_id)
    assert not status.ready
    assert status.urls == ("upstream:theirs",)  # a champion has nobody to stand in for it
    renewed = add_release(place.workspace, "theirs", place.upstreams["theirs"])
    assert status.attested == renewed.release_id != place.old.release_id
    assert "declared differently now: begin an update" in status.error
    del place.upstreams["theirs"]
    status = place.backend().status(place.old.release_id)
    assert (status.ready, status.attested) == (False, None)
    assert "no longer there" in status.error


def test_a_server_that_is_not_well_is_waited_for(place: Place, theirs: OpenAIServer) -> None:
    backend, rid = place.backend(), place.old.release_id
    backend.deploy(place.old)
    assert backend.status(rid).ready
    theirs.unwell = True
    assert backend.status(rid).ready  # its word is believed for a while
    place.clock.advance(10)
    status = backend.status(rid)
    assert (status.ready, status.urls, status.error) == (False, (), "")
    assert status.facts["problem"] == "it answers 503 at /health"
    place.clock.advance(301)
    assert "it answers 503 at /health, for 301 s" in backend.status(rid).error
    theirs.unwell = False
    assert backend.status(rid).ready
    backend.close()


def test_a_server_that_is_not_there_or_a_key_that_is_missing(place: Place) -> None:
    place.upstreams["gone"] = openai("http://127.0.0.1:9")
    gone = add_release(place.workspace, "gone", place.upstreams["gone"])
    backend = place.backend()
    backend.deploy(gone)
    assert backend.status(gone.release_id).facts["problem"] == "no answer: ConnectError"
    keyless = place.backend({})
    keyless.deploy(place.old)
    status = keyless.status(place.old.release_id)
    assert not status.ready
    assert "THEIR_KEY is not set" in str(status.facts["problem"])
    backend.close()
    keyless.close()


def test_a_release_that_cannot_be_read_is_an_error_of_its_own(place: Place) -> None:
    backend = place.backend()
    backend.deploy(place.old)
    file = facts_file(place.workspace, place.old)
    file.write_text(file.read_text().replace("127.0.0.1", "127.0.0.2"))
    assert "was changed after the release was made" in backend.status(place.old.release_id).error
    file.unlink()
    assert "upstream.json cannot be read" in backend.status(place.old.release_id).error
    backend.close()


def draw(place: Place, release: Release) -> float:
    upstreams = place.backend().config.upstreams
    return smoke_test(place.workspace, upstreams, ENVIRON, SystemClock())("", release)


def test_the_first_picture(place: Place, theirs: OpenAIServer, webui: WebUI) -> None:
    assert draw(place, place.old) > 0
    assert draw(place, place.new) > 0
    assert (theirs.asked[0]["prompt"], webui.asked[0]["seed"]) == ("smoke test", 1)
    webui.failing = 500
    with pytest.raises(BackendError, match="webui: 500") as caught:
        draw(place, place.new)
    assert not caught.value.retriable
    theirs.failing = 429
    with pytest.raises(BackendError, match="theirs: 429") as caught:
        draw(place, place.old)
    assert caught.value.retriable
