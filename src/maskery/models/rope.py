"""Change the base of rotary positions, so that a model reads longer sequences.

Su et al., RoFormer (2021), section 3.2: position p turns pair i of a head's d values by
p * base^(-2i / d). A higher base turns them more slowly; ModernBERT (Warner et al., 2024, section
2.2.2) goes from 10,000 to 160,000 where it goes from 1,024 tokens to 8,192.
"""

from transformers import PreTrainedModel

from maskery.core.errors import ConfigError

# Layers that see a window of the text alone keep their base: their distances stay as short.
FAR = "full_attention"


def set_rope_base(hf: PreTrainedModel, base: float, length: int | None = None) -> None:
    """Set the base, and the limit to `length` tokens if higher; without a base, a ConfigError."""
    config = hf.config.get_text_config()
    now = getattr(config, "rope_parameters", None)
    kinds = ((name, type(one)) for name, one in hf.named_modules(remove_duplicate=False))
    rotary = [(name, kind) for name, kind in kinds if kind.__name__.endswith("RotaryEmbedding")]
    if not now or not rotary:
        models = f"models of the family '{config.model_type}' with these settings"
        problem = f"{models} have no rotary positions whose base can be set"
        raise ConfigError(f"--rope-base {base:g}: {problem}; leave it out")
    # One record, or one for each kind of layer.
    far = {"rope_theta": base}
    config.rope_parameters = {**now, FAR: {**now[FAR], **far}} if FAR in now else {**now, **far}
    if length is not None and length > (config.max_position_embeddings or length):
        config.max_position_embeddings = length
    for name, kind in rotary:  # its tables are made with it; they are no weights
        hf.set_submodule(name, kind(config).to(hf.device))
