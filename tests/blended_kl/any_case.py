"""Cases of blended_kl that hypothesis makes up."""

from blended_kl_cases import ENCODINGS, Case
from optional import strategies as st


def any_case(**varied):
    """A strategy: what is varied besides tables and numbers is given by name."""
    return st.builds(
        Case,
        soft=st.sampled_from(ENCODINGS),
        past=st.sampled_from(ENCODINGS),
        weighted=st.booleans(),
        alpha=st.sampled_from([0.0, 0.1, 0.8, 1.0]),
        past_weight=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
        temperature=st.sampled_from([0.7, 1.0, 2.0, 3.0, 3.5, 4.0, 6.0]),
        label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
        reduction=st.sampled_from(["none", "mean", "sum"]),
        seed=st.integers(0, 10_000).map(lambda seed: 10 * seed),
        **varied,
    )
