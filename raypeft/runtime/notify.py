"""Tells somebody that the night is over: a command, a webhook, or both.

What is told is data: the command gets it as JSON on its standard input and no shell sees it, the
webhook as the body of a POST. A message that cannot be delivered is reported and fails nothing:
the results are stored long before.
"""

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from raypeft.core.records import Json

COMMAND_SECONDS = 60.0
WEBHOOK_SECONDS = 30.0

MAX_TOLD_CHARS = 300

FROM_ENVIRONMENT = "env:"
"""In front of the name of a variable that holds a webhook's URL: such URLs are often secrets."""


def tell(
    message: Mapping[str, Json],
    *,
    command: Sequence[str] = (),
    webhook: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Deliver a message and return, in words, what could not be delivered.

    Args:
        message: What is told.
        command: A program and its arguments; empty is none.
        webhook: A URL, or `env:NAME`; None is none.
        environment: Where `NAME` is looked up.
    """
    body = json.dumps(message, indent=2, default=str)
    failures = []
    if command:
        failures.append(_run(command, body))
    if webhook is not None:
        failures.append(_post(webhook, body, environment))
    return [failure for failure in failures if failure]


def _run(command: Sequence[str], body: str) -> str:
    what = f"notify.command {command[0]!r}"
    try:
        ended = subprocess.run(
            list(command),
            input=body.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{what} was ended after {COMMAND_SECONDS:.0f} s"
    except (OSError, ValueError) as error:
        return f"{what} could not be run: {error}"
    if ended.returncode == 0:
        return ""
    said = ended.stderr.decode(errors="replace").strip()[-MAX_TOLD_CHARS:]
    return f"{what} left with {ended.returncode}: {said}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A hook that sends its caller elsewhere is misconfigured; the results are not for there."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(webhook: str, body: str, environment: Mapping[str, str]) -> str:
    what, url = "notify.webhook", webhook
    if webhook.startswith(FROM_ENVIRONMENT):
        name = webhook.removeprefix(FROM_ENVIRONMENT)
        what, url = f"notify.webhook ({webhook})", environment.get(name, "")
        if not url:
            return f"{what}: the variable {name} is not set"
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        return f"{what} is no http or https URL"
    request = urllib.request.Request(
        url, data=body.encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        # Not the default opener, which knows file: and ftp: too.
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=WEBHOOK_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"{what} answered with {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        # Neither the URL nor what a library says of it: it may be the secret.
        return f"{what} could not be reached: {type(error).__name__}"
