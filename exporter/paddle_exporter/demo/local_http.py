"""GET from servers on this machine, past any proxy that the environment names."""

from __future__ import annotations

import http.client
import json
import urllib.parse
import urllib.request
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoAnswerError(Exception):
    """The server did not answer, or not with what was asked for."""


def get(url: str, timeout: float = 2.0, **query: str) -> bytes:
    """The body of the answer; NoAnswerError if there is none, or none that says 200."""
    if query:
        url += "?" + urllib.parse.urlencode(query)
    try:
        with _opener.open(url, timeout=timeout) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise NoAnswerError(f"{url}: {error}") from error


def get_json(url: str, timeout: float = 2.0, **query: str) -> Any:
    """The body of the answer as JSON; NoAnswerError as in ``get``."""
    try:
        return json.loads(get(url, timeout, **query))
    except ValueError as error:
        raise NoAnswerError(f"{url}: {error}") from error
