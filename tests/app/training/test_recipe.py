"""recipe.py against the official script's formulas and PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F

from hifuse_fast import create_model
from hifuse_fast.app.training import recipe
from hifuse_fast.app.training.configuration import Configuration
from hifuse_fast.app.training.scores import scores_of

NARROW = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_model("hifuse_tiny", 3, **NARROW)


def test_the_learning_rate_is_the_official_schedule():
    def official(x, num_step, epochs, warmup_factor=1e-3, end_factor=1e-2):
        if x <= num_step:
            alpha = float(x) / num_step
            return warmup_factor * (1 - alpha) + alpha
        current = x - num_step
        return ((1 + math.cos(current * math.pi / ((epochs - 1) * num_step))) / 2) * (1 - end_factor) + end_factor

    c = Configuration(epochs=10)
    for step in range(70):
        assert recipe.factor_of(step, 7, c) == pytest.approx(official(step, 7, 10), rel=1e-12)
    assert recipe.factor_of(0, 7, Configuration(warmup_epochs=0)) == 1
    assert recipe.factor_of(6, 7, Configuration(epochs=1)) <= 1


def test_dead_parameters_are_those_without_a_gradient(network):
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    state = torch.get_rng_state()
    assert recipe.dead_parameters(network.options) == without
    assert torch.equal(torch.get_rng_state(), state)
    assert {"head.weight", "norm.bias", "layers2.blocks.1.norm2.weight"} <= without


def test_weight_decay_leaves_out_biases_and_one_dimension(network):
    recipe.set_trained(network, freeze=False)
    optimizer = recipe.make_optimizer(network, Configuration())
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    bare = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert "layers1.blocks.0.attn.relative_position_bias_table" in decayed
    assert {"conv_head.bias", "conv_norm.weight"} <= bare
    assert decayed | bare == set(names.values()) - recipe.dead_parameters(network.options)
    assert not [name for name in decayed if name.endswith(".bias")]


def test_freezing_trains_the_classifier_and_leaves_everything_else(network):
    recipe.set_trained(network, freeze=True)
    recipe.set_mode(network, freeze=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = recipe.make_optimizer(network, Configuration(lr=0.1))
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"conv_head.weight", "conv_head.bias"}


def test_losses_are_cross_entropy_and_its_variants():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3), torch.arange(9) % 3
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    plain = recipe.losses_of(logits, labels, None, Configuration())
    torch.testing.assert_close(plain.mean(), F.cross_entropy(logits, labels))
    smooth = recipe.losses_of(logits, labels, weights, Configuration(label_smoothing=0.1))
    expected = F.cross_entropy(logits, labels, weights.float(), label_smoothing=0.1)
    torch.testing.assert_close(smooth.sum() / weights[labels].sum().float(), expected)
    focal = recipe.losses_of(logits, labels, None, Configuration(focal_gamma=2.0))
    p = logits.softmax(-1)[torch.arange(9), labels]
    torch.testing.assert_close(focal, -((1 - p) ** 2) * p.log())
    assert recipe.losses_of(logits.bfloat16(), labels, None, Configuration()).dtype == torch.float32


def test_class_weights_are_inverse_to_the_sizes():
    weights = recipe.class_weights([0] * 6 + [1] * 3, 2)
    assert weights.tolist() == [0.75, 1.5]
    assert sum(weights[label].item() for label in [0] * 6 + [1] * 3) == pytest.approx(9)


def test_the_average_moves_and_counts_are_copied(network):
    average = recipe.make_average(network, 0.9)
    average.update_parameters(network)  # the first one copies
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network.fu1.W.bn.running_mean.add_(1.0)
    network.fu1.W.bn.num_batches_tracked.fill_(7)
    average.update_parameters(network)
    for name, tensor in average.module.state_dict().items():
        now = network.state_dict()[name]
        expected = 0.9 * before[name] + 0.1 * now if tensor.is_floating_point() else now
        torch.testing.assert_close(tensor, expected)
    assert not average.training


def test_scores_by_hand():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [1, 0.5, 0], [0, 3, 0]])
    scores = scores_of(logits, torch.tensor([0, 1, 1, 1]))
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["auroc"] == 1.0
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor([0, 1, 1, 1])).item())
    alone = scores_of(logits, torch.tensor([2, 2, 2, 2]))
    assert (alone["accuracy"], alone["balanced_accuracy"]) == (0, 0)
    assert math.isnan(alone["auroc"])
