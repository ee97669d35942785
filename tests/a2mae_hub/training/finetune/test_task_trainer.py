"""Mixed sets have the loss of the formula, the head a rate of its own, and nothing is printed but a progress bar."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from a2mae_hub.modeling.heads_a2mae import SetStandardization
from a2mae_hub.training.callbacks import SeedEveryStep
from a2mae_hub.training.finetune import finetune
from a2mae_hub.training.frozen import HeadOnFeatures
from a2mae_hub.training.task_batches import TaskCollator
from a2mae_hub.training.task_models import make_model, with_adapters
from a2mae_hub.training.task_trainer import Mixup, TaskTrainer

FAST = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def trainer_of(labelled, config, tmp_path):
    """A function from task, mode and settings to a trainer, its model in training, and a batch of six sets."""

    def make(task: str = "classification", mode: str = "full", mixed: bool = True, **settings):
        if mode == "lora":
            pytest.importorskip("peft", reason="needs the extra [peft]")
        data = labelled(task)
        torch.manual_seed(0)
        model, processor, _ = make_model(data, None, config, None, None, settings.pop("class_weights", None))
        # Logits around 1, where a head begins with hundredths.
        torch.nn.init.normal_(model.classifier.linear.weight, std=0.2)
        collator = TaskCollator(processor)
        batch = collator([data.train[index] for index in range(6)])
        if mode == "frozen":
            kept = {key: batch.pop(key) for key in ("labels", "indices")}
            batch = {**kept, "pooler_output": model.eval().a2mae(**batch).pooler_output.detach()}
        settings["mixup"] = Mixup(model, 0.4, seed=2) if mixed else None
        trained = {"full": lambda: model, "frozen": lambda: HeadOnFeatures(model), "lora": lambda: with_adapters(model)}
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", learning_rate=1e-3, weight_decay=0.05)
        settings = {"layer_decay": None, **settings}
        trainer = TaskTrainer(trained[mode](), args, collators=(collator, collator), data=data, **settings)
        return trainer, trainer.model.train(), batch

    return make


def float64_loss(problem: str, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Cross entropy, its classes weighted; binary cross entropy, presence weighted; or mean squared error."""
    if problem == "value":
        return float(((logits - labels) ** 2).mean())
    if problem == "several":
        losses = weights * labels * np.log1p(np.exp(-logits)) + (1 - labels) * np.log1p(np.exp(logits))
        return float(losses.mean())
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    chosen = weights[labels]
    return float(-(chosen * log_shares[np.arange(len(labels)), labels]).sum() / chosen.sum())


@pytest.mark.parametrize(
    ("task", "mode", "weights"),
    [
        ("classification", "full", [1.0, 3.0]),
        ("several", "full", [1.0, 2.0, 3.0]),
        ("value", "full", None),
        ("classification", "frozen", None),
        ("classification", "lora", None),
    ],
)
def test_the_loss_of_mixed_sets_is_that_of_the_formula(trainer_of, task, mode, weights):
    """λ·loss(y_a) + (1 − λ)·loss(y_b) at λ·z_a + (1 − λ)·z_b, in float64; statistics are those of sets as they are."""
    trainer, model, batch = trainer_of(task, mode, class_weights=weights)
    share, partners = trainer.mixup.draw(6, 0, 0)
    assert 0.2 < share < 0.8 and not torch.equal(batch["labels"][partners], batch["labels"])
    seen, used = [], []
    for module in model.modules():
        if isinstance(module, SetStandardization):
            module.register_forward_pre_hook(lambda module, inputs: (seen.append(inputs[0]), used.append(module))[0])
    state = {key.rpartition("linear.")[2]: value for key, value in model.state_dict().items() if "linear." in key}
    weight, bias = (state[key].double().numpy() for key in ("weight", "bias"))
    loss = trainer.compute_loss(model, batch)

    (summaries,) = (values.detach().double().numpy() for values in seen)
    standard = (summaries - summaries.mean(0)) / np.sqrt(summaries.var(0) + 1e-6)
    logits = (share * standard + (1 - share) * standard[partners]) @ weight.T + bias
    labels, weights = batch["labels"].numpy(), np.ones(3) if weights is None else np.array(weights)
    expected = share * float64_loss(task, logits, labels, weights)
    expected += (1 - share) * float64_loss(task, logits, labels[partners], weights)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert abs(loss.item() - float64_loss(task, standard @ weight.T + bias, labels, weights)) > 1e-3 * abs(expected)
    np.testing.assert_allclose(used[0].running_mean, 0.1 * summaries.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(used[0].running_var, 0.9 + 0.1 * summaries.var(0, ddof=1), rtol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_mixup_and_in_validation_the_loss_is_that_of_the_library(trainer_of):
    def losses(trainer, model, batch):
        inputs = {key: values for key, values in batch.items() if key != "indices"}
        torch.manual_seed(0)
        own = trainer.compute_loss(model, batch)
        torch.manual_seed(0)
        return own, Trainer.compute_loss(trainer, model, inputs)

    trainer, model, batch = trainer_of(mixed=False)
    assert torch.equal(*losses(trainer, model, batch))
    trainer, model, batch = trainer_of()
    assert torch.equal(*losses(trainer, model.eval(), batch))
    assert not torch.equal(*losses(trainer, model.train(), batch))


def test_what_is_mixed_follows_from_seed_step_and_process():
    drawn = {key: Mixup(None, 0.4, key[0]).draw(32, *key[1:]) for key in [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)]}
    assert len({share for share, _ in drawn.values()}) == len(drawn)
    share, partners = Mixup(None, 0.4, 0).draw(32, 1, 2)
    assert share == drawn[0, 1, 2][0] and torch.equal(partners, drawn[0, 1, 2][1])
    assert sorted(partners.tolist()) == list(range(32))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_of_a_beta_distribution(alpha):
    """Beta(α, α) has mean 1/2 and variance 1 / (4·(2α + 1))."""
    shares = [Mixup(None, alpha, 0).draw(2, step, 0)[0] for step in range(3000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_a_stopped_run_goes_on_to_mix_what_it_would_have_mixed(labelled, config, tmp_path, monkeypatch, mode):
    facts = {"config": config, "mode": mode, **FAST}
    finetune(labelled(), tmp_path / "off", **facts, mixup=0)
    finetune(labelled(), tmp_path / "none", **facts)
    facts["mixup"] = 0.4
    report = finetune(labelled(), tmp_path / "whole", **facts)
    own = SeedEveryStep.on_step_begin

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt
        own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEveryStep, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(labelled(), tmp_path / "stopped", **facts)
    resumed = finetune(labelled(), tmp_path / "stopped", **facts)
    off, none, whole, stopped = (
        load_file(tmp_path / name / "model.safetensors") for name in ("off", "none", "whole", "stopped")
    )
    for key, weight in whole.items():
        assert torch.equal(stopped[key], weight), key
        assert torch.equal(off[key], none[key]), key
    assert not torch.equal(whole["classifier.linear.weight"], none["classifier.linear.weight"])
    assert [entry.get("loss") for entry in resumed["curve"]] == [entry.get("loss") for entry in report["curve"]]
    assert report["settings"]["mixup"] == 0.4


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("segmentation", {"mixup": 0.2}, "mixup=0.2: pixels of two places cannot be mixed into a map; leave it out"),
        ("change", {"mixup": 0.2}, "cannot be mixed into a map"),
        ("classification", {"mixup": -1.0}, "mixup=-1.0 must be 0, for none, or greater"),
        ("classification", {"mixup": float("nan")}, "mixup=nan must be 0"),
        ("classification", {"mixup": 0.2, "batch_size": 1}, "a lone set has none to be mixed with"),
        ("classification", {"size": 4000}, "size=4000: makes .* patches of .* pixels of every image, more than the"),
        ("classification", {"class_weights": [1.0, -2.0]}, r"class_weights=\[1.0, -2.0\] must be finite numbers of at"),
        ("classification", {"class_weights": [1.0, float("nan")]}, "must be finite numbers of at least 0, and not all"),
        ("segmentation", {"class_weights": [0.0, 0.0]}, "and not all be 0"),
        ("regression", {"class_weights": [1.0]}, "a regression has no classes; leave it out"),
        ("classification", {"head_learning_rate": -1.0}, "head_learning_rate=-1.0 must be greater than 0"),
        ("classification", {"head_learning_rate": 1.0, "mode": "frozen"}, "the head alone is trained; give learning_"),
    ],
)
def test_what_cannot_be_is_refused(labelled, config, tmp_path, task, settings, message):
    with pytest.raises(ValueError, match=message):
        finetune(labelled(task), tmp_path / "run", config=config, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "layer_decay"), [("full", 0.5), ("full", 1.0), ("lora", None)])
def test_the_head_learns_at_a_rate_of_its_own(trainer_of, mode, layer_decay):
    trainer, model, _ = trainer_of(mode=mode, layer_decay=layer_decay, head_learning_rate=0.3)
    rates, decays = {}, {}
    for group in trainer.create_optimizer().param_groups:
        for weight in group["params"]:
            rates[id(weight)], decays[id(weight)] = group["lr"], group["weight_decay"]
    before, _, _ = trainer_of(mode=mode, layer_decay=layer_decay)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(rates) == len(trained) == sum(len(group["params"]) for group in before.create_optimizer().param_groups)
    for name, weight in trained.items():
        is_head = "classifier" in name
        assert (rates[id(weight)] == 0.3) == is_head, name
        assert is_head or 0 < rates[id(weight)] <= 1e-3, name
        assert (decays[id(weight)] > 0) == (weight.ndim > 1 and not name.endswith("cls_token")), name


def test_nothing_is_printed_and_peft_is_quiet(labelled, config, tmp_path, capsys, monkeypatch, recwarn):
    peft = pytest.importorskip("peft", reason="needs the extra [peft]")
    save = peft.PeftModel.save_pretrained

    def save_as_peft_0_17(self, *arguments, **options):
        warnings.warn("Could not find a config file in  - will assume that the vocabulary was not modified.")  # noqa: B028
        save(self, *arguments, **options)

    monkeypatch.setattr(peft.PeftModel, "save_pretrained", save_as_peft_0_17)
    finetune(labelled(), tmp_path / "run", config=config, mode="lora", **FAST)
    assert capsys.readouterr() == ("", "")
    told = [str(warning.message) for warning in recwarn]
    assert not [text for text in told if "config file" in text or "is_gradient_checkpointing" in text]


def test_a_terminal_has_a_progress_bar_and_no_other_line(labelled, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    finetune(labelled(), tmp_path / "run", config=config, mode="frozen", **FAST)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6/6" in err and "loss=" in err and "eval_accuracy=" in err
