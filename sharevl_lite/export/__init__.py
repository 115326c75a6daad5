"""`sharevl-lite export`: a run's adapter as a model that other programs load, checked before it says done.

`merged-16bit` writes W + s·B·A, computed in float32, for every adapted weight W of the base checkpoint and rounds it to
the type W is stored in (`merge`). Names, types and files are those of the base checkpoint, not of the module tree that
transformers builds from it: vLLM and older loaders read what they would read of the base. A base that is stored in
float32 stays float32, whatever the format's name says.

What is written is read again from the disk and must, before it gets its name (`verify`),

- hold the base checkpoint's tensors, no more and no fewer, of the same shapes and types;
- be the base's bit for bit where nothing was adapted, and PEFT's own W + ΔW within half a unit in the last place where
  something was;
- load without a missing or unexpected key, and process the run's own prompts and images as the base does;
- give, on those, the logits of base and adapter: the root mean square of what differs stays below a share of the
  root mean square of what the adapter does to the logits.

Rounding is the reason for a tolerance in units of the adapter's effect. A base weight lies on the 16-bit grid, so a ΔW
of less than half a step is rounded away altogether: a short or timid run can be lost in its own export without an error
anywhere. The verification says how much was lost and refuses an export that lost too much; `--format lora` loses
nothing.

`merged-4bit` packs that merged model in NF4 (`four_bit`). Every packed weight must be the level nearest to its merged
value, and the adapter must move the logits in 4 bits much as it moves them in the merged model (`verify_four_bit`).

A run with `model.load_in_4bit` trained its adapter against quantised weights. It is merged into the 16-bit ones, and
compared with those plus the adapter: a model close to the one trained, but not the same.
"""
