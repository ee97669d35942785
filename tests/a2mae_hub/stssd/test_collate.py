"""Batches of streamed sets: what the processor makes of them, and masks that belong to the set."""

import pickle
from datetime import date

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from a2mae_hub.landscape import simulate_place
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining
from a2mae_hub.simulate import Acquisition, observe, overpass
from a2mae_hub.stssd import ImageSetCollator, load
from a2mae_hub.stssd.schema import StoredSet, from_row
from a2mae_hub.stssd.shards import ShardWriter

PATCH_SIZE = 8


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Four streamed sets of simulated scenes, of one to three images on two pixel grids."""
    folder = tmp_path_factory.mktemp("simulated")
    place = simulate_place(1, extent=480.0, fine_resolution=10.0)
    taken = [
        observe(place, Acquisition(sensor, overpass(day, place.longitude)), ["blue", "green", "red", "nir"])
        for day in (date(2023, 7, 5), date(2023, 10, 22))
        for sensor in ("sentinel-2-l2a", "landsat-8-sr")
    ]
    with ShardWriter(folder / "simulated.parquet") as shard:
        for number, indices in enumerate(([0, 1, 2], [0], [1, 2], [3, 1, 0])):
            shard.write(StoredSet(images=[taken[index] for index in indices], id=f"place-{number}"))
    return list(load(folder, seed=4))


@pytest.fixture(scope="module")
def processor():
    return A2MAEImageProcessor(patch_size=PATCH_SIZE)


def test_a_batch_is_what_the_processor_makes_of_the_sets(examples, processor):
    batch = ImageSetCollator(processor)(examples)
    expected = processor([from_row(example) for example in examples], return_tensors="pt")
    assert batch.keys() == expected.keys()
    for key, value in batch.items():
        assert torch.equal(value, expected[key]), key
    assert batch["anchor_ids"].tolist() == [example["anchor"] for example in examples]


def test_noise_is_a_function_of_the_seed_whatever_the_batch(examples, processor):
    collate = ImageSetCollator(processor, noise=True)
    together = collate(examples)
    assert together["noise"].shape == (4, 3, together["attention_mask"].shape[1])
    assert together["noise"].dtype == torch.float32
    for index, example in enumerate(examples):
        alone = collate([example])
        count = alone["attention_mask"].shape[1]
        assert torch.equal(together["noise"][index, :, :count], alone["noise"][0])
        assert not together["noise"][index, :, count:].any()
        assert alone["noise"].unique().numel() == 3 * count
    other = collate([{**examples[0], "seed": examples[0]["seed"] + 1}])
    assert not torch.equal(other["noise"], collate(examples[:1])["noise"])


def test_noise_is_standard_normal(examples, processor):
    collate = ImageSetCollator(processor, noise=True)
    drawn = torch.cat([collate([{**examples[0], "seed": seed}])["noise"].flatten() for seed in range(200)]).double()
    error = 4 / drawn.numel() ** 0.5
    assert abs(drawn.mean()) < error
    assert abs(drawn.var() - 1) < 2 * error


def test_the_model_masks_a_set_alike_in_every_batch(examples, processor):
    torch.manual_seed(0)
    model = A2MAEForPreTraining(A2MAEConfig.nano(patch_size=PATCH_SIZE)).eval()
    collate = ImageSetCollator(processor, noise=True)
    with torch.inference_mode():
        together = model(**collate(examples)).mask
        for index, example in enumerate(examples):
            alone = model(**collate([example])).mask
            assert torch.equal(together[index, : alone.shape[1]], alone[0])
            assert alone.any()


@pytest.mark.parametrize("batch", [[1], [0, 1, 2]])
def test_a_set_that_cannot_be_is_named(examples, processor, batch):
    faulty = [dict(example) for example in examples]
    image = dict(faulty[1]["images"][0])
    faulty[1]["images"] = [{**image, "pixels": image["pixels"].astype(np.float32) * 10_000}]
    with pytest.raises(ValueError, match=r"place-1.*|place-1"):
        ImageSetCollator(processor)([faulty[index] for index in batch])


def test_a_collator_works_in_the_workers_of_a_loader(examples, processor):
    collate = ImageSetCollator(processor, noise=True)
    (batch,) = DataLoader(examples, batch_size=4, collate_fn=pickle.loads(pickle.dumps(collate)), num_workers=1)
    for key, value in collate(examples).items():
        assert torch.equal(batch[key], value), key
