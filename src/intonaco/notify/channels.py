"""The configuration's notifiers."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.clock import Clock
from intonaco.codec import digest
from intonaco.config import NotifierConfig
from intonaco.errors import ConfigError
from intonaco.notify.delivery import Channel
from intonaco.notify.log import LogNotifier
from intonaco.notify.webhook import Webhook, secret_bytes


def channel(config: NotifierConfig, environ: Mapping[str, str], clock: Clock) -> Channel:
    """Raises ConfigError: for a variable that is not set, an address that is none, a secret that
    can be guessed."""
    if config.type == "log":
        return Channel(name=config.name, notifier=LogNotifier(), events=config.patterns)
    field = f"notify.{config.name}"
    url = _given(f"{field}.url", str(config.url), environ)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{field}.url: only http:// and https:// are posted to")
    secret = None
    if config.secret is not None:
        try:
            secret = secret_bytes(_given(f"{field}.secret", config.secret, environ))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(
                text if text.startswith(field) else f"{field}.secret: {text}", hint=error.hint
            ) from None
    return Channel(
        name=config.name,
        notifier=Webhook(url, secret, clock, timeout_s=config.timeout_s),
        events=config.patterns,
        give_up_s=config.give_up_s,
        target=digest(url)[:16],
    )


def _given(field: str, value: str, environ: Mapping[str, str]) -> str:
    variable = value.removeprefix("env:")
    if variable == value:
        return value
    if not environ.get(variable):
        raise ConfigError(
            f"{field}: {variable} is not set in the environment",
            hint="set it where the controller is started",
        )
    return environ[variable]
