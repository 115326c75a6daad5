"""The policy: a vision-language model with LoRA that scores packed rows."""
