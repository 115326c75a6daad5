"""A real Qwen2.5-VL that gives one reply whatever it is asked: what a local model writes can then be right."""

import torch
from tokenizers import AddedToken

from sharevl_lite.config_model import ModelSection
from sharevl_lite.policy.hf import load_base


def save_parrot(folder, reply):
    """The digits model with all layers silenced and the reply as one token: the prompt's last token leads to it."""
    model, processor = load_base(ModelSection(path="builtin:digits-vl"), torch.device("cpu"))
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([AddedToken(reply, normalized=False)])
    said, end = tokenizer.convert_tokens_to_ids(reply), tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = model.model.language_model
    with torch.no_grad():
        for layer in text.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        text.norm.weight.fill_(1.0)
        text.embed_tokens.weight.zero_()
        text.embed_tokens.weight[:, 0] = 1.0  # any token but the reply
        text.embed_tokens.weight[said, :2] = torch.tensor([0.0, 1.0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[said, 0] = model.lm_head.weight[end, 1] = 10.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
