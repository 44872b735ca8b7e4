"""Asks torch-fidelity, clean-fid and PyTorch for the numbers in ``inception.json``.

    python tests/golden/make_inception.py > tests/golden/inception.json

In the environment of ``make_metrics.py``. The weights are random: what is compared is the structure
and what is done to a picture before, not what the published model knows.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
for part in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
    sys.modules[f"torchvision{part}"] = mock.MagicMock()


def pick(x: Any) -> dict[str, Any]:
    """Enough of an array to tell it from another."""
    flat = x.double().flatten()
    return {
        "sum": float(flat.sum()),
        "squares": float((flat**2).sum()),
        "some": flat[::97][:24].tolist(),
    }


def main() -> None:
    torch = import_module("torch")
    made = import_module("inception_weights")
    theirs = import_module("torch_fidelity.feature_extractor_inceptionv3")
    tensorflow = import_module("torch_fidelity.interpolate_compat_tensorflow")
    clean = import_module("cleanfid.resize").build_resizer("clean")
    with (
        mock.patch.object(theirs, "load_state_dict_from_url"),
        mock.patch.object(theirs.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        model = theirs.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    state = {k: torch.from_numpy(v) for k, v in made.weights(shapes).items()}
    model.load_state_dict(state, strict=False)
    out: dict[str, Any] = {
        "versions": {
            p: metadata.version(p) for p in ("torch-fidelity", "clean-fid", "torch", "pillow")
        },
        "shapes": shapes,
        "pictures": [],
    }
    for picture in made.pictures():
        x = torch.from_numpy(picture).permute(2, 0, 1)[None]
        with torch.inference_mode():
            features, logits = model(x)
        resized = tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
            x.float(), size=(299, 299), align_corners=False
        )
        out["pictures"].append(
            {
                "tensorflow1": pick(resized),
                "clean": pick(torch.from_numpy(clean(picture)).permute(2, 0, 1)),
                "features": pick(features),
                "logits": pick(logits),
            }
        )
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
