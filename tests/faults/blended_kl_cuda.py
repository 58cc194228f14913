"""Faults of the CUDA kernel of blended_kl, run on the CPU."""

RUN = "ctest blended_kl_cuda"
RACES = "ctest blended_kl_cuda_races"

FAULTS = {
    "csrc/cuda/block.cuh": [
        (
            "nobody waits for the copies of the logits",
            "wait_for_copies<1>();",
            "wait_for_copies<2>();",
            RUN,
        ),
        (
            "a step begins while the last one is still worked on",
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
            "if (slice.has(place + k)) round_to(g[k], to[place + k]);",
            "if (slice.has(place + k) && aligned) round_to(g[k], to[place + k]);",
            RUN,
        ),
        (
            "a block that is late reads what it was given too early",
            "exchange_ = 1 - exchange_;",
            "",
            RACES,
        ),
        (
            "the next row is looked up over the one that is worked on",
            "look_up(step.row + task_.clusters, 1 - step.turn);",
            "look_up(step.row + task_.clusters, step.turn);",
            RUN,
        ),
        (
            "of a row in pieces the last piece's statistics count alone",
            "if (first_piece) {",
            "if (true) {",
            RUN,
        ),
        (
            "a row in pieces has its gradient written one piece off",
            ": 2 * pieces - 2 - step.number;",
            ": 2 * pieces - 1 - step.number;",
            RUN,
        ),
        (
            "the labels' mass is added by no block but the first",
            "if (row.label[which] < 0 || !slice.has(slice.place_of(row.label[which]))) continue;",
            "if (row.label[which] < 0 || row.label[which] >= slice.n) continue;",
            RUN,
        ),
        (
            "rows that are ignored get a gradient",
            "if (!used) element = 0;  // whatever the logits hold",
            "",
            RUN,
        ),
    ],
    "csrc/cuda/row.cuh": [
        ("both labels of Mixup have the first's share", "return which == 0 ? lam : 1 - lam;", "return lam;", RUN),
        (
            "what a list leaves is spread over the listed classes too",
            "float(max(classes - table.width, std::int64_t(1)))",
            "float(classes)",
            RUN,
        ),
        (
            "what old logits are less than is rounded to one float",
            "scaled.low = float(shift - double(scaled.high));",
            "scaled.low = 0;",
            "tests/test_blended_kl_cuda.py -k far_from_0",
        ),
    ],
    "csrc/cuda/target.cuh": [
        ("a class that two lists have counts twice", "if (!first) continue;", "", RUN),
        (
            "a listed class keeps what the others get",
            "sums.of_class += of_class - (smoothed(j) + uniform);",
            "sums.of_class += of_class - smoothed(j);",
            RUN,
        ),
        (
            "what lies before and after whole vectors of a table is forgotten",
            "others = head + end - last;",
            "others = head;",
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
    "csrc/cuda/sums.cuh": [
        (
            "the loss adds up no more than two rows a thread",
            "i < rows; i += kSumThreads",
            "i < rows && i < 2 * kSumThreads; i += kSumThreads",
            RUN,
        ),
        (
            "the normalisers leave out what blocks have in their second turn",
            "i += std::int64_t(gridDim.x) * kSumThreads",
            "i += p.rows",
            RUN,
        ),
        (
            "the normalisers are those of eight blocks",
            "const int lane = int(threadIdx.x) % 32;\n  return {warp_sum(lane < blocks",
            "const int lane = int(threadIdx.x) % 32;\n  blocks = min(blocks, 8);\n  return {warp_sum(lane < blocks",
            RUN,
        ),
        (
            "every other turn of the scaling is left out",
            "i < whole; i += threads",
            "i < whole; i += 2 * threads",
            RUN,
        ),
    ],
}
