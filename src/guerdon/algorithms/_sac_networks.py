"""Perceptrons whose way back is written by hand: what soft actor-critic spends its time on.

The problem: networks of three layers of 256 units are so small that autograd, a fresh piece of memory for every intermediate result, and
an optimiser that visits sixty tensors cost nearly as much as the matrix products. And autograd computes what nobody asks for: the actor's
loss passes through the critics, whose weights it must not move. Here

- the weights of perceptrons of one kind lie end to end in one array, and their gradient in another, so that Adam and the moving average
  of the target are one operation each;
- a `Pass` keeps the memory of one way there and back, shares of it what it can, and goes back only where it is told to: to the weights,
  or to some inputs.

On request the products of all layers but the last are in bfloat16; weights, last layers and whatever is made of them are float32.

On request hidden units are normalised before they are rectified (layer normalisation, Ba et al. 2016, without weights of its own).

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight (outputs, inputs) and bias (outputs,) of each layer in order; or their gradients."""

_SMALL = 1e-5
"""Added to the variance of a row's units before its root is taken."""
_ALIGNMENT = 16
"""Floats: each tensor begins at a multiple of 64 bytes, which matrix products like."""


class Perceptrons:
    """Several perceptrons of the same sizes that share nothing but the array that they lie in. Begins with zeros."""

    def __init__(
        self, count: int, sizes: Sequence[int], *, half: bool = False, normed: bool = False, device: torch.device | None = None
    ) -> None:
        """Args: count: of perceptrons; sizes: inputs, widths of the hidden layers, outputs; half: products in bfloat16; normed: hidden
        units are normalised."""
        self.sizes, self._half, self._normed = tuple(sizes), half, normed
        places = count * sum(map(_room, _shapes(sizes)))
        self.flat = nn.Parameter(torch.zeros(places, device=device))
        """(P,): all weights and biases, with gaps of zeros."""
        self.flat.grad = torch.zeros_like(self.flat)
        self.each = _cut(self.flat.detach(), count, sizes)
        """The layers of each perceptron: views of `flat`."""
        self.gradients = _cut(self.flat.grad, count, sizes)
        """The same of the gradient."""
        self._low = self.flat.detach().bfloat16() if half else None
        self.multiplied = self.each
        """What products are made with."""
        if self._low is not None:
            low = _cut(self._low, count, sizes)
            self.multiplied = [[*some[:-1], exact[-1]] for some, exact in zip(low, self.each, strict=True)]

    @torch.no_grad()
    def begin(self, random: torch.Generator) -> None:
        """Fresh weights: orthogonal, drawn from `random` (of the processor), and biases of zero."""
        for layers in self.each:
            for weight, bias in layers:
                weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), generator=random))
                bias.zero_()
        self.moved()

    @torch.no_grad()
    def take(self, flat: Tensor) -> None:
        """Takes over the weights (P,) of others of the same number and sizes."""
        self.flat.copy_(flat)
        self.moved()

    @torch.no_grad()
    def moved(self) -> None:
        """To be called after a change of `flat`."""
        if self._low is not None:
            self._low.copy_(self.flat)

    def ways(self, rows: int, shared: Shared, *, back: bool = True) -> list[Pass]:
        """Memory for one pass of `rows` rows through each of them."""
        return [Pass(self.sizes, rows, shared, back=back, half=self._half, normed=self._normed) for _ in self.each]


class Shared:
    """Memory that passes use one after the other, so that more of it stays in the processor's cache: (use, width) -> (N, width)."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows, self.device = rows, device
        self._made: dict[tuple[str, int, torch.dtype], Tensor] = {}

    def get(self, use: str, width: int, kind: torch.dtype) -> Tensor:
        """The one tensor for a use."""
        key = use, width, kind
        if key not in self._made:
            self._made[key] = torch.empty(self._rows, width, dtype=kind, device=self.device)
        return self._made[key]


class Pass:
    """Memory for one way through a perceptron, and back. Each further way there overwrites what the last one gave."""

    def __init__(self, sizes: Sequence[int], rows: int, shared: Shared, *, back: bool, half: bool, normed: bool = False) -> None:
        """Args: sizes, half, normed: as in `Perceptrons`; rows: N; shared: of all passes on one device; back: whether it will be gone
        back."""
        kind, device = torch.bfloat16 if half else torch.float32, shared.device
        hidden = sizes[1:-1]
        self._seen = [torch.empty(rows, sizes[0], dtype=kind, device=device)]
        """What each layer sees: the inputs, and the rectified units."""
        for number, width in enumerate(hidden):
            kept = torch.empty(rows, width, dtype=kind, device=device) if back else shared.get(f"units {number % 2}", width, kind)
            self._seen.append(kept)
        self._normed: list[tuple[Tensor, Tensor, Tensor]] | None = [] if normed else None
        """Of each hidden layer what was normalised, with the mean of each row and the inverse of its deviation."""
        self._slopes = [shared.get(f"slopes {number % 2}", width, kind) for number, width in enumerate(hidden)]
        self._exact = shared.get("last units", hidden[-1], torch.float32) if half else self._seen[-1]
        """What the last layer sees, in float32."""
        self._said = torch.empty(rows, sizes[-1], device=device)

    def there(self, layers: Layers, *inputs: Tensor) -> Tensor:
        """What a perceptron says of inputs that lie side by side, each (N, some): (N, outputs) float32, overwritten by the next call."""
        torch.cat([part.to(self._seen[0].dtype) for part in inputs], 1, out=self._seen[0])
        if self._normed is not None:
            self._normed.clear()
        for (weight, bias), seen, following in zip(layers, self._seen, self._seen[1:], strict=False):
            if self._normed is None:
                torch.addmm(bias, seen, weight.t(), out=following).relu_()
            else:
                summed = torch.addmm(bias, seen, weight.t())
                units, mean, inverse = torch.native_layer_norm(summed, summed.shape[1:], None, None, _SMALL)
                torch.clamp(units, min=0, out=following)
                self._normed.append((summed, mean, inverse))
        weight, bias = layers[-1]
        return torch.addmm(bias, self._last_seen(), weight.t(), out=self._said)

    def back(self, layers: Layers, slope: Tensor, *, gradients: Layers | None = None, inputs: slice | None = None) -> Tensor | None:
        """Goes back the way that was gone last.

        Args:
            layers: those of the way there.
            slope: (N, outputs), the derivative of a loss by what was said.
            gradients: where to put its derivatives by the weights; None leaves them alone.
            inputs: of which inputs the derivatives are wanted.

        Returns:
            The derivatives by those inputs, (N, some) float32; None if none are wanted.
        """
        for number in reversed(range(len(layers))):
            weight = layers[number][0]
            if gradients is not None:
                by_weight, by_bias = gradients[number]
                _product(slope.t(), self._seen[number] if number < len(layers) - 1 else self._last_seen(), by_weight)
                torch.sum(slope, 0, dtype=by_bias.dtype, out=by_bias)
            if number:
                seen, following = self._seen[number], self._slopes[number - 1]
                _product(slope, weight, following)
                torch.ops.aten.threshold_backward.grad_input(following, seen, 0, grad_input=following)  # zero where the unit was off
                slope = following if self._normed is None else _before_norm(following, *self._normed[number - 1])
        return None if inputs is None else (slope @ layers[0][0][:, inputs]).float()

    def _last_seen(self) -> Tensor:
        return self._exact if self._exact is self._seen[-1] else self._exact.copy_(self._seen[-1])


def said(layers: Layers, inputs: Tensor) -> Tensor:
    """What a perceptron that is not normalised says of (B, inputs), in float32, for whoever does not go back."""
    for weight, bias in layers[:-1]:
        inputs = F.relu(F.linear(inputs, weight, bias))
    return F.linear(inputs, *layers[-1])


def _before_norm(slope: Tensor, summed: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """The derivative by what was normalised, (N, width), from the one by what came of it."""
    wanted = [True, False, False]
    found = torch.ops.aten.native_layer_norm_backward(slope, summed, summed.shape[1:], mean, inverse, None, None, wanted)
    by_summed: Tensor = found[0]
    return by_summed


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.shape[1] == 1:  # a matrix product over a single number is slower than this
        torch.mul(left, right, out=out)
    elif left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right))


def _shapes(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    return [shape for inputs, outputs in pairwise(sizes) for shape in ((outputs, inputs), (outputs,))]


def _room(shape: tuple[int, ...]) -> int:
    """Places that a tensor takes up in a flat array."""
    return -(-torch.Size(shape).numel() // _ALIGNMENT) * _ALIGNMENT


def _cut(flat: Tensor, count: int, sizes: Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
    """Views of a flat array: the layers of each perceptron."""
    views = _views(flat, [shape for _ in range(count) for shape in _shapes(sizes)])
    return [[(next(views), next(views)) for _ in sizes[1:]] for _ in range(count)]


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    begin = 0
    for shape in shapes:
        yield flat[begin : begin + torch.Size(shape).numel()].view(shape)
        begin += _room(shape)
