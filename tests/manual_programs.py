"""Training steps that optimize by hand, in every order of backward passes that we know of.

Beside each backward pass stands which calls of which primary owe it their term.
"""

import torch
from by_hand import Program, Runner
from torch import Tensor
from torch.nn.functional import cross_entropy

# -- one model


def plain(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)


def zeros_in_place(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0, set_to_none=False)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)


def two_optimizers(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0)
    run.zero_grad(1)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)
    run.step(1)


def two_backwards(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0)
    run.backward(cross_entropy(h, y), {"net": [h]}, retain_graph=True)
    run.backward(0.1 * h.square().mean(), {})
    run.step(0)


def backwards_to_differentiate_again(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0)
    run.backward(cross_entropy(h, y), {"net": [h]}, create_graph=True)
    for _ in range(2):
        run.backward(0.1 * h.square().mean(), {}, create_graph=True)  # autograd writes the sum into new tensors
    run.step(0)
    run.zero_grad(0)  # or the graphs would live on in the gradients


def cleared_between(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0)
    run.backward(0.1 * h.square().mean(), {"net": [h]}, retain_graph=True)
    run.zero_grad(0)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)


def cleared_in_place_between(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.zero_grad(0, set_to_none=False)
    run.backward(0.1 * h.square().mean(), {"net": [h]}, retain_graph=True)
    run.zero_grad(0, set_to_none=False)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)


def siamese(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    a, b = run.call("net", x), run.call("net", x.flip(0))
    run.zero_grad(0)
    run.backward(cross_entropy(a, y) + (a - b.flip(0)).square().mean(), {"net": [a, b]})
    run.step(0)


def a_loss_for_each_forward(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    run.zero_grad(0)
    for half in (slice(0, 4), slice(4, 8)):
        h = run.call("net", x[half])
        run.backward(cross_entropy(h, y[half]), {"net": [h]})
    run.step(0)


def a_loss_that_does_not_reach(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h, other = run.call("net", x), run.call("g", x)
    run.zero_grad(0)
    run.zero_grad(1)
    run.backward(cross_entropy(other, y), {})
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)
    run.step(1)


def accumulated(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    run.backward(cross_entropy(h, y) / 2, {"net": [h]})
    if index % 2 == 1:
        run.step(0)
        run.zero_grad(0)


def changed_in_place(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    h = run.call("net", x)
    h *= 0.5  # the term is of what the model returned
    run.zero_grad(0)
    run.backward(cross_entropy(h, y), {"net": [h]})
    run.step(0)


def lbfgs(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    def closure() -> Tensor:
        run.zero_grad(0)
        h = run.call("net", x)
        loss = cross_entropy(h, y)
        run.backward(loss, {"net": [h]})
        return loss.detach()

    run.step(0, closure)


def with_a_gradient_penalty(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    between = (0.3 * x[:, :5] + 0.7 * made.detach()).requires_grad_()
    true, fake, mixed = run.call("d", x[:, :5]), run.call("d", made.detach()), run.call("d", between)
    (slope,) = torch.autograd.grad(mixed[:, 1].sum(), between, create_graph=True)
    # The slope's graph goes round the output of the mixed call: no term is owed for it.
    run.zero_grad(1)
    run.backward(fake[:, 1].mean() - true[:, 1].mean() + (slope.norm(dim=1) - 1).square().mean(), {"d": [true, fake]})
    run.step(1)
    run.zero_grad(0)
    judged = run.call("d", made)
    run.backward(-judged[:, 1].mean(), {"g": [made], "d": [judged]})
    run.step(0)


ONE_MODEL: dict[str, tuple[Program, list[str]]] = {
    "one optimizer": (plain, ["net"]),
    "zero_grad(set_to_none=False)": (zeros_in_place, ["net"]),
    "two optimizers": (two_optimizers, ["start", "end"]),
    "two backwards through one forward": (two_backwards, ["net"]),
    "backwards that can be differentiated": (backwards_to_differentiate_again, ["net"]),
    "gradients cleared between two backwards": (cleared_between, ["net"]),
    "gradients zeroed between two backwards": (cleared_in_place_between, ["net"]),
    "siamese": (siamese, ["net"]),
    "several forwards, a loss each": (a_loss_for_each_forward, ["net"]),
    "a loss that does not reach the model": (a_loss_that_does_not_reach, ["net", "g"]),
    "accumulation": (accumulated, ["net"]),
    "output changed in place": (changed_in_place, ["net"]),
    "a closure run several times": (lbfgs, ["lbfgs"]),
}

# -- GANs: optimizer 0 is the generator's, 1 the discriminator's


def is_real(d: Tensor, real: bool) -> Tensor:
    return cross_entropy(d, torch.full((len(d),), int(real)))


def detached(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    true, fake = run.call("d", x[:, :5]), run.call("d", run.call("g", x).detach())
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]})
    run.step(1)
    made = run.call("g", x)
    judged = run.call("d", made)
    run.zero_grad(0)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)


def attached(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    true, fake = run.call("d", x[:, :5]), run.call("d", made)
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"g": [made], "d": [true, fake]})
    run.step(1)
    made = run.call("g", x)
    judged = run.call("d", made)
    run.zero_grad(0)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)


def toggled(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    run.toggle(1)
    true, fake = run.call("d", x[:, :5]), run.call("d", run.call("g", x))
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]})
    run.step(1)
    run.untoggle(1)
    run.toggle(0)
    made = run.call("g", x)
    judged = run.call("d", made)
    run.zero_grad(0)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)
    run.untoggle(0)


def generator_first(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    judged = run.call("d", made)
    run.zero_grad(0)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)
    true, fake = run.call("d", x[:, :5]), run.call("d", run.call("g", x).detach())
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]})
    run.step(1)


def one_call_reused(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    true, fake = run.call("d", x[:, :5]), run.call("d", made.detach())
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]})
    run.step(1)
    judged = run.call("d", made)
    run.zero_grad(0)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)


def one_call_reused_attached(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    true, fake = run.call("d", x[:, :5]), run.call("d", made)
    run.zero_grad(1)
    run.backward(is_real(true, True) + is_real(fake, False), {"g": [made], "d": [true, fake]}, retain_graph=True)
    run.step(1)
    judged = run.call("d", made)
    run.zero_grad(0)  # what the discriminator's loss left in the generator goes, and with it the term
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)


def one_call_reused_zeroed_in_place(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    true, fake = run.call("d", x[:, :5]), run.call("d", made)
    run.zero_grad(1, set_to_none=False)
    run.backward(is_real(true, True) + is_real(fake, False), {"g": [made], "d": [true, fake]}, retain_graph=True)
    run.step(1)
    judged = run.call("d", made)
    run.zero_grad(0, set_to_none=False)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)


def both_zeroed_first(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    run.zero_grad(0)
    run.zero_grad(1)
    made = run.call("g", x)
    true, fake = run.call("d", x[:, :5]), run.call("d", made)
    run.backward(is_real(true, True) + is_real(fake, False), {"g": [made], "d": [true, fake]}, retain_graph=True)
    judged = run.call("d", made)
    run.backward(is_real(judged, True), {"d": [judged]})  # the generator's call has its term already
    run.step(1)
    run.step(0)


def reused_and_toggled(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    run.zero_grad(0, set_to_none=False)
    made = run.call("g", x)
    run.toggle(1)
    true, fake = run.call("d", x[:, :5]), run.call("d", made)
    run.zero_grad(1)
    # The generator takes no gradient now: its term waits for the loss that trains it.
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]}, retain_graph=True)
    run.step(1)
    run.untoggle(1)
    run.toggle(0)
    judged = run.call("d", made)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)
    run.untoggle(0)


def cleared_while_switched_off(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
    made = run.call("g", x)
    run.backward(is_real(run.call("d", made), True), {"g": [made]}, retain_graph=True)
    run.zero_grad(0)  # a first look at the generator's gradients: all of it goes, and with it the term
    run.zero_grad(1)
    run.toggle(1)
    true, fake = run.call("d", x[:, :5]), run.call("d", made.detach())
    run.backward(is_real(true, True) + is_real(fake, False), {"d": [true, fake]})
    run.step(1)
    run.untoggle(1)
    judged = run.call("d", made)
    run.backward(is_real(judged, True), {"g": [made], "d": [judged]})
    run.step(0)
    run.zero_grad(0)
    run.zero_grad(1)


GANS: dict[str, Program] = {
    "detached": detached,
    "attached": attached,
    "toggled": toggled,
    "generator first": generator_first,
    "one generator call reused": one_call_reused,
    "one generator call reused, attached": one_call_reused_attached,
    "one generator call reused, zeroed in place": one_call_reused_zeroed_in_place,
    "both zero_grad first": both_zeroed_first,
    "reused and toggled": reused_and_toggled,
    "cleared while switched off": cleared_while_switched_off,
    "with a gradient penalty": with_a_gradient_penalty,
}
