"""Faults of the choice of a backend."""

TESTS = "tests/library/test_backends.py::"

FAULTS = {
    "toast_kernels/backends.py": [
        (
            "auto takes cuda for rows that it does not hold",
            "(held and width >= kernels.auto_from)",
            "width is not None and width >= kernels.auto_from",
            TESTS + "test_auto_takes_cuda_for_long_rows_that_it_holds",
        ),
        (
            "auto hands float64 to kernels without it",
            "if dtype not in kernels.dtypes:",
            "if False:",
            TESTS + "test_auto_takes_kernels_that_can",
        ),
        (
            "rows of any width go to Triton",
            "kernels.widest is not None and width > kernels.widest",
            "False",
            TESTS + "test_auto_leaves_to_the_reference_what_no_kernel_can",
        ),
    ],
    "toast_kernels/blended_kl/plan.py": [
        (
            "auto hands a target that requires grad to kernels without its gradient",
            'if backend == "auto" and probabilities',
            "if False",
            TESTS + "test_the_loss_asks_with_its_dtype_and_its_target",
        ),
    ],
}
