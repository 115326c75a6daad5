"""Stands in for llama.cpp's converter: the same options, real GGUF files, of the tensors that llama.cpp would name.

The real one refuses the demo's tokenizer, whose pre-tokeniser it does not know. What is written here is read with the
`gguf` package, as the real one's files are. SABOTAGE makes it go wrong.
"""

import argparse
import os
import sys
from pathlib import Path

import gguf
from safetensors.numpy import load_file


class ModelBase:
    """Unsloth reads from such classes, without running them, which models the converter knows."""

    def register(*names):
        return lambda model: model


class MmprojModel(ModelBase):
    pass


@ModelBase.register("Qwen2_5_VLForConditionalGeneration")
class Text(ModelBase):
    pass


@ModelBase.register("Qwen2_5_VLForConditionalGeneration")
class Vision(MmprojModel):
    pass


parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--split-max-size")
parser.add_argument("--outfile", required=True)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"])
parser.add_argument("--mmproj", action="store_true")
options = parser.parse_args()
sabotage = os.environ.get("SABOTAGE")
if sabotage == "fails":
    sys.exit("the model is of no known kind")
if sabotage == "needs":
    import a_module_that_nobody_has  # noqa: F401
if sabotage == "silent":
    sys.exit(0)
kind = gguf.GGMLQuantizationType.Q8_0 if options.outtype == "q8_0" else gguf.GGMLQuantizationType.F16
writer = gguf.GGUFWriter(options.outfile, "clip" if options.mmproj else "qwen2vl")
writer.add_context_length(2048)
writer.add_embedding_length(128)
writer.add_block_count(4)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 4)
for name, tensor in load_file(str(options.model / "model.safetensors")).items():
    if name.startswith("visual.") != options.mmproj:
        continue
    target = name if options.mmproj else names.get_name(name, try_suffixes=(".weight", ".bias"))
    values = tensor + 0.01 if sabotage == "other" and target == "blk.2.ffn_up.weight" else tensor
    if sabotage == "lacks" and target == "blk.3.attn_q.weight":
        continue
    if tensor.ndim == 2 and not options.mmproj:
        writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(target, values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
if sabotage == "torn":
    Path(options.outfile).write_bytes(b"half a file")
