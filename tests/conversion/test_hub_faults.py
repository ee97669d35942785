"""What a push does when the Hub, the line or the token fails: it goes on where it can, and says plainly where not."""

import json
from typing import Any

import pytest

from .hub_server import EXPIRED_TOKEN, OWNER_TOKEN, STRANGER_TOKEN
from .hub_sessions import run

FINE = "nothing went wrong"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    facts, output = run("meet_faults", tmp_path_factory.mktemp("faults"), "home", HF_DEBUG="1")
    assert "curl" in output  # the client told of every request
    for token in (OWNER_TOKEN, EXPIRED_TOKEN, STRANGER_TOKEN):
        assert token not in output + json.dumps(facts)
    return facts


def test_an_upload_that_fails_is_tried_again(facts: dict[str, Any]) -> None:
    assert facts["uploads, two of them in vain"] == 3


def test_an_upload_that_the_storage_refuses_names_the_file(facts: dict[str, Any]) -> None:
    error = facts["address of the upload expired"]
    assert error.startswith("ConnectionError: org/model: ") and "model.safetensors" in error and "403" in error


def test_a_push_goes_on_after_a_failed_commit_and_sends_no_weights_again(facts: dict[str, Any]) -> None:
    assert facts["commit fails"].startswith("ConnectionError: org/model: ")
    assert "500" in facts["commit fails"] and "run the same command again" in facts["commit fails"]
    assert facts["goes on"] == FINE and facts["changes left"] == 0
    assert facts["uploads after going on"] == facts["uploads, two of them in vain"]


def test_a_download_with_another_hash_is_detected(facts: dict[str, Any]) -> None:
    error = facts["damaged on the way back"]
    assert error.startswith("ValueError: org/model: model.safetensors") and "hash" in error


def test_an_upload_with_another_hash_is_refused_and_goes_on(facts: dict[str, Any]) -> None:
    error = facts["damaged on the way there"]
    assert error.startswith("ValueError: org/released: ") and "model.safetensors" in error and "hash" in error
    assert facts["released layout"] == FINE


def test_a_hub_that_falls_silent_is_not_waited_for_for_ever(facts: dict[str, Any]) -> None:
    assert facts["silent"].startswith("ConnectionError: org/model: ") and "timed out" in facts["silent"]
    assert facts["after the silence"] == FINE


def test_a_download_that_is_cut_or_stalls_goes_on(facts: dict[str, Any]) -> None:
    assert facts["cut and stalled on the way back"] == FINE
    assert facts["downloads"] == 1 + 3


def test_a_commit_in_between_is_not_overwritten(facts: dict[str, Any]) -> None:
    assert facts["overtaken"].startswith("ValueError: org/model: another commit")


def test_weights_that_would_be_loaded_instead_are_removed(facts: dict[str, Any]) -> None:
    assert "  - model-00001-of-00002.safetensors " in facts["old weights"]
    # What is nobody's weights stays.
    assert "besides, 1 file there" in facts["old weights"]


def test_the_check_after_a_push_knows_the_released_layout(facts: dict[str, Any]) -> None:
    assert facts["released layout"] == FINE


def test_an_interrupted_upload_of_shards_goes_on_with_the_one_that_is_missing(facts: dict[str, Any]) -> None:
    # Two shards arrived and the third was on its way; the figures and the third follow.
    assert facts["interrupted after"] == 3
    assert facts["went on"] == FINE
    assert facts["sent after going on"] == 3


def test_many_shards_are_several_commits_of_one_request(facts: dict[str, Any]) -> None:
    assert facts["request"].endswith("/discussions/1")
    assert facts["titles"] == ["Push shards with a2mae-hub", "Push shards with a2mae-hub, part 2"]
    assert facts["shards of the request"] == ["city-00000.parquet", "city-00001.parquet", "grid-00002.parquet"]
    assert facts["shards of main"] == [f"grid-0000{number}.parquet" for number in range(3)]


def test_a_damaged_shard_is_detected_on_reading(facts: dict[str, Any]) -> None:
    assert facts["read"] == 6
    assert facts["damaged on reading"].startswith("ValueError: ") and "damaged" in facts["damaged on reading"]


def test_a_token_that_does_not_do_is_named_and_not_shown(facts: dict[str, Any]) -> None:
    for name in ("expired", "expired on the way"):
        assert facts[name].startswith("PermissionError: org/model: ") and "expired" in facts[name]
    assert facts["no token"].startswith("PermissionError: org/model: ") and "hf auth login" in facts["no token"]
    for name in ("stranger, private", "stranger, public"):
        assert facts[name].startswith("PermissionError: org/model: ") and "may not write" in facts[name]
    # The Hub's own message quoted the token.
    assert "I was told" in facts["owner"] and "***" in facts["owner"]


def test_a_private_data_set_says_that_the_token_may_not_read_it(facts: dict[str, Any]) -> None:
    assert facts["private data"].startswith("FileNotFoundError: ") and "token" in facts["private data"]


def test_a_hub_that_is_not_there_is_a_connection_error(facts: dict[str, Any]) -> None:
    assert facts["nobody there"].startswith("ConnectionError: org/model: ") and "connection" in facts["nobody there"]


def test_large_files_come_and_go_without_the_token(facts: dict[str, Any]) -> None:
    assert facts["leaks"] == []


def test_every_error_is_one_sentence(facts: dict[str, Any]) -> None:
    errors = [text for text in facts.values() if isinstance(text, str) and "Error: " in text]
    assert len(errors) >= 9
    assert all("\n" not in text and text.endswith(".") for text in errors)
