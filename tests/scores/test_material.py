"""What can be measured: models of Hugging Face's shape, regressions, images, tokens with masks; a layer of each."""

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import (
    Layer,
    Material,
    RandomInit,
    TreeEstimator,
    default_controls,
    further_scores,
    headline_scores,
    measure,
    structure_scores,
    untrained,
)
from legibility.students import LinearStudent, MLPStudent, NGramStudent

VOCABULARY, LENGTH = 11, 8


class ModelOutput(OrderedDict[str, Any]):
    """As in the library transformers: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class StandIn(nn.Module):
    """Attends over real tokens only, takes keywords, returns a mapping with `logits`; blocks return tuples."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

        def forward(self, hidden: Tensor, real: Tensor) -> tuple[Tensor, None]:
            weight = real.unsqueeze(-1).to(hidden)
            mean = (hidden * weight).cumsum(1) / weight.cumsum(1).clamp(min=1)
            return hidden + self.down(self.up(hidden + mean).relu()), None

    def __init__(self, answers: int | None = None) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(VOCABULARY, 12), StandIn.Block()
        self.head, self.pooled = nn.Linear(12, answers or VOCABULARY), answers is not None
        self.apply(self._init_weights)
        for parameter in self.parameters():
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    def _init_weights(self, module: nn.Module) -> None:
        weight = getattr(module, "weight", None)
        if weight is not None and not getattr(weight, "_is_hf_initialized", False):
            nn.init.normal_(weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> ModelOutput:
        assert int(input_ids.min()) >= 0, "padding must be an id that the model has"
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden, _ = self.block(self.embed(input_ids), real)
        if self.pooled:
            hidden = (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
        return ModelOutput(loss=None, logits=self.head(hidden), hidden_states=(hidden,))


def sentences(count: int = 128) -> tuple[dict[str, Tensor], Tensor]:
    """Ids with padding, and the next id, -100 at the padding: most of the time twice the id."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (count, LENGTH + 1), generator=draw)
    for t in range(1, LENGTH + 1):
        kept = torch.rand(count, generator=draw) < 0.8
        ids[:, t] = torch.where(kept, 2 * ids[:, t - 1] % VOCABULARY, ids[:, t])
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=draw)
    mask = torch.arange(LENGTH) < lengths.unsqueeze(1)
    given = {"input_ids": ids[:, :-1].where(mask, 0), "attention_mask": mask.long()}
    return given, ids[:, 1:].where(mask, -100)


@pytest.fixture(scope="module")
def language() -> Any:
    given, labels = sentences()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StandIn()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            logits = model(**given).logits
            torch.autograd.backward(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
            optimizer.step()
    return model


def ask(model: nn.Module) -> Material:
    given, labels = sentences()
    ids = given["input_ids"]
    concepts = torch.stack([ids % 2, (ids > 5).long()], -1)
    return Material.ask(model, given, labels, concepts=concepts, layer="block")


def test_a_model_by_keyword_answers_as_when_called(language: Any) -> None:
    given, labels = sentences()
    material = ask(language)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        expected = language(**given).logits
    torch.testing.assert_close(material.queries.logits[real], expected[real], rtol=0, atol=1e-6)
    assert material.queries.mask is not None and torch.equal(material.queries.mask, real)
    assert material.queries.labels is not None and torch.equal(material.queries.labels[real], labels[real])
    layer = material.layer
    assert layer is not None and layer.rest is not None and layer.mask is not None
    assert layer.activations.shape == (128, LENGTH, 12) and torch.equal(layer.mask, real)
    torch.testing.assert_close(layer.rest(layer.activations)[real], expected[real], rtol=1e-5, atol=1e-5)
    nothing = layer.rest(torch.zeros_like(layer.activations))  # all positions say what the head's bias says
    torch.testing.assert_close(nothing, nothing[:1, :1].expand_as(nothing))


def test_padding_and_what_stands_there_doesnt_matter(language: Any) -> None:
    given, labels = sentences()
    other = given | {"input_ids": given["input_ids"].where(given["attention_mask"].bool(), 7)}
    one, two = (Material.ask(language, each, labels) for each in (given, other))
    assert torch.equal(one.queries.inputs, two.queries.inputs)
    assert torch.equal(one.queries.logits, two.queries.logits)


@pytest.mark.slow
def test_all_scores_of_a_language_model(language: Any) -> None:
    pytest.importorskip("sklearn")
    families = [NGramStudent(), NGramStudent(width=8), NGramStudent(width=4)]
    scores = [*headline_scores(families, tolerance=0.1), *structure_scores(), *further_scores([NGramStudent()])]
    found = {each.name: each for each in measure(ask(language), scores, default_controls())}
    for name in ("imitation_saving", "circuit_nodes", "circuit_edges", "used_given_encoded", "compressed_size"):
        assert math.isfinite(found[name].value), (name, found[name].reason)
    for each in found.values():
        assert math.isfinite(each.value) or each.reason
        assert math.isnan(each.controls.get("constant", math.nan)) or each.direction is None
    for name in (score.name for score in headline_scores()):
        assert found[name].beaten_by == ()
    assert found["tree_path_length"].reason == "trees read rows of numbers, not tokens"


def test_a_classifier_of_padded_sentences() -> None:
    given, _ = sentences()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StandIn(answers=3)
    labels = given["attention_mask"].sum(1) % 3
    lengths = given["attention_mask"].sum(1, keepdim=True)
    material = Material.ask(model, given, labels, concepts=lengths)
    assert material.queries.logits.shape == (128, 3)
    assert material.queries.positions_to_read is not None  # students don't read the padding
    assert material.layer is not None and material.layer.activations.shape == (128, 12)
    assert material.layer.mask is None or bool(material.layer.mask.all())


def test_random_init_draws_by_the_models_own_rule(language: Any) -> None:
    before = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    with untrained(language) as uncovered:
        assert language.embed.weight.std().item() == pytest.approx(0.02, rel=0.2)  # PyTorch's would be 1
        assert uncovered == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in language.state_dict().items())
    assert all(getattr(parameter, "_is_hf_initialized", False) for parameter in language.parameters())
    control = RandomInit().apply(ask(language))
    assert isinstance(control, Material) and control.layer is not None


def test_a_gain_that_the_rule_sets_to_what_it_was_is_drawn() -> None:
    class Norm(nn.Module):  # as Llama's: no `reset_parameters`
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.weight, self.other = nn.Parameter(torch.full((8,), gain)), nn.Parameter(torch.full((8,), gain))

    class Owner(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.norm = Norm(gain)

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, Norm):
                nn.init.ones_(module.weight)

    for gain in (1.0, 3.0):
        model = Owner(gain)
        with untrained(model) as uncovered:
            assert uncovered == 1  # `other`, of its own RMS
            assert bool((model.norm.weight == 1).all()) and len(set(model.norm.other.tolist())) == 8
            assert 0.2 * gain < model.norm.other.square().mean().sqrt().item() < 2 * gain
        assert bool((model.norm.weight == gain).all()) and bool((model.norm.other == gain).all())


def test_a_rule_without_arguments_is_not_asked() -> None:
    class Own(nn.Linear):
        def _init_weights(self) -> None:
            nn.init.zeros_(self.weight)

    model = Own(3, 2)
    before = model.weight.detach().clone()
    with untrained(model) as uncovered:
        assert uncovered == 0 and not torch.equal(model.weight, before) and bool(model.weight.any())
    assert torch.equal(model.weight, before)


def test_what_comes_by_name_must_be_clear(language: Any) -> None:
    given, _ = sentences()
    with pytest.raises(ValueError, match="`inputs` by name must be one tensor, or token ids with `attention_mask`"):
        Material.ask(language, given | {"token_type_ids": given["input_ids"]})
    with pytest.raises(ValueError, match=r"`inputs\['attention_mask'\]` must be shaped as the token ids"):
        Material.ask(language, given | {"attention_mask": given["attention_mask"][:, :3]})
    with pytest.raises(ValueError, match="`layer` must name a module of the model, got 'blok'"):
        Material.ask(language, given, layer="blok")

    class Silent(nn.Module):
        def forward(self, rows: Tensor) -> str:
            return "nothing"

    with pytest.raises(TypeError, match="`model` must return logits"):
        Material.ask(Silent(), torch.zeros(64, 2))


def regression() -> tuple[Any, Tensor, Tensor]:
    inputs = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    targets = inputs[:, 0] * 2 + inputs[:, 1].abs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            torch.autograd.backward(functional.mse_loss(model(inputs)[:, 0], targets))
            optimizer.step()
    return model, inputs, targets


def test_a_regression_is_measured_by_bins_and_skips_what_needs_a_distribution() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("networkx")
    model, inputs, targets = regression()
    material = Material.ask(model, inputs, targets)
    scores = [*headline_scores([TreeEstimator(), LinearStudent(), MLPStudent()]), *structure_scores()]
    found = {each.name: each for each in measure(material, scores, default_controls())}
    assert 0 < found["compressed_size"].value < 1 and math.isfinite(found["imitation_saving"].value)
    assert found["compressed_size"].control_reasons["constant"].startswith("without any weight the loss")
    assert found["imitation_saving"].control_reasons["temperature 4"] == "a regression has no temperature"
    assert "constant" in found["imitation_saving"].control_reasons["constant"]
    for name in ("circuit_nodes", "circuit_edges", "error_predictability"):
        assert found[name].reason == "needs a distribution over classes, which a regression hasn't", name
    assert all(each.beaten_by == () for each in found.values())
    with pytest.raises(ValueError, match="`concepts` and `layer` must be None for a regression"):
        Material.ask(model, inputs, targets, layer="1")


def test_a_layer_of_images_is_flattened_where_concepts_have_no_place() -> None:
    images = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()
    images = images.double()
    layer = Layer.of(model, images, (images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > 0).long(), name="1")
    assert layer.activations.shape == (64, 48)
    assert layer.rest is not None
    with torch.no_grad():
        torch.testing.assert_close(layer.rest(layer.activations), model(images))
    last = Layer.of(model, images)
    torch.testing.assert_close(last.activations, layer.activations)  # what the last linear layer reads


def test_a_layer_doesnt_depend_on_the_scale_of_its_units() -> None:
    model, inputs, _ = regression()
    model = model.double()
    layer = Layer.of(model, inputs.double(), name="1")
    with torch.no_grad():
        model[0].weight.mul_(7.0), model[0].bias.mul_(7.0), model[2].weight.div_(7.0)
    torch.testing.assert_close(Layer.of(model, inputs.double(), name="1").activations, layer.activations)
    assert layer.rest is not None
    with pytest.raises(ValueError, match="`activations` must hold all 400 examples, got 3"):
        layer.rest(layer.activations[:3])


def test_a_layer_given_by_hand_serves_one_model_only() -> None:
    hidden = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    layer = Layer(hidden, lambda h: h[:, :3], (hidden[:, :2] > 0).long())
    assert layer.again(nn.Linear(2, 2), None) is None
    flat = layer.flatter(4.0).rest
    assert flat is not None and torch.equal(flat(hidden), hidden[:, :3] / 4)
    order = torch.arange(64).roll(1)
    dealt = layer.dealt(order).concepts
    assert dealt is not None and torch.equal(dealt[0], (hidden[63, :2] > 0).long())
