"""The calls of an op while other code runs, to check the op with what it really gets."""

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Keeps the arguments of each call of the op: under a dispatch mode the library's functions go through it."""

    def __init__(self, op):
        super().__init__()
        self.op = op
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function == self.op:
            self.seen.append(arguments)
        return function(*arguments, **(keywords or {}))
