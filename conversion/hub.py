"""Checkpoints and data sets onto the Hugging Face Hub: first a plan, then one push, then a look at what arrived.

A checkpoint goes in one commit, a data set shard by shard. What the Hub holds already, by its hash, is not sent again,
so a push that was interrupted goes on when it is run again.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.inference import Checkpoint, embed, load_checkpoint

from .hub_errors import in_plain_words
from .hub_plan import Plan, PlannedFile, hash_of, is_same, plan_data, plan_model, tree

# Few enough commits for the Hub's rate limit, few enough shards to commit anew after an interruption.
_SHARDS_OF_A_COMMIT = 50
_LARGE = (".parquet", ".safetensors")


def push(plan: Plan, *, token: str | None = None) -> str:
    """Do what a plan says, then fetch what arrived and compare it with what was sent.

    Of a checkpoint everything is fetched, and an image set encoded with it. Of a data set the Hub's hashes of all files
    are compared, and the smallest shard is fetched and read.

    Args:
        plan: Of `plan_model` or `plan_data`.
        token: As in `plan_model`.

    Returns:
        Address of the commit or of the pull request; of the repository where nothing had to be sent.

    Raises:
        PermissionError: If the token may not write there.
        ConnectionError: If the Hub cannot be reached or fails; the same push goes on where this one stopped.
        ValueError: If the Hub refuses the commit, or another one came in between; if what arrived is not what was sent.
    """
    api = HfApi(token=token)
    with in_plain_words(plan.repo_id, token):
        if not plan.exists:
            api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=plan.private, exist_ok=True)
        if plan.is_new_branch:
            api.create_branch(plan.repo_id, branch=plan.revision, repo_type=plan.repo_type, exist_ok=True)
        if plan.changes:
            address, commit = _upload(api, plan)
        else:
            assert plan.parent is not None
            kind = "datasets/" if plan.repo_type == "dataset" else ""
            address, commit = f"{api.endpoint}/{kind}{plan.repo_id}", plan.parent
    _verify(api, plan, commit, token)
    return address


def _upload(api: HfApi, plan: Plan) -> tuple[str, str]:
    """Send the files and commit them; return the address and the id of the last commit."""
    revision, parent, create_pr = plan.revision, plan.parent, plan.create_pr
    address = commit = ""
    for number, files in enumerate(_commits(plan)):
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for file in files:
            if file.content is None:
                operations.append(CommitOperationDelete(file.path))
                continue
            operation = CommitOperationAdd(file.path, file.content)
            operations.append(operation)
            if file.path.endswith(_LARGE):
                # One after the other: what is up stays up when the next one fails.
                api.preupload_lfs_files(
                    plan.repo_id,
                    [operation],
                    repo_type=plan.repo_type,
                    revision=revision,
                    create_pr=create_pr,
                    free_memory=False,
                )
        title = f"Push {plan.folder.name} with a2mae-hub" + (f", part {number + 1}" if number else "")
        done = api.create_commit(
            plan.repo_id,
            operations,
            commit_message=title,
            repo_type=plan.repo_type,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
        commit = parent = done.oid
        if not number:
            address = done.pr_url or done.commit_url
        if create_pr:
            assert done.pr_revision is not None
            revision, create_pr = done.pr_revision, False
    return address, commit


def _commits(plan: Plan) -> Iterator[list[PlannedFile]]:
    """Share the changes out among commits: one, but of a data set so many shards at a time, and the rest at last."""
    shards = [file for file in plan.changes if file.path.endswith(".parquet") and file.content is not None]
    rest = [file for file in plan.changes if file not in shards]
    while len(shards) > _SHARDS_OF_A_COMMIT:
        yield shards[:_SHARDS_OF_A_COMMIT]
        del shards[:_SHARDS_OF_A_COMMIT]
    yield shards + rest


def _verify(api: HfApi, plan: Plan, commit: str, token: str | None) -> None:
    """Raise ValueError unless the Hub gives back what was sent, and it works."""
    sent = {file.path: file for file in plan.files if file.content is not None}
    fetched = list(sent)
    if plan.repo_type == "dataset":
        shards = [file for path, file in sent.items() if path.endswith(".parquet")]
        fetched = ["README.md", min(shards, key=lambda file: file.size).path]
    with TemporaryDirectory(prefix="a2mae-") as name:
        with in_plain_words(plan.repo_id, token):
            there = tree(api, plan.repo_id, plan.repo_type, commit)
            patterns = [glob.escape(path) for path in fetched]
            snapshot_download(
                plan.repo_id,
                repo_type=plan.repo_type,
                revision=commit,
                local_dir=name,
                allow_patterns=patterns,
                token=token,
            )
        for path, file in sent.items():
            assert file.content is not None
            if path not in there or not is_same(there[path], file.content, file.size):
                raise ValueError(f"{plan.repo_id}: the Hub holds another {path} than was sent; push again.")
        for path in fetched:
            content, arrived = sent[path].content, Path(name, path)
            assert content is not None
            if not arrived.is_file() or hash_of(arrived, hashlib.sha256()) != hash_of(content, hashlib.sha256()):
                raise ValueError(
                    f"{plan.repo_id}: {path} came back from the Hub damaged, its hash is not that of what was sent;"
                    " push again, which sends only what is not there and checks once more."
                )
        if plan.repo_type == "dataset":
            from a2mae_hub.stssd import load

            next(iter(load(Path(name, fetched[-1]))))
        else:
            _check_forward_pass(load_checkpoint(plan.folder), load_checkpoint(name), plan.repo_id)


def _check_forward_pass(ours: Checkpoint, theirs: Checkpoint, repo_id: str) -> None:
    """Raise ValueError unless both encode an image set alike."""
    image_set = _any_image_set(ours)
    expected, found = (embed(checkpoint, image_set).pooled for checkpoint in (ours, theirs))
    if not np.isfinite(found).all() or not np.allclose(expected, found, rtol=1e-4, atol=1e-5):
        raise ValueError(f"{repo_id}: what came back encodes images otherwise than what was sent; push again.")


def _any_image_set(checkpoint: Checkpoint) -> ImageSet:
    """Return an image set that a checkpoint takes: values of the sensor it knows first, around their means."""
    config, sensor = checkpoint.model.config, checkpoint.processor.sensors[0]
    bands = sensor.bands[: config.num_channels] if config.spectral_projection == "identity" else sensor.bands
    count = config.released_num_images if config.coordinate_layout == "released" else 2
    side = 4 * config.patch_size
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (count, len(bands), side, side))
    means, stds = (np.array([getattr(band, name) for band in bands])[:, None, None] for name in ("mean", "std"))
    images = [
        Image(
            pixels=(means + stds * noise[index]).astype(np.float32),
            bands=[band.name for band in bands],
            sensor=sensor.name,
            acquired=datetime(2020, 1 + index % 12, 1, tzinfo=timezone.utc),
            gsd=10.0,
            scale=1.0,
            offset=0.0,
        )
        for index in range(count)
    ]
    return ImageSet(images, longitude=3.0, latitude=42.0)


__all__ = ["Plan", "PlannedFile", "plan_data", "plan_model", "push"]
