"""What a push to the Hugging Face Hub would do: the files, their sizes and hashes beside those that are there.

A checkpoint is its weights, configurations, card and `training.json`, and the model files of this package, which
`auto_map` names, so that it loads with this package and, under `trust_remote_code=True`, without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from a2mae_hub import modeling
from a2mae_hub.checkpoints import checkpoint as embedded_checkpoint
from a2mae_hub.checkpoints import embedded
from a2mae_hub.inference import architectures_of, load_checkpoint
from a2mae_hub.model_cards import model_card, shown_name
from a2mae_hub.modeling import modeling_a2mae, tasks_a2mae

from .hub_errors import PATIENCE, in_plain_words, without_tokens

ADDED, CHANGED, SAME, REMOVED = "added", "changed", "same", "removed"

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_BESIDE = ("training.json", "finetuning.json", "results.json", "LICENSE")
# What stands beside shards: card, figures, reports, terms. Anything else in the folder is no part of the data set.
_BESIDE_SHARDS = (".parquet", ".md", ".png", ".json", ".yaml", ".yml", ".txt", "LICENSE")

_OF_AUTO_CLASS = {"AutoModel": "A2MAEModel", "AutoBackbone": "A2MAEBackbone"}


@dataclass(frozen=True)
class PlannedFile:
    """One file of a push.

    Attributes:
        path: In the repository.
        content: Where it lies, or its bytes; None for one that is removed.
        size: Bytes.
        change: "added", "changed", "same" (not sent) or "removed".
    """

    path: str
    content: Path | bytes | None
    size: int
    change: str


@dataclass(frozen=True)
class Plan:
    """What a push will do; nothing is sent before `push`.

    Attributes:
        folder: What is pushed.
        repo_id: Where to ("org/name").
        repo_type: "model" or "dataset".
        exists: Whether the repository is there already.
        private: Whether it is, or will be made, private; None leaves that to the owner's settings.
        revision: Branch.
        is_new_branch: Whether the branch has to be created.
        create_pr: Whether to open a pull request in place of a commit on the branch.
        parent: Commit that the plan was compared with; None where there is none.
        licence: As the card says.
        card: Where the card comes from.
        files: What is pushed and removed, in the order of their paths.
        kept: Files that are there and stay untouched.
        left_out: What lies in the folder and is not pushed, folders with a stroke at the end, hidden ones unmentioned.
    """

    folder: Path
    repo_id: str
    repo_type: str
    exists: bool
    private: bool | None
    revision: str
    is_new_branch: bool
    create_pr: bool
    parent: str | None
    licence: str | None
    card: str
    files: tuple[PlannedFile, ...]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def changes(self) -> list[PlannedFile]:
        """The files that a commit has to add, change or remove."""
        return [file for file in self.files if file.change != SAME]

    def __str__(self) -> str:
        """Return the plan as text, a line a file."""
        state = "is there" if self.exists else "will be created"
        seen = {True: ", private", False: ", public", None: ""}[self.private]
        branch = self.revision + (" (new branch)" if self.is_new_branch else "")
        where = f"pull request to {branch}" if self.create_pr else f"branch {branch}"
        width = max((len(file.path) for file in self.files), default=0)
        signs = {ADDED: "+", CHANGED: "~", SAME: "=", REMOVED: "-"}
        sent = [file for file in self.changes if file.content is not None]
        rows = [
            f"  {signs[file.change]} {file.path:<{width}}  {_size(file.size):>9}  {file.change}" for file in self.files
        ]
        lines = [
            f"{self.repo_id}: {self.repo_type} repository, {state}{seen}; {where}",
            f"  licence  {self.licence or 'none given'}",
            f"  card     {self.card}",
            *rows,
            *([f"  left out {', '.join(self.left_out)}"] if self.left_out else []),
            f"  {_files(len(sent))} to send, {_size(sum(file.size for file in sent))}"
            + (f"; besides, {_files(len(self.kept))} there that nothing happens to" if self.kept else ""),
        ]
        return "\n".join(lines)


def plan_model(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    report: str | os.PathLike[str] | None = None,
    datasets: Sequence[str] = (),
    licence: str | None = None,
    token: str | None = None,
) -> Plan:
    """Compare a checkpoint with what the Hub holds. Nothing is sent, and nothing written.

    Args:
        folder: As `save_pretrained` or `a2mae pretrain` wrote it, or the name of a checkpoint of the package. A
            README.md in it is the card; where there is none, one is made (`a2mae_hub.model_cards.model_card`).
        repo_id: Where to push ("org/name").
        private: Whether a new repository is private; None leaves that to the owner's settings.
        revision: Branch, created where it is not there; None is "main".
        create_pr: Open a pull request.
        report: What `a2mae evaluate -o report.json` wrote, for the card.
        datasets: Ids on the Hub of the data sets that it was trained on, for the card.
        licence: Of the weights, for the card: an SPDX identifier, or another name; None is Apache-2.0.
        token: Of the Hub; None takes HF_TOKEN or that of `hf auth login`.

    Returns:
        The plan, for `push`.

    Raises:
        FileNotFoundError: If the folder, or a file of it, is not there.
        PermissionError: If there is no token, or it is not accepted.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the checkpoint, an argument or the card is not what it should be.
    """
    name = os.fspath(folder)
    folder = embedded_checkpoint(name) if name in embedded() and not os.path.isdir(name) else Path(folder)
    _check(folder, repo_id, revision, create_pr)
    load_checkpoint(folder)
    contents: dict[str, Path | bytes] = {
        path.name: path for pattern in _WEIGHTS + _BESIDE for path in sorted(folder.glob(pattern))
    }
    for name in {"training.json", "finetuning.json"} & contents.keys():
        contents[name] = _without_paths(folder / name)
    contents["config.json"] = _with_auto_map(folder / "config.json", _model_classes(architectures_of(folder)))
    processors = {"AutoImageProcessor": "image_processing_a2mae.A2MAEImageProcessor"}
    contents["preprocessor_config.json"] = _with_auto_map(folder / "preprocessor_config.json", processors)
    contents |= {path.name: path for path in Path(modeling.__path__[0]).glob("*_a2mae.py")}
    own = folder / "README.md"
    if own.is_file():
        if report is not None or datasets or licence is not None:
            raise ValueError(
                f"{own}: is the card already; write results, data sets and licence there, or move it away to have one"
                " made."
            )
        contents["README.md"], card = own, "README.md of the folder"
    else:
        text = model_card(
            folder, report, repo_id=repo_id, datasets=datasets, licence="Apache-2.0" if licence is None else licence
        )
        results = f"results of {os.path.basename(report)}" if report else "the results that the package tells"
        contents["README.md"] = text.encode()
        card = f"made from the template, {results if 'model-index:' in text else 'without measured results'}"
    left_out = sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if path.name not in contents and not path.name.startswith(".")
    )
    return _compare(folder, repo_id, "model", contents, left_out, card, private, revision, create_pr, token)


def plan_data(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> Plan:
    """Compare a data set with what the Hub holds. Nothing is sent.

    Shards are pushed, and card, figures, reports (.json, .yaml, .txt) and terms beside them; the rest of the folder is
    left out and named. Shards of the repository that the folder does not have are removed, for readers would take them
    in.

    Args:
        folder: Of shards, as `a2mae stssd build` or `prune` wrote it. Where it has no card, README.md, one is written
            into it (`a2mae_hub.stssd.card.write_card`), which reads all shards; one that was written so before is
            written anew, as the shards are now. A card of your own stays.
        repo_id: Where to push ("org/name").
        private: As in `plan_model`.
        revision: As in `plan_model`.
        create_pr: As in `plan_model`.
        licence: Of the data set as a whole, for the card (SPDX); None keeps what a card that was written before says.
        token: As in `plan_model`.

    Returns:
        The plan, for `push`.

    Raises:
        FileNotFoundError: If the folder is not there or has no shard.
        PermissionError: If there is no token, or it is not accepted.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If a shard is damaged, the build has not finished, or an argument or the card cannot be.
    """
    from a2mae_hub.stssd.shards import find_shards, open_shards

    folder = Path(folder)
    _check(folder, repo_id, revision, create_pr)
    for _ in open_shards(find_shards(folder)):
        pass  # what is no shard is said before anything is sent
    card = _card_of_data(folder, licence, repo_id)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    seen = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.split("/"))}
    contents: dict[str, Path | bytes] = {name: path for name, path in seen.items() if name.endswith(_BESIDE_SHARDS)}
    left_out = sorted(seen.keys() - contents.keys())
    return _compare(folder, repo_id, "dataset", contents, left_out, card, private, revision, create_pr, token)


def _card_of_data(folder: Path, licence: str | None, repo_id: str) -> str:
    """Write the card of a data set, unless the folder has one of the user's own; return where it comes from."""
    from a2mae_hub.stssd.card import MARK, write_card

    path, name = folder / "README.md", None
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if before is not None:
        if MARK not in before:
            if licence is not None:
                raise ValueError(f"{path}: is a card of your own; give the licence there.")
            return "README.md of the folder"
        # What `a2mae stssd card` was told, and no shard knows.
        whole = re.search(r"^The data set as a whole: (.+)\.$", before, re.MULTILINE)
        title = re.search(r"^# (.+)$", before, re.MULTILINE)
        licence = licence or (whole[1] if whole else None)
        name = title[1] if title and title[1] != folder.absolute().name else None
    write_card(folder, name=name, licence=licence, repo_id=repo_id)
    return "README.md, written into the folder now" if before is None else "README.md, written anew for the shards"


def _check(folder: Path, repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Raise where an argument cannot be, before anything is asked of the Hub."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name the one to push.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id) or ".." in repo_id or "--" in repo_id:
        raise ValueError(f"repo_id={without_tokens(repo_id)!r}: an id on the Hub is written owner/name.")
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"revision={revision!r}: a pull request goes to main; leave the revision or the request out.")


def _model_classes(architectures: Sequence[str] = ()) -> dict[str, str]:
    """Return, for every Auto class of transformers that one of our classes serves, the file and the class.

    Args:
        architectures: Of the checkpoint. Maps of change come by the Auto class of segmentations, as there is no other.
    """
    found = {auto: f"modeling_a2mae.{name}" for auto, name in _OF_AUTO_CLASS.items()}
    for module in (modeling_a2mae, tasks_a2mae):
        for name in module.__all__:
            task = re.fullmatch(r"A2MAE(For\w+)", name)
            if task and hasattr(transformers, f"AutoModel{task[1]}"):
                found[f"AutoModel{task[1]}"] = f"{module.__name__.rpartition('.')[2]}.{name}"
    if "A2MAEForChangeDetection" in architectures:
        found["AutoModelForSemanticSegmentation"] = "tasks_a2mae.A2MAEForChangeDetection"
    return {"AutoConfig": "configuration_a2mae.A2MAEConfig", **found}


def _with_auto_map(path: Path, auto_map: dict[str, str]) -> bytes:
    """Return a configuration that names the model files which stand beside it."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps({**settings, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n").encode()


def _without_paths(path: Path) -> bytes:
    """Return what a training told of itself, without the ways through this machine to its data and its start."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        run = report
        while run is not None:
            settings = run["settings"]
            for entry in settings.get("shards", ()):
                entry["path"] = shown_name(entry["path"])
            if settings["checkpoint"] is not None:
                settings["checkpoint"] = shown_name(settings["checkpoint"])
            run = run.get("before")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no report of a training ({error!r}); move it away to push.") from error
    return (json.dumps(report, indent=1) + "\n").encode()


def _compare(
    folder: Path,
    repo_id: str,
    repo_type: str,
    contents: dict[str, Path | bytes],
    left_out: Sequence[str],
    card: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    token: str | None,
) -> Plan:
    """Compare files with those of the repository, by their hashes."""
    licence = _licence(contents["README.md"], folder)
    api, branch = HfApi(token=token), revision or "main"
    exists, parent, is_public = True, None, None
    there: dict[str, RepoFile] = {}
    with in_plain_words(repo_id, token):
        api.whoami()
        try:
            info = api.repo_info(repo_id, repo_type=repo_type, timeout=PATIENCE)
            is_public = not info.private
            parent = api.repo_info(repo_id, repo_type=repo_type, revision=branch, timeout=PATIENCE).sha
            there = tree(api, repo_id, repo_type, branch)
        except RevisionNotFoundError:
            there = tree(api, repo_id, repo_type, "main")
        except RepositoryNotFoundError:
            exists = False
    if private and is_public:
        raise ValueError(f"{repo_id}: is public; make it private in its settings first, or leave private out.")
    if private is False and exists and not is_public:
        raise ValueError(f"{repo_id}: is private; make it public in its settings first, or leave public out.")
    files = []
    for path, content in contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        same = path in there and is_same(there[path], content, size)
        files.append(PlannedFile(path, content, size, SAME if same else CHANGED if path in there else ADDED))
    # Old weights beside new ones, or shards of another build, would be loaded with them.
    loaded = ".parquet" if repo_type == "dataset" else (".safetensors", ".safetensors.index.json")
    for path, file in there.items():
        if path not in contents and path.endswith(loaded):
            files.append(PlannedFile(path, None, file.size, REMOVED))
    kept = sorted(set(there) - {file.path for file in files})
    return Plan(
        folder=folder,
        repo_id=repo_id,
        repo_type=repo_type,
        exists=exists,
        private=not is_public if exists else private,
        revision=branch,
        is_new_branch=parent is None and branch != "main",
        create_pr=create_pr,
        parent=parent,
        licence=licence,
        card=card,
        files=tuple(sorted(files, key=lambda file: file.path)),
        kept=tuple(kept),
        left_out=tuple(left_out),
    )


def _licence(card: Path | bytes, folder: Path) -> str | None:
    """Return the licence that a card names."""
    text = card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")
    try:
        return RepoCard(text).data.to_dict().get("license")
    except ValueError as error:
        raise ValueError(
            f"{folder / 'README.md'}: its metadata cannot be read ({' '.join(str(error).split())}); correct it there."
        ) from error


def tree(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, RepoFile]:
    """Return the files of a revision by their paths."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def is_same(there: RepoFile, content: Path | bytes, size: int) -> bool:
    """Return whether the Hub holds a file as it is here: it knows large ones by SHA-256, small ones as git does."""
    if there.size != size:
        return False
    if there.lfs is not None:
        return hash_of(content, hashlib.sha256()) == there.lfs.sha256
    return hash_of(content, hashlib.sha1(b"blob %d\0" % size)) == there.blob_id


def hash_of(content: Path | bytes, digest: Any) -> str:
    """Return the hash of a file or of bytes."""
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _files(count: int) -> str:
    """Return a number of files in words."""
    return "1 file" if count == 1 else f"{count} files"


def _size(count: float) -> str:
    """Return a number of bytes in a unit that reads well."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


__all__ = ["Plan", "PlannedFile", "hash_of", "is_same", "plan_data", "plan_model", "tree"]
