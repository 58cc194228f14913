"""What torch.compile leaves out."""

import torch


def leave_uncompiled(cls: type, *names: str) -> None:
    """torch.compiler.disable on methods of a class. To be called by its __init__, and not as a decorator: that would
    import all of torch._dynamo with this library, which takes seconds; every optimizer imports it when it is made."""
    for name in names:
        method = getattr(cls, name)
        if not hasattr(method, "_torchdynamo_disable"):
            setattr(cls, name, torch.compiler.disable(method))
