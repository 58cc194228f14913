"""What torch's allocator hands out on a CPU during a call."""

from torch.profiler import ProfilerActivity, profile


def allocations(function):
    """Bytes of each allocation, freed ones negative, in order; of a second call."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    return [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]


def peak_bytes(function):
    """The most that is held at once, beyond what was held before."""
    live = peak = 0
    for size in allocations(function):
        live += size
        peak = max(peak, live)
    return peak
