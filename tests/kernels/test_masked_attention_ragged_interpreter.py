from interpreter import run_interpreted


def test_ragged_attention_agrees_with_dense_attention_in_the_interpreter():
    run_interpreted("masked_attention_ragged", timeout=900.0)
