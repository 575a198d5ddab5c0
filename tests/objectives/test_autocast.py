"""What objectives compute from embeddings has single precision under autocast too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from objectives.contrastive import Contrastive, OneToK, top_one_accuracy
from objectives.pairs import Triplet
from objectives.picture_pairs import pair_weights
from objectives.vicreg import off_diagonal_covariance

NUM_PAIRS = 12
ID = torch.arange(NUM_PAIRS)


def embeddings(seed: int) -> torch.Tensor:
    """Unit vectors (M, E) so near to each other that bf16 takes their products for equal."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(1 + 0.02 * torch.randn(NUM_PAIRS, 16, generator=generator), dim=1)


IMAGE, TEXT = embeddings(0), embeddings(1)
STEP = SimpleNamespace(
    images=SimpleNamespace(embed=IMAGE), texts=SimpleNamespace(embed=TEXT), image_id=ID, text_id=ID,
    temperature=torch.tensor(0.07), text_embeds=[TEXT], batch=SimpleNamespace(image_of_text=ID),
)  # fmt: skip
WAYS = {
    "itc": lambda: Contrastive(Contrastive.Config())(STEP),
    "one_to_k": lambda: OneToK(OneToK.Config())(STEP),
    "triplet": lambda: Triplet(Triplet.Config())(STEP),
    "covariance": lambda: off_diagonal_covariance(100 * IMAGE),
    "in-batch accuracy": lambda: top_one_accuracy(IMAGE, IMAGE, ID, ID),
    "weights of second pictures": lambda: pair_weights(IMAGE, 0.001),
}


@pytest.mark.parametrize("name", WAYS)
def test_autocast_changes_nothing(name):
    expected = WAYS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(WAYS[name](), expected, rtol=1e-6, atol=1e-6)
