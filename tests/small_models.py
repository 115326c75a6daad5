"""Random models of the published ones' families, small, with the shipped processor (see scripts/random_models.py)."""

from pathlib import Path

import torch

from sharevl_lite.model_shape import PUBLISHED

SMALL = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def write_small_model(name, folder, monkeypatch, layers=2):
    """Writes a model of the family that `name` is of, `layers` deep, into `folder`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import random_models

    family, sizes = PUBLISHED[name]
    text = sizes["text_config"] | SMALL | ({"head_dim": 32} if family == "qwen3_vl" else {})
    vision = sizes["vision_config"] | {"depth": 2, "num_heads": 4}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 64, "hidden_size": 128}
    else:
        vision |= {"hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 128, "num_position_embeddings": 64}
        vision |= {"deepstack_visual_indexes": [0, 1]} if family == "qwen3_vl" else {"fullatt_block_indexes": [1]}
    monkeypatch.setitem(random_models.PUBLISHED, name, (family, sizes | {"text_config": text, "vision_config": vision}))
    monkeypatch.setitem(random_models.ROPE, family, random_models.ROPE[family] | {"mrope_section": [4, 6, 6]})
    random_models.write_random_model(name, folder, dtype=torch.float32, layers=layers)
