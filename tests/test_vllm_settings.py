"""What the in-process engine does around vLLM, without vLLM."""

import torch

from sharevl_lite.rollout.vllm import _compiler_settings


def sizes_in_a_graph():
    """Nodes of a traced function's graph that ask for a size, as vLLM's own LoRA layers make them."""
    found = []

    def make_buffer(values):
        buffer = torch.empty((3, values.size(0), 4))
        return buffer.zero_() + values.sum()

    def keep(module, example):
        found.extend(node for node in module.graph.nodes if node.target == "size")
        return module.forward

    torch._dynamo.reset()
    values = torch.randn(5, 2)
    torch._dynamo.mark_dynamic(values, 0)
    torch.compile(make_buffer, backend=keep, fullgraph=True)(values)
    return found


def test_a_graph_beside_unsloth_keeps_no_sizes():
    """Seen on an H100: with Unsloth's setting vLLM 0.25 failed to split a graph and did not start."""
    with torch._dynamo.config.patch(do_not_emit_runtime_asserts=True):  # as Unsloth sets it
        assert sizes_in_a_graph()
        with _compiler_settings():
            assert not sizes_in_a_graph()
