"""What can go wrong with the Hugging Face Hub, in one sentence that names the repository and the way out, no token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The HTTP library of huggingface_hub, whose errors are no OSErrors, is one in its version 1 and another in 2.
_ERRORS: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)

# Seconds without an answer, or without a byte. The Hub may take a while to commit many shards.
PATIENCE = 300.0

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def in_plain_words(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Turn an error of the Hub's client into one of Python's own, one sentence long.

    Args:
        repo_id: The repository in question.
        token: What must not be shown, beside anything else that looks like a token.

    Raises:
        PermissionError: If the Hub wants a token, another token, or one that may do more.
        FileNotFoundError: If there is no such repository, or none that the token may see, or no such branch.
        ConnectionError: If the Hub cannot be reached, or fails.
        ValueError: If it refuses for another reason.
    """
    try:
        yield
    except _ERRORS as error:
        if isinstance(error, OSError) and error.filename:
            raise
        # What led to it may hold requests with their headers, so nobody shall print it.
        raise _explained(error, repo_id, token or get_token()) from None


def no_endless_waiting(patience: float = PATIENCE) -> None:
    """Let the Hub's client of this process give up where the Hub falls silent; by itself it waits for ever.

    For commands, whose process is ours. Uploads are tried again first; after the rest, the same command goes on.

    Args:
        patience: Seconds without an answer, or without a byte.
    """
    get_session().timeout = patience


def without_tokens(text: str, token: str | None = None) -> str:
    """Return a text with tokens of the Hub, and signatures of addresses, blotted out."""
    text = text.replace(token, "***") if token else text
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]+", r"\1", text)
    return re.sub(r"hf_(?:[a-z]+_)?[A-Za-z0-9.-]{20,}", "hf_***", text)


def _explained(error: BaseException, repo_id: str, token: str | None) -> Exception:
    """Return the error to raise in place of one of the client's."""
    told = ""
    if type(error) is RuntimeError and error.__cause__ is not None:
        # "Error while uploading 'model.safetensors' to the Hub."
        told, error = str(error).rstrip(".") + ": ", error.__cause__
    response = getattr(error, "response", None)
    status = None if response is None else response.status_code
    reason = without_tokens(told + " ".join(str(error).split()).rstrip("."), token)
    again = "run the same command again, which goes on where this one stopped"
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f"{repo_id}: the Hub is needed and offline mode is on; unset HF_HUB_OFFLINE.")
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"{repo_id}: the Hub wants to know who you are; {_LOG_IN}.")
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return PermissionError(
            f"{repo_id}: the Hub does not accept your token, which is mistyped or has expired; make another at"
            f" huggingface.co/settings/tokens and {_LOG_IN}."
        )
    if status == 403 and not told:
        return PermissionError(
            f"{repo_id}: your token may not write there; take one that may, another owner in the id, or open a pull"
            " request."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo_id}: no such repository, or a private one that your token may not see; check the id, and {_LOG_IN}."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id}: has no such branch; check the revision.")
    if status == 412:
        return ValueError(f"{repo_id}: another commit has come in since the plan was made; make the plan again.")
    # The storage that uploads go to answers 403 when the address that it gave out has expired.
    if status is not None and (status in (403, 429) or status >= 500):
        return ConnectionError(
            f"{repo_id}: {without_tokens(told, token)}the Hub answered with error {status}; {again}."
        )
    if status is not None or isinstance(error, (ValueError, RuntimeError)):
        return ValueError(f"{repo_id}: the Hub refused ({reason}); correct that and push again.")
    return ConnectionError(f"{repo_id}: the connection to the Hub failed ({reason}); check it, and {again}.")


__all__ = ["PATIENCE", "in_plain_words", "no_endless_waiting", "without_tokens"]
