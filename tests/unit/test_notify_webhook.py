"""The webhook against real servers on this machine: slow ones, failing ones, ones that hang; and a
sender that is killed in the middle."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from intonaco.clock import FakeClock, SystemClock
from intonaco.config import NotifierConfig
from intonaco.errors import ConfigError
from intonaco.ledger import Ledger
from intonaco.notify.channels import channel
from intonaco.notify.delivery import Channel, Delivery, standing
from intonaco.notify.undelivered import Undelivered
from intonaco.notify.webhook import MOST_ANSWER, Webhook, secret_bytes, signature
from intonaco.testing.notify import MemoryNotifier, check_notifier, check_notifier_fails
from intonaco.types import Event

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()
EVENT = Event(
    at=1_700_000_000.25,
    service_id="svc",
    kind="rollout.rolled_back",
    subject="u2-1",
    actor="controller",
    text="aborted by ann: ugly ☃",
    event_id=7,
)


class Receiver(ThreadingHTTPServer):
    """Answers as ``answers`` says: a status, or what is done with the handler. Keeps what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answer: int | Callable[[Any, int], None] = 204

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
        answer = self.server.answer
        if isinstance(answer, int):
            self.send_response(answer)
            self.send_header("location", "/elsewhere")
            self.send_header("retry-after", "7")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            answer(self, len(self.server.got))

    def do_GET(self) -> None:
        raise AssertionError("a redirect was followed")

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def hook(url: str, *, secret: bytes | None = None, timeout_s: float = 20.0) -> Webhook:
    return Webhook(url, secret, FakeClock(), timeout_s=timeout_s)


def test_it_keeps_the_contract(receiver: Receiver) -> None:
    check_notifier(hook(receiver.url))
    assert len(receiver.got) == 3


def test_a_receiver_that_is_away_is_an_error_to_be_tried_again() -> None:
    with receiving() as server:
        url = server.url
    check_notifier_fails(hook(url))


def test_check_finds_a_notifier_that_is_silent_about_a_loss() -> None:
    with pytest.raises(AssertionError, match="silent"):
        check_notifier_fails(MemoryNotifier())


def test_what_is_sent_and_how_it_is_signed(receiver: Receiver) -> None:
    """As docs/guides/notifications.md has receivers check it."""
    made = channel(
        NotifierConfig(type="webhook", url=receiver.url, secret="env:HOOK"),
        {"HOOK": SECRET},
        FakeClock(),
    )
    made.notifier.send(EVENT)
    made.notifier.send(EVENT)
    (headers, body), (again, _) = receiver.got
    assert json.loads(body) == {
        "type": "rollout.rolled_back",
        "timestamp": "2023-11-14T22:13:20.250+00:00",
        "id": headers["webhook-id"],
        "service": "svc",
        "event": 7,
        "subject": "u2-1",
        "actor": "controller",
        "text": "aborted by ann: ugly ☃",
    }
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert int(headers["webhook-timestamp"]) == 1_700_000_000
    assert headers["content-type"] == "application/json"
    assert again["webhook-id"] == headers["webhook-id"]


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """Their published example: https://github.com/standard-webhooks/standard-webhooks"""
    secret = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert (
        signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize(
    ("status", "retriable", "gone"),
    [
        (500, True, False),
        (503, True, False),
        (429, True, False),
        (401, True, False),
        (404, True, False),
        (302, True, False),
        (307, True, False),
        (400, False, False),
        (422, False, False),
        (410, True, True),
    ],
)
def test_what_answers_mean(receiver: Receiver, status: int, retriable: bool, gone: bool) -> None:
    receiver.answer = status
    with pytest.raises(Undelivered, match=str(status)) as caught:
        hook(receiver.url).send(EVENT)
    assert (caught.value.retriable, caught.value.gone) == (retriable, gone)
    assert caught.value.wait_s == 7.0
    assert len(receiver.got) == 1  # no redirect was followed


def test_one_that_hangs_or_breaks_off_is_tried_again(receiver: Receiver) -> None:
    over = threading.Event()

    def hang(handler: Any, count: int) -> None:
        over.wait(30)

    receiver.answer = hang
    with pytest.raises(Undelivered, match="no answer in time") as caught:
        hook(receiver.url, timeout_s=0.2).send(EVENT)
    assert caught.value.retriable
    over.set()
    receiver.answer = lambda handler, count: handler.connection.close()
    with pytest.raises(Undelivered, match="cannot be reached") as caught:
        hook(receiver.url).send(EVENT)
    assert receiver.url not in str(caught.value)  # it may hold a secret


def test_of_an_answer_only_the_beginning_is_read(receiver: Receiver) -> None:
    def endless(handler: Any, count: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"no\x1b[2J" * 1000)
        except OSError:
            pass

    receiver.answer = endless
    answer = hook(receiver.url).post(EVENT)
    assert answer.status == 200
    assert len(answer.text) <= MOST_ANSWER
    assert answer.text.isprintable()


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        ({"url": "env:HOOK_URL"}, {}, r"notify\.webhook\.url: HOOK_URL is not set"),
        ({"url": "env:HOOK_URL"}, {"HOOK_URL": "file:///etc/passwd"}, "only http"),
        ({"url": "http://h/", "secret": "env:S"}, {}, r"notify\.webhook\.secret: S is not set"),
        ({"url": "http://h/", "secret": "env:S"}, {"S": "short"}, "can be guessed"),
        ({"url": "http://h/", "secret": "env:S"}, {"S": "whsec_###"}, "not base64"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(
    given: dict[str, str], environ: dict[str, str], message: str
) -> None:
    config = NotifierConfig.model_validate({"type": "webhook", **given})
    with pytest.raises(ConfigError, match=message):
        channel(config, environ, FakeClock())


# ------------------------------------------------------------------------------------ delivery


def until(done: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)  # another thread or process has to come so far


def test_one_receiver_that_hangs_holds_up_neither_the_tick_nor_another(
    receiver: Receiver, tmp_path: Path
) -> None:
    over = threading.Event()
    ledger = Ledger.open(tmp_path / "ledger.db", "svc")
    with ledger.begin() as tx:
        fence = tx.lease("one", time.time(), 1000.0)
    with receiving() as hanging:
        hanging.answer = lambda handler, count: void(over.wait(60))
        channels = [
            Channel(name="hangs", notifier=hook(hanging.url, timeout_s=30.0)),
            Channel(name="well", notifier=hook(receiver.url)),
        ]
        delivery = Delivery(ledger, channels, SystemClock())
        delivery.lead(fence)
        delivery.start()
        with ledger.begin() as tx:
            tx.event(time.time(), "champion", "r", "first")
        delivery.wake()
        until(lambda: hanging.got and receiver.got)
        delivery.lead(fence)  # as each tick does
        delivery.wake()
        over.set()
        delivery.stop(20)
    state = standing(ledger, "well")
    assert state is not None
    assert state.at == 1
    ledger.close()


def void(_: object) -> None:
    return None


def test_nothing_is_lost_when_the_sender_is_killed(receiver: Receiver, tmp_path: Path) -> None:
    """The receiver ends the sender's process by SIGKILL before it answers, right after, and while
    it answers 500; each time another takes over."""
    events, path = 12, tmp_path / "ledger.db"
    ledger = Ledger.open(path, "svc")
    running = {"pid": 0}
    kills = {2: "before", 4: "after", 7: "while failing", 9: "before", 11: "after"}

    def answer(handler: Any, count: int) -> None:
        how = kills.get(count)
        if how == "before":
            os.kill(running["pid"], signal.SIGKILL)
            return
        handler.send_response(500 if how == "while failing" else 204)
        handler.send_header("content-length", "0")
        handler.end_headers()
        if how is not None:
            os.kill(running["pid"], signal.SIGKILL)

    receiver.answer = answer
    with ledger.begin() as tx:
        tx.commit_consumer("notify:hook", {"event": 0}, {}, 0.0)
        for n in range(events):
            tx.event(time.time(), "champion", "r", f"event {n}")
    ledger.close()
    killed = 0
    for life in range(20):
        running["pid"] = os.fork()
        if not running["pid"]:
            _send(path, receiver.url, life)
        status = os.waitpid(running["pid"], 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert killed == len(kills)
    ids: dict[str, str] = {}
    for headers, body in receiver.got:
        text = json.loads(body)["text"]
        assert ids.setdefault(text, headers["webhook-id"]) == headers["webhook-id"]
    assert list(ids) == [f"event {n}" for n in range(events)]  # all of them, in order
    assert len(set(ids.values())) == events
    assert len(receiver.got) - events <= killed  # at most one double a kill


def _send(path: Path, url: str, life: int) -> None:
    """The sender's process: takes the lease, and ends once all was told."""
    code = 1
    try:
        signal.alarm(60)
        ledger = Ledger.open(path, "svc")
        now = time.time() + 100 * life  # the lease of the one before has run out
        with ledger.begin() as tx:
            fence = tx.lease(f"life {life}", now, 10.0)
        webhook = Webhook(url, None, FakeClock(now), timeout_s=20.0)
        clock = FakeClock(now)
        delivery = Delivery(ledger, [Channel(name="hook", notifier=webhook)], clock)
        delivery.lead(fence)
        while (state := standing(ledger, "hook")) is None or state.at < 12:
            clock.advance(1.0)
            delivery.look()
        code = 0
    finally:
        os._exit(code)
