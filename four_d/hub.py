"""Models of the Hugging Face hub by id, ``org/name``: fetched and pushed as exported folders, by the extra ``hub``.

Only weights (safetensors), ``config.json`` and the card are fetched, and nothing that was fetched is run as code. Where
the hub is, what token it is asked with and where copies are kept is huggingface_hub's: ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HOME``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from four_d.checkpoints import CARD, CONFIG, WEIGHTS
from four_d.errors import UserError, first_line

FETCHED = (CONFIG, WEIGHTS, CARD)
"""Files of a model on the hub that `fetch` takes."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".safetensors", ".pt2", ".ckpt", ".json", ".yaml")
_TOKEN = "set HF_TOKEN to one of yours, or run `hf auth login`"


def is_id(name: str | Path) -> bool:
    """True for ``org/name``, unless that, or ``org``, is a file or folder here."""
    text = str(name)
    if not _ID.fullmatch(text) or text.endswith(_FILES):
        return False
    return not (Path(text).exists() or Path(text).parent.exists())


def fetch(name: str) -> Path:
    """Folder with the newest state of a model of the hub, in huggingface_hub's cache; without a network the last one.

    Raises:
        UserError: the extra is missing, the hub cannot be reached and has not been before, it has no such model, the
            token is wrong, or the model is not one of four_d.

    """
    _check_extra(f"{name} is no folder here, and to take it from the hub needs huggingface_hub")
    from huggingface_hub import snapshot_download

    with _told(name, f"{name} is no folder here, and "):
        folder = Path(snapshot_download(name, allow_patterns=list(FETCHED), endpoint=_endpoint()))
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{name} on the hub has no {missing[0]}, so it is no model of four_d; choose one that is")
    return folder


def upload(files: Mapping[str, bytes | Path], name: str, *, private: bool = False) -> str:
    """Write files into a model of the hub in one commit, and return its address. The model is made if there is none.

    Args:
        files: name there → content, or the file that has it.
        name: ``org/name``.
        private: of a model that is made: only its owner sees it.

    Raises:
        UserError: a name that cannot be, the extra is missing, the hub cannot be reached, or the token may not write.

    """
    if not _ID.fullmatch(name):
        raise UserError(f"{name!r} is no name of a model on the hub; give org/name, or your own user name for org")
    _check_extra("to push to the hub needs huggingface_hub")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=_endpoint())
    with _told(name, ""):
        address = api.create_repo(name, private=private, exist_ok=True)
        parts = [
            CommitOperationAdd(each, str(part) if isinstance(part, Path) else part) for each, part in files.items()
        ]
        api.create_commit(name, parts, commit_message="four-d push")
    return str(address)


def _endpoint() -> str | None:
    """Address of the hub; None: the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def _check_extra(what: str) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"{what}; install it with: pip install 'four_d[hub]'")


@contextmanager
def _told(name: str, before: str) -> Generator[None]:
    """Turn the client's errors into one `UserError` that names the remedy."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{before}{name} on the hub is gated; accept its terms on its page, and {_TOKEN}") from error
    except HFValidationError as error:
        raise UserError(f"{before}{name} is no name of a model on the hub ({first_line(error)})") from error
    except HfHubHTTPError as error:
        raise UserError(before + _refused(name, error.response.status_code, first_line(error))) from error
    except (LocalEntryNotFoundError, HTTPError) as error:
        raise UserError(
            f"{before}the hub cannot be reached ({first_line(error)}); check the network, or give a folder"
        ) from error


def _refused(name: str, status: int, said: str) -> str:
    """Reason and remedy of an answer that is an error."""
    if status == 401:
        return f"the hub does not know who asks for {name}, or has no such model (401); check the name, and {_TOKEN}"
    if status == 403:
        return f"this token may not do that to {name} (403); {_TOKEN} that may write there"
    if status == 404:
        return f"the hub has no model {name} (404); check the name, and for a private one {_TOKEN}"
    return f"the hub refused {name}: {said}"
