"""The files of runs and exports, read and changed by tests."""

from safetensors.torch import load_file, save_file

ADAPTER = "adapter_model.safetensors"


def scale_adapter(run, factor):
    """Makes the adapter's effect on every weight `factor` times as large."""
    file = run / "adapter" / ADAPTER
    tensors = {name: t * factor if "lora_B" in name else t for name, t in load_file(str(file)).items()}
    save_file(tensors, str(file), metadata={"format": "pt"})


def tensors_of(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(str(file)).items()}
