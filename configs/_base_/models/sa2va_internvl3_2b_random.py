# The 2B model at its true size with random weights, for measuring memory and speed.
_base_ = ["./sa2va_internvl3_8b_random.py"]

model = dict(
    mllm=dict(
        config=dict(
            text_config=dict(
                hidden_size=1536,
                intermediate_size=8960,
                num_attention_heads=12,
                num_key_value_heads=2,
            ),
        ),
    ),
)
