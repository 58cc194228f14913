"""What torch.compile leaves out."""

import functools

import torch


def leave_uncompiled(cls: type, *names: str) -> None:
    """Makes compilers break their graph at these methods of a class and run them eagerly; elsewhere they cost nothing
    more. To be called by its __init__, and not as a decorator: torch.compiler.disable imports all of torch._dynamo,
    which takes seconds; every optimizer imports it when it is made."""
    for name in names:
        method = getattr(cls, name)
        if not hasattr(method, "__wrapped__"):
            setattr(cls, name, _only_eager(method))


def _only_eager(method):
    disabled = torch.compiler.disable(method)

    @functools.wraps(method)
    def call(*arguments, **keywords):
        return (disabled if torch.compiler.is_compiling() else method)(*arguments, **keywords)

    return call


def run_as_is(function):
    """A decorator: where a compiled function calls this one in Python (as a backward pass in it does), torch.compile
    leaves it and all that it calls alone. Costs nothing and imports nothing; before PyTorch 2.7 it does nothing."""
    frames = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)  # no public interface
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function
