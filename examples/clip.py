"""CLIP with a learnable scale, on pictures of one coloured square and captions of two words.

Many pairs of a batch have the same caption; ``ids`` keeps them from being each other's negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ctloss

COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
SIDE, SIZE, PLACES = 12, 4, 9
torch.manual_seed(0)


def captions_of(numbers: Tensor) -> Tensor:
    """A caption's two words: the colour's number, and that of the place."""
    return torch.stack((numbers % len(COLOURS), len(COLOURS) + numbers // len(COLOURS)), dim=1)


def draw(n: int) -> tuple[Tensor, Tensor]:
    """Pictures of a square in one of nine places, with noise, and the numbers of their captions."""
    numbers = torch.randint(PLACES * len(COLOURS), (n,))
    images = torch.zeros(n, 3, SIDE, SIDE)
    for image, number in zip(images, numbers.tolist(), strict=True):
        down, right = (SIZE * step for step in divmod(number // len(COLOURS), 3))
        image[:, down : down + SIZE, right : right + SIZE] = COLOURS[number % len(COLOURS)][:, None, None]
    return images + 0.3 * torch.randn(images.shape), numbers


def zero_shot(of_images: nn.Module, of_texts: nn.Module, images: Tensor, numbers: Tensor) -> float:
    """How often a picture's nearest caption, of all there are, is its own."""
    with torch.no_grad():
        texts = of_texts(captions_of(torch.arange(PLACES * len(COLOURS))))
        similarities = of_images(images) @ nn.functional.normalize(texts, dim=1).T
    return (similarities.argmax(1) == numbers).double().mean().item()


def main() -> None:
    """Trains, and prints zero-shot accuracy before and after, and what the scale became."""
    of_images = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 128), nn.GELU(), nn.Linear(128, 32))
    of_texts = nn.Sequential(nn.EmbeddingBag(len(COLOURS) + PLACES, 64), nn.Linear(64, 32))
    criterion = ctloss.InfoNCELoss(negatives="cross", temperature=0.07, learnable_temperature=True)
    modules = nn.ModuleList((of_images, of_texts, criterion))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=3e-3)
    unseen = draw(300)
    before = zero_shot(of_images, of_texts, *unseen)
    for _ in range(150):
        images, numbers = draw(128)
        loss = criterion(of_images(images), of_texts(captions_of(numbers)), ids=numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = zero_shot(of_images, of_texts, *unseen)
    print(f"captions found: {before:.2f} before, {after:.2f} after")
    with torch.no_grad():
        print(f"scale: {1 / 0.07:.1f} before, {1 / float(criterion.current_temperature()):.1f} after")


if __name__ == "__main__":
    main()
