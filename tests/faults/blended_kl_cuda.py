"""Faults of the CUDA kernel of blended_kl, run on the CPU."""

RUN = "ctest blended_kl_cuda"
RACES = "ctest blended_kl_cuda_races"

FAULTS = {
    "csrc/cuda/block.cuh": [
        (
            "nobody waits for the copies of the logits",
            "__syncthreads();  // what is to be worked on is here",
            "",
            RACES,
        ),
        (
            "the next logits are copied over those that are worked on",
            "__syncthreads();  // nobody works on it any more",
            "",
            RACES,
        ),
        (
            "the target row is read before it is written",
            "__syncthreads();  // and the target row is written",
            "__syncwarp();",
            RACES,
        ),
        (
            "the gradient's columns are one off",
            "const bool aligned = reinterpret_cast<std::uintptr_t>(to) % 16 == 0;",
            "to -= slice.begin > 0; const bool aligned = reinterpret_cast<std::uintptr_t>(to) % 16 == 0;",
            RUN,
        ),
        (
            "the elements before and after whole vectors are forgotten",
            "if (slice.has(place + k)) narrow(g[k], to[place + k]);",
            "if (slice.has(place + k) && aligned) narrow(g[k], to[place + k]);",
            RUN,
        ),
    ],
    "csrc/cuda/statistics.cuh": [
        (
            "blocks' sums are added without rescaling",
            "s.sum *= exp2_approx(d * kLog2e);",
            "",
            RUN,
        ),
    ],
    "csrc/cuda/ptx.cuh": [
        (
            "a block's barrier for the cluster's",
            "{ cooperative_groups::this_cluster().barrier_arrive(); }\n"
            "__device__ inline void cluster_wait() { cooperative_groups::this_cluster().barrier_wait(); }",
            "{}\n__device__ inline void cluster_wait() { __syncthreads(); }",
            RUN,
        ),
    ],
}
