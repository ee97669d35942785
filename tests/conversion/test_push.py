"""A checkpoint and a data set go to a Hub and come back, with this package and without it; nothing is mocked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from .hub_server import OWNER_TOKEN, Hub
from .hub_sessions import DATA, NANO, REPORT, SECRET, run


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def published(hub: Hub, folder: Path) -> dict[str, Any]:
    facts, output = run("publish", folder, "home", HF_ENDPOINT=hub.endpoint, HF_TOKEN=OWNER_TOKEN)
    assert OWNER_TOKEN not in output + json.dumps(facts)
    return facts


@pytest.fixture(scope="module")
def elsewhere(hub: Hub, folder: Path, published: dict[str, Any]) -> dict[str, Any]:
    """What a machine without this package, and without a token, found."""
    return run("load_without_package", folder, "elsewhere", HF_ENDPOINT=hub.endpoint)[0]


@pytest.fixture(scope="module")
def data(hub: Hub, folder: Path) -> dict[str, Any]:
    facts, output = run("publish_data", folder, "home-of-data", HF_ENDPOINT=hub.endpoint, HF_TOKEN=OWNER_TOKEN)
    assert OWNER_TOKEN not in output + json.dumps(facts)
    return facts


def test_a_plan_names_every_file_and_sends_none(published: dict[str, Any]) -> None:
    plan = published["plan"]
    assert not published["there after the plan"]
    assert "will be created" in plan and "apache-2.0" in plan and "report.json" in plan
    for name in ("model.safetensors", "config.json", "README.md", "modeling_a2mae.py"):
        assert re.search(rf"\+ {re.escape(name)} .*[kM]?B  added", plan)
    assert "--yes" in plan


def test_a_checkpoint_is_one_commit(hub: Hub, published: dict[str, Any]) -> None:
    repository = hub.repositories["models", NANO]
    first = next(sha for sha, title in repository.titles.items() if title == "Push nano with a2mae-hub")
    assert list(repository.commits)[1] == first
    files = repository.files(first)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(files)
    assert first in published["push"]


def test_the_configurations_name_the_model_files_beside_them(hub: Hub, published: dict[str, Any]) -> None:
    files = hub.repositories["models", NANO].files()
    named = {
        **json.loads(files["config.json"])["auto_map"],
        **json.loads(files["preprocessor_config.json"])["auto_map"],
    }
    assert {"AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoBackbone", "AutoImageProcessor"} <= set(named)
    for module, name in (one.split(".") for one in named.values()):
        assert f"\nclass {name}(" in files[f"{module}.py"].decode()


def test_what_is_there_is_not_sent_again(hub: Hub, published: dict[str, Any]) -> None:
    assert "0 files to send" in published["pushed again"] and "nothing had changed" in published["pushed again"]
    # Once for each repository that holds them.
    assert hub.count("PUT", f"/lfs/models/{NANO}/") == 1
    assert hub.count("PUT", f"/lfs/models/{SECRET}/") == 1


def test_with_the_package_the_auto_classes_need_no_remote_code(published: dict[str, Any]) -> None:
    assert published["classes"] == [
        "a2mae_hub.modeling.configuration_a2mae.A2MAEConfig",
        "a2mae_hub.modeling.modeling_a2mae.A2MAEModel",
        "a2mae_hub.modeling.modeling_a2mae.A2MAEForPreTraining",
        "a2mae_hub.modeling.modeling_a2mae.A2MAEBackbone",
        "a2mae_hub.modeling.image_processing_a2mae.A2MAEImageProcessor",
    ]
    assert published["from the Hub"] == published["here"]


def test_without_the_package_the_repository_brings_the_code(
    published: dict[str, Any], elsewhere: dict[str, Any]
) -> None:
    assert elsewhere["import"].startswith("ModuleNotFoundError")
    assert all(name.startswith("transformers_modules.org.") for name in elsewhere["classes"])
    np.testing.assert_allclose(elsewhere["features"], published["here"], rtol=1e-5, atol=1e-6)


def test_the_code_of_the_card_runs_as_it_is_written(published: dict[str, Any], elsewhere: dict[str, Any]) -> None:
    # Two images of 4 × 4 patches, and the class token.
    shapes = "torch.Size([1, 32]) torch.Size([1, 33, 32])"
    assert published["card prints"] == [shapes, shapes]
    assert elsewhere["card prints"] == shapes


def test_the_card_tells_the_hub_what_was_measured(published: dict[str, Any]) -> None:
    metadata = yaml.safe_load(published["card"].split("---\n")[1])
    assert (metadata["library_name"], metadata["license"]) == ("transformers", "apache-2.0")
    assert metadata["pipeline_tag"] == "image-feature-extraction" and metadata["datasets"] == [DATA]
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    expected = REPORT["tasks"][0]["scores"]["kNN accuracy"]["model"]
    assert result["metrics"][0]["value"] == pytest.approx(expected, abs=5e-5)


def test_a_new_file_is_all_that_the_next_plan_sends(published: dict[str, Any]) -> None:
    signs = re.findall(r"^  ([+~=-]) ", published["changed plan"], re.MULTILINE)
    assert signs.count("+") == 1 and set(signs) == {"+", "="}
    assert "1 file to send" in published["changed plan"]


def test_a_pull_request_and_a_branch_leave_main_as_it_is(hub: Hub, published: dict[str, Any]) -> None:
    repository = hub.repositories["models", NANO]
    assert "/discussions/1" in published["request"] and "new branch" in published["branch"]
    assert "LICENSE" not in repository.files("main")
    assert "LICENSE" in repository.files("refs/pr/1") and "LICENSE" in repository.files("next")


def test_private_is_private_from_the_first_commit(hub: Hub, published: dict[str, Any]) -> None:
    assert hub.repositories["models", SECRET].private
    assert not hub.repositories["models", NANO].private
    assert "is public" in published["public made private"]
    assert "is private" in published["private made public"]


def test_what_is_not_part_of_a_checkpoint_is_named_and_stays_here(hub: Hub, published: dict[str, Any]) -> None:
    assert "left out checkpoint-2/, optimizer.pt" in published["plan"]
    assert "optimizer.pt" not in hub.repositories["models", NANO].files()


def test_a_licence_that_is_told_is_that_of_the_card(hub: Hub, published: dict[str, Any]) -> None:
    assert re.search(r"licence +cc-by-nc-4\.0", published["secret"])
    assert b"license: cc-by-nc-4.0" in hub.repositories["models", SECRET].files()["README.md"]


def test_a_private_checkpoint_says_that_a_token_is_missing(elsewhere: dict[str, Any]) -> None:
    assert SECRET in elsewhere["private"] and "private" in elsewhere["private"] and "token" in elsewhere["private"]


def test_the_cache_is_enough_without_the_network(
    hub: Hub, folder: Path, published: dict[str, Any], elsewhere: dict[str, Any]
) -> None:
    before = len(hub.requests)
    facts = run(
        "load_offline", folder, "elsewhere", HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1", HF_TOKEN=OWNER_TOKEN
    )[0]
    assert facts["by its own code"] == elsewhere["features"] and not facts["package"]
    assert facts["features"] == published["here"]
    assert facts["push"].startswith("ConnectionError") and "HF_HUB_OFFLINE" in facts["push"]
    assert len(hub.requests) == before


def test_shards_stream_from_the_hub(data: dict[str, Any]) -> None:
    ids = [f"{shard}-{at}" for shard in range(3) for at in range(2)]
    assert data["datasets"] == ids
    assert data["load"] == ids


def test_a_data_set_gets_its_card_and_loses_what_its_folder_lost(hub: Hub, data: dict[str, Any]) -> None:
    assert "cc0-1.0" in data["plan"] and "written into the folder" in data["plan"]
    assert re.search(r"- grid-00002.parquet .* removed", data["fewer"])
    files = hub.repositories["datasets", DATA].files()
    assert [name for name in files if name.endswith(".parquet")] == ["grid-00000.parquet", "grid-00001.parquet"]
    assert DATA in files["README.md"].decode()


def test_the_card_of_a_data_set_follows_its_shards_and_keeps_its_licence(hub: Hub, data: dict[str, Any]) -> None:
    assert "nothing had changed" in data["again"]
    assert re.search(r"~ README.md .* changed", data["fewer"])
    card = hub.repositories["datasets", DATA].files()["README.md"].decode()
    assert "of 4 of 4 sets" in card
    assert "license: cc0-1.0" in card and "The data set as a whole: CC0-1.0." in card


def test_a_card_of_ones_own_stays(data: dict[str, Any]) -> None:
    assert data["card kept"] and re.search(r"licence +mit\n *card +README.md of the folder", data["card of one's own"])
    assert (
        data["licence beside it"].startswith("AssertionError") and "give the licence there" in data["licence beside it"]
    )


def test_what_is_no_part_of_a_data_set_is_named(hub: Hub, data: dict[str, Any]) -> None:
    assert "left out scene.tif" in data["plan"]
    assert "scene.tif" not in hub.repositories["datasets", DATA].files()
    assert "foreign.parquet" in data["foreign parquet"] and "ValueError" in data["foreign parquet"]


def test_the_training_is_told_without_the_ways_through_the_machine(hub: Hub, published: dict[str, Any]) -> None:
    files = hub.repositories["models", NANO].files()
    told = json.loads(files["training.json"])
    assert told["settings"]["shards"][0]["path"] == "places" and told["seconds"] == 60
    assert b"somebody" not in files["training.json"] + files["finetuning.json"]
    assert "| places | 12 |" in published["card"]


def test_no_token_leaves_the_hub(hub: Hub, published: dict[str, Any], data: dict[str, Any]) -> None:
    assert hub.leaks == []
