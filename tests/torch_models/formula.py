"""Eq. 4 and 5 in PyTorch, for autograd: what the tests compare with."""

import math

import torch
import torch.nn.functional as F


def formula(gates, rows, radius=None, steps=1):
    """gates [N, F, D] hold the transposes of the paper's W_g; rows [N, D]. As the authors' code, in the types given."""
    radius = 4 / math.sqrt(rows.shape[0]) if radius is None else radius
    for _ in range(steps):
        projection = torch.einsum("nfd,nd->nf", gates, rows)
        rows = radius * F.normalize(torch.einsum("nf,nfd->nd", projection, gates), dim=-1)
    return rows


def distance(x, reference):
    """Relative in the norm; absolute below a norm of 1, for gradients that cancel."""
    return ((x.double() - reference.double()).norm() / reference.double().norm().clamp(min=1)).item()
