"""Pre-training: what is learned from in which step, what a kill costs, and what a run leaves behind."""

import json
import math
import signal
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import typer
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState
from typer.testing import CliRunner

from a2mae_hub import A2MAEForPreTraining
from a2mae_hub.inference import load_checkpoint
from a2mae_hub.stssd import load
from a2mae_hub.training import callbacks
from a2mae_hub.training.commands import make_config
from a2mae_hub.training.commands import pretrain as pretrain_command
from a2mae_hub.training.order import EndlessSets
from a2mae_hub.training.pretrain import _SetTrainer, last_checkpoint, pretrain

TRAIN_SETS, STEPS = 22, 6
FAST = {"steps": STEPS, "batch_size": 4, "save_steps": 3, "warmup_steps": 1, "workers": 0}


def losses(report: dict) -> list[float]:
    return [entry["loss"] for entry in report["curve"]]


def ids(examples) -> list[str]:
    return [example["id"] for example in examples]


def stream(folder, **options):
    return load(folder, split="train", shuffle=True, **options)


# Order


def test_every_epoch_has_every_set_once_in_another_order(shards):
    sets = ids(islice(EndlessSets([stream(shards)], 4, 8), 3 * TRAIN_SETS))
    epochs = [sets[first : first + TRAIN_SETS] for first in range(0, len(sets), TRAIN_SETS)]
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert all(len(set(epoch)) == TRAIN_SETS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first_step", [5, 12])
def test_a_run_that_begins_at_a_step_sees_what_it_would_have_seen(shards, num_workers, first_step):
    def batches(first_step: int, count: int) -> list[list[tuple[str, int]]]:
        sets = EndlessSets([stream(shards, seed=3)], 4, 8, num_workers, first_step)
        loader = DataLoader(sets, batch_size=4, num_workers=num_workers, collate_fn=_ids_and_seeds)
        return list(islice(loader, sets.num_skipped, sets.num_skipped + count))

    assert batches(first_step, 4) == batches(0, first_step + 4)[first_step:]


def _ids_and_seeds(examples):
    return [(example["id"], example["seed"]) for example in examples]


def test_every_batch_is_of_one_data_set_that_has_its_turn_by_the_root_of_its_size(tmp_path, make_set, write_shards):
    large = write_shards(tmp_path / "large", [make_set(number) for number in range(16)])
    small = write_shards(tmp_path / "small", [make_set(number, kind="city") for number in range(4)])
    names = ids(islice(EndlessSets([stream(large), stream(small)], 4, 8), 6 * 4))
    cities = [sum(name.startswith("city") for name in names[first : first + 4]) for first in range(0, len(names), 4)]
    assert sorted(cities) == [0, 0, 0, 0, 4, 4]
    assert len(set(names)) == 16 + 4
    for step in (2, 5):
        resumed = EndlessSets([stream(large), stream(small)], 4, 8, first_step=step)
        assert ids(islice(resumed, (6 - step) * 4)) == names[step * 4 :]


def test_more_workers_than_sets_and_images_below_a_patch_are_refused(tmp_path, make_set, write_shards):
    folder = write_shards(tmp_path, [make_set(0, side=6), make_set(1, side=6)])
    with pytest.raises(ValueError, match="2 image sets are too few to share among 3 workers"):
        EndlessSets([stream(folder)], 4, 8, num_workers=3)
    with pytest.raises(ValueError, match=r"set 'grid-000\d': an image of 6 × 6 pixels is smaller than a patch of 8"):
        next(iter(EndlessSets([stream(folder)], 4, 8)))


# Runs


def test_a_run_leaves_a_checkpoint_with_all_that_a_card_needs(shards, tmp_path, small_config, capsys):
    report = pretrain([shards], tmp_path / "run", config=small_config(), **FAST)
    assert report == json.loads((tmp_path / "run" / "training.json").read_text())
    assert [entry["step"] for entry in report["curve"]] == [1, 2, 3, 4, 5, 6]
    assert (report["steps"], report["sets_seen"]) == (STEPS, STEPS * 4)
    assert report["settings"]["shards"][0]["sets"] == TRAIN_SETS
    assert math.isclose(report["epochs"], STEPS * 4 / TRAIN_SETS)
    # Cosine from 1e-3 after one step of warm-up, as Loshchilov and Hutter (2017) write it.
    rates = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / (STEPS - 1))) for step in range(STEPS - 1)]
    assert [entry["learning_rate"] for entry in report["curve"]] == pytest.approx([0.0, *rates])
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.has_decoder and loaded.processor.patch_size == 8
    assert report["parameters"] == sum(weight.numel() for weight in loaded.model.parameters())
    last = A2MAEForPreTraining.from_pretrained(tmp_path / "run" / "checkpoint-6")
    for name, weight in last.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], weight, rtol=0, atol=0)
    pytest.importorskip("matplotlib", reason="figures need the extra [plot]")
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
    assert "'sets_per_second'" in capsys.readouterr().out


def test_a_finished_run_is_not_begun_again(shards, tmp_path, small_config, monkeypatch):
    report = pretrain([shards], tmp_path / "run", config=small_config(), **FAST)
    (tmp_path / "moved").symlink_to(shards)
    monkeypatch.setattr(_SetTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert pretrain([tmp_path / "moved"], tmp_path / "run", config=small_config(), **FAST) == report
    # Killed between the last checkpoint and the report.
    (tmp_path / "run" / "training.json").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    assert pretrain([shards], tmp_path / "run", config=small_config(), **FAST) == report
    assert load_checkpoint(tmp_path / "run").has_decoder


_KILLED = """
import json, os, signal, sys
import torch
from a2mae_hub import A2MAEConfig
from a2mae_hub.training import callbacks
from a2mae_hub.training.pretrain import pretrain

def kill_after_a_step_beyond_the_checkpoint(self, args, state, control, **kwargs):
    if state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    seeds(self, args, state, control, **kwargs)

torch.set_num_threads(1)
shards, output, config, fast = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
seeds = callbacks.SeedEveryStep.on_step_begin
callbacks.SeedEveryStep.on_step_begin = kill_after_a_step_beyond_the_checkpoint
for workers in (0, 2):
    process = os.fork()
    if process == 0:
        pretrain([shards], f"{output}/{workers}", config=A2MAEConfig.nano(**config), **{**fast, "workers": workers})
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(process, 0)[1]))
"""


def test_a_killed_run_goes_on_to_the_last_bit(shards, tmp_path, small_config, run_python):
    config = {name: getattr(small_config(), name) for name in ("hidden_size", *_SMALL_FIELDS)}
    (tmp_path / "killed.py").write_text(_KILLED)
    told = run_python(tmp_path / "killed.py", shards, tmp_path, json.dumps(config), json.dumps(FAST))
    assert [line for line in told.stdout.splitlines() if line.isdigit()] == [str(int(signal.SIGKILL))] * 2, told.stderr
    for workers in (0, 2):
        output, fast = tmp_path / str(workers), {**FAST, "workers": workers}
        assert last_checkpoint(output).name == "checkpoint-3"
        # What a kill in the middle of saving leaves.
        (output / "checkpoint-5").mkdir()
        (output / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5, "log_his')
        assert last_checkpoint(output).name == "checkpoint-3"
        resumed = pretrain([shards], output, config=small_config(), **fast)
        whole = pretrain([shards], tmp_path / f"whole-{workers}", config=small_config(), **fast)
        assert losses(resumed) == losses(whole)
        assert [entry["step"] for entry in resumed["curve"]] == [1, 2, 3, 4, 5, 6]


_SMALL_FIELDS = (
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)

_DISTRIBUTED = """
import json, sys
import torch
from a2mae_hub import A2MAEConfig
from a2mae_hub.training.pretrain import pretrain

torch.set_num_threads(1)
shards, output, config, fast = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
pretrain([shards], output, config=A2MAEConfig.nano(**config), **fast)
"""


def test_two_processes_learn_what_one_does(shards, tmp_path, small_config, run_python):
    objective = {"metadata_dropout": 0.5, "contrastive_weight": 0.5, "feature_targets": True}
    fields = {name: getattr(small_config(), name) for name in ("hidden_size", *_SMALL_FIELDS)} | objective
    fast = {**FAST, "steps": 3}
    (tmp_path / "both.py").write_text(_DISTRIBUTED)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = shards, tmp_path / "two", json.dumps(fields), json.dumps(fast)
    told = run_python(tmp_path / "both.py", *arguments, launcher=launcher)
    assert told.returncode == 0, told.stderr
    two = json.loads((tmp_path / "two" / "training.json").read_text())
    one = pretrain([shards], tmp_path / "one", config=small_config(**objective), **fast)
    assert two["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_run_with_other_settings_is_told_what_differs(shards, tmp_path, small_config, make_set, write_shards):
    pretrain([shards], tmp_path / "run", config=small_config(), **{**FAST, "steps": 2})
    for change, told in (
        ({"steps": 3}, "steps=2, not 3"),
        ({"steps": 2, "seed": 1}, "seed=0, not 1"),
        ({"steps": 2, "config": small_config(mask_ratio=0.5)}, r"config\.mask_ratio=0\.75, not 0\.5"),
    ):
        with pytest.raises(ValueError, match=f"run: holds a run with {told}"):
            pretrain([shards], tmp_path / "run", **{"config": small_config(), **FAST, **change})
    other = write_shards(tmp_path / "other", [make_set(number) for number in range(4)])
    with pytest.raises(ValueError, match="holds a run with other shards"):
        pretrain([other], tmp_path / "run", config=small_config(), **{**FAST, "steps": 2})
    small_config().save_pretrained(tmp_path / "foreign" / "checkpoint-1")
    with pytest.raises(ValueError, match="foreign: holds a model that was not pre-trained here"):
        pretrain([shards], tmp_path / "foreign", config=small_config(), **FAST)


def test_a_run_begins_with_the_weights_of_a_checkpoint(shards, tmp_path, small_config):
    report = pretrain([shards], tmp_path / "first", config=small_config(), **{**FAST, "steps": 2})
    assert "before" not in report
    config = make_config(None, str(tmp_path / "first"), ["mask_ratio=0.5"])
    # The first step is taken at learning rate 0.
    fast = {**FAST, "steps": 2, "learning_rate": 1e-30}
    report = pretrain([shards], tmp_path / "second", config=config, checkpoint=tmp_path / "first", **fast)
    assert report["before"] == json.loads((tmp_path / "first" / "training.json").read_text())
    first, second = (load_checkpoint(tmp_path / name).model for name in ("first", "second"))
    assert (second.config.mask_ratio, second.config.hidden_size) == (0.5, 32)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight)
    with pytest.raises(ValueError, match="first: its weights do not fit the configuration"):
        wide = small_config(hidden_size=64)
        pretrain([shards], tmp_path / "third", config=wide, checkpoint=tmp_path / "first", **FAST)


def test_sets_without_splits_are_all_trained_on_and_sets_of_other_splits_are_not(
    tmp_path, small_config, make_set, write_shards
):
    mine = write_shards(tmp_path / "mine", [make_set(number, split="mine") for number in range(4)])
    report = pretrain([mine], tmp_path / "run", config=small_config(), **{**FAST, "steps": 2})
    assert report["settings"]["shards"][0]["sets"] == 4
    tests = write_shards(tmp_path / "tests", [make_set(0, split="test")])
    with pytest.raises(ValueError, match="tests: holds no sets of the split 'train'"):
        pretrain([tests], tmp_path / "other", config=small_config(), **FAST)


def test_an_error_in_a_worker_is_told_in_one_sentence(tmp_path, small_config, make_set, write_shards):
    folder = write_shards(tmp_path / "shards", [make_set(number, side=6) for number in range(4)])
    with pytest.raises(ValueError, match=r"^set 'grid-000\d': an image of 6 × 6 pixels is smaller[^\n]*$"):
        pretrain([folder], tmp_path / "run", config=small_config(), **{**FAST, "workers": 1})


def test_a_loss_that_is_lost_ends_the_run_before_it_is_saved(shards, tmp_path, small_config):
    with pytest.raises(ValueError, match=r"The loss became (nan|inf) at step \d; lower the learning rate"):
        pretrain([shards], tmp_path / "run", config=small_config(), **{**FAST, "steps": 3, "learning_rate": 1e30})
    assert last_checkpoint(tmp_path / "run") is None
    stop = callbacks.StopAtLostLoss()
    stop.on_log(None, TrainerState(global_step=20), TrainerControl(), logs={"loss": 1.0})
    with pytest.raises(ValueError, match="became inf between step 21 and step 30"):
        stop.on_log(None, TrainerState(global_step=30), TrainerControl(), logs={"loss": math.inf})


def test_without_matplotlib_one_notice_and_no_figures(shards, tmp_path, small_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pretrain([shards], tmp_path / "run", config=small_config(), **FAST)
    assert capsys.readouterr().err.count("no figures of reconstructions: Figures need matplotlib") == 1
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-6"


def test_only_matrices_decay(small_config):
    model = A2MAEForPreTraining(small_config())
    decaying = _SetTrainer.get_decay_parameter_names(SimpleNamespace(), model)
    assert all(model.get_parameter(name).ndim == 2 for name in decaying)
    spared = {name for name, _ in model.named_parameters()} - set(decaying)
    assert {"a2mae.cls_token", "decoder.mask_token", "a2mae.layernorm.weight"} <= spared
    assert all(name.endswith(("bias", "token")) or "norm" in name for name in spared)


# Mistakes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shards": []}, r"shards=\[\]: give a list of at least one"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be greater than 0"),
        ({"warmup_steps": 6}, "warmup_steps=6 must be at least 0 and less than steps=6"),
        ({"config": None}, "give the configuration of the model, or a checkpoint"),
    ],
)
def test_arguments_out_of_range_are_refused(shards, tmp_path, small_config, change, told):
    arguments = {"shards": [shards], "config": small_config(), **FAST, **change}
    with pytest.raises(ValueError, match=told):
        pretrain(output=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_file_for_output_and_a_batch_that_processes_cannot_share_are_refused(
    shards, tmp_path, small_config, monkeypatch
):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: is a file; name a folder"):
        pretrain([shards], tmp_path / "file", config=small_config(), **FAST)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        pretrain([tmp_path / "nowhere"], tmp_path / "run", config=small_config(), **FAST)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size=4 cannot be divided among 3 processes; give a multiple of 3"):
        pretrain([shards], tmp_path / "run", config=small_config(), **FAST)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": "huge"}, "--size huge: no such size; choose one of nano, tiny, base, large"),
        ({"size": "nano", "checkpoint": "out/run"}, "--size nano: the checkpoint out/run has its own size"),
        ({"overrides": ["mask_ratio"]}, "--set mask_ratio: give key=value"),
        ({"overrides": ["masks=0.5"]}, "--set masks=0.5: give key=value, the key one of hidden_size"),
        ({"overrides": ["mask_ratio=2"]}, "--set mask_ratio=2: mask_ratio=2 must be at least 0 and less than 1"),
        ({"overrides": ["hidden_size=wide"]}, "--set hidden_size=wide: .*int"),
    ],
)
def test_options_that_describe_no_model_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        make_config(**{"size": None, "checkpoint": None, "overrides": [], **options})


def test_the_command_takes_fields_of_the_configuration(shards, tmp_path, small_config):
    app = typer.Typer()
    app.command()(pretrain_command)
    fields = [f"--set={name}={getattr(small_config(), name)}" for name in ("hidden_size", *_SMALL_FIELDS)]
    fields += ["--set=masking_strategy=tube", "--set=normalize_targets=true"]
    options = ["--steps=2", "--batch-size=2", "--workers=0", "--save-steps=2", f"--output={tmp_path / 'run'}"]
    told = CliRunner().invoke(app, [str(shards), "--size=nano", *fields, *options])
    assert told.exit_code == 0, told.output
    assert "M parameters after 2 steps and 4 image sets (0.2 epochs), loss" in told.output
    config = load_checkpoint(tmp_path / "run").model.config
    assert (config.masking_strategy, config.normalize_targets, config.hidden_size) == ("tube", True, 32)
