"""The flags of Chinese-CLIP's trainer as settings of ours."""

from __future__ import annotations

from typing import Any

# --freeze-vision: the tower with its projection, and batch norms in evaluation mode.
FROZEN_VISION: dict[str, Any] = {
    "model.image_encoder.is_frozen": True,
    "optim.frozen": [r"^model\.image_projection\."],
}
