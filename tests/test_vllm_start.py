"""What is done around the start of vLLM, without vLLM."""

import contextlib
import io
import sys

import torch

from sharevl_lite.vllm_start import starting_vllm


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
        with starting_vllm():
            assert not sizes_in_a_graph()


def test_standard_output_has_a_file_there():
    """A notebook's, or a caller's that keeps what is printed, may have none."""
    with contextlib.redirect_stdout(io.StringIO()) as kept:
        with starting_vllm():
            assert sys.stdout.fileno() >= 0
        assert sys.stdout is kept


def test_standard_output_that_is_a_file_stays(tmp_path):
    with open(tmp_path / "out", "w") as file, contextlib.redirect_stdout(file), starting_vllm():
        assert sys.stdout is file
