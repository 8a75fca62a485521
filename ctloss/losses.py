"""The losses of pairs as functions: ``ctloss.cz_nce(x, y)``, ``ctloss.info_nce(x, y)``, ``ctloss.contrast(x, y)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor
