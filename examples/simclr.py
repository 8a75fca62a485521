"""SimCLR on images made here: two random views of a picture are a pair, every other view of the batch is a negative.

The labels are used only to measure: is a picture's nearest neighbour of its own kind?
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ctloss

KINDS, SIDE = 6, 16
torch.manual_seed(0)


def draw(n: int) -> tuple[Tensor, Tensor]:
    """Stripes of three directions and two widths, shifted, in random colours, with noise; and their kinds."""
    kinds = torch.randint(KINDS, (n,))
    down, right = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    places = torch.stack((down, right, down + right))[kinds % 3]
    waves = torch.sin((places + torch.randint(SIDE, (n, 1, 1))) * (1.6 - 0.9 * (kinds // 3))[:, None, None])
    images = waves[:, None] * torch.rand(n, 3, 1, 1) + torch.rand(n, 3, 1, 1)
    return images + 0.3 * torch.randn(images.shape), kinds


def view(images: Tensor) -> Tensor:
    """Another shift, colours that are mixed anew, a hidden patch and noise."""
    images = torch.stack([image.roll(tuple(torch.randint(SIDE, (2,)).tolist()), (1, 2)) for image in images])
    images = torch.einsum("nchw,ncd->ndhw", images, torch.rand(len(images), 3, 3))
    top, left = torch.randint(SIDE - 5, (2,)).tolist()
    images[:, :, top : top + 5, left : left + 5] = 0
    return images + 0.1 * torch.randn(images.shape)


def neighbours_agree(encoder: nn.Module, images: Tensor, kinds: Tensor) -> float:
    """How often the nearest of the other pictures is of the same kind."""
    with torch.no_grad():
        rows = nn.functional.normalize(encoder(images), dim=1)
    nearest = (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(1)
    return (kinds[nearest] == kinds).double().mean().item()


def main() -> None:
    """Trains, and prints the agreement before and after."""
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    images, kinds = draw(300)
    before = neighbours_agree(encoder, images, kinds)
    for _ in range(80):
        batch, _ = draw(96)
        loss = ctloss.info_nce(head(encoder(view(batch))), head(encoder(view(batch))), temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"nearest of the same kind: {before:.2f} before, {neighbours_agree(encoder, images, kinds):.2f} after")


if __name__ == "__main__":
    main()
