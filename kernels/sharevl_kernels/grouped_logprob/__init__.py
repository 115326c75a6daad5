"""Log-probs of target tokens from hidden states and a language-model head."""

from sharevl_kernels.grouped_logprob.op import GroupedLogprobs, grouped_logprob

__all__ = ["GroupedLogprobs", "grouped_logprob"]
