"""Gate matrices [N, F, D] as views of parameters that hold more than them."""

from typing import List, Sequence, Union

from torch import Tensor

Gates = Union[Tensor, Sequence[Tensor]]

# Which axes of the parameter are (neurons, D), counted from the last, and which of the 2F neurons are gates: all, the
# first half, the second, or every other one. The names are those of verify_checkpoint.
LAYOUTS = {
    "nfd": (-2, "all"),
    "ndf": (-1, "all"),
    "n2fd-concatenated": (-2, "half"),
    "n2fd-interleaved": (-2, "every other"),
    "nd2f-concatenated": (-1, "half"),
    "nd2f-interleaved": (-1, "every other"),
    "n2fd-up-first": (-2, "second half"),
    "nd2f-up-first": (-1, "second half"),
}


def gates_of(weights: Gates, layout: str) -> Union[Tensor, List[Tensor]]:
    """The gate matrices in `weights`: [N, F, D], or a list with one [F, D] for each expert. Views; nothing is copied.

    weights: one parameter of all experts, or a list with one for each; layout: a name in LAYOUTS, the axes of one
    expert after the n. Gates come before ups, but in layouts named up-first. Raises ValueError for a layout that is
    none, or an odd number of rows.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"gates_of: layout is {layout!r}, which is none of {', '.join(LAYOUTS)}")
    if isinstance(weights, Tensor):
        return _gates(weights, layout)
    return [_gates(weight, layout) for weight in weights]


def _gates(weight: Tensor, layout: str) -> Tensor:
    axis, which = LAYOUTS[layout]
    if weight.dim() not in (2, 3):
        raise ValueError(f"gates_of: a weight of shape {tuple(weight.shape)} is no [N, …, …] and no matrix of one expert")
    neurons = weight if axis == -2 else weight.transpose(-1, -2)
    if which == "all":
        return neurons
    count = neurons.shape[-2]
    if count % 2:
        raise ValueError(f"gates_of: {layout} of shape {tuple(weight.shape)} has {count} rows, no gates and ups in pairs")
    if which == "every other":
        return neurons[..., ::2, :]
    return neurons.narrow(-2, count // 2 if which == "second half" else 0, count // 2)
