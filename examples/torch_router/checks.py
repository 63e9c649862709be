"""What the checks of PyTorch share: counting, the authors' formula, and how far off a result is."""

import sys

import torch
import torch.nn.functional as F

checks = failures = 0


def check(condition, what):
    global checks, failures
    checks += 1
    if not condition:
        failures += 1
        print("FAILED:", what, flush=True)


def finish(name):
    """Prints the counts, and ends with 1 where a check failed or there was none."""
    print(f"{name}, PyTorch {torch.__version__}: {checks} checks, {failures} failures", flush=True)
    sys.exit(failures != 0 or checks == 0)


def formula(gates, rows, radius):
    """Eq. 4 and 5: gates [N, F, D] hold the transposes of the paper's W_g."""
    projection = torch.einsum("nfd,nd->nf", gates, rows)
    return radius * F.normalize(torch.einsum("nf,nfd->nd", projection, gates), dim=-1)


def distance(x, reference):
    """Relative, in the norm."""
    return ((x.double() - reference).norm() / reference.norm()).item()
