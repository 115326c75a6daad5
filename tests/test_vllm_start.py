"""What is done around the start of vLLM, without vLLM."""

import contextlib
import io
import sys

import pytest
import torch

from sharevl_lite.vllm_start import starting_vllm, threads_of_vllm


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


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_that_vllm_takes_are_for_sampling_alone(three_threads):
    """vLLM 0.31 leaves one for the whole process when its worker on a GPU has loaded a model."""
    for taken in (1, 3):  # the second engine takes none
        with starting_vllm():
            torch.set_num_threads(taken)
        assert torch.get_num_threads() == 3
        with threads_of_vllm():
            assert torch.get_num_threads() == taken
        assert torch.get_num_threads() == 3


def test_threads_come_back_from_a_start_or_a_rollout_that_fails(three_threads):
    def fail():
        torch.set_num_threads(1)
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"), starting_vllm():
        fail()
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="no memory"), threads_of_vllm():
        fail()
    assert torch.get_num_threads() == 3
