"""Faults of the CUDA kernel of blended_kl, run on the CPU."""

RUN = "ctest blended_kl_cuda"
RACES = "ctest blended_kl_cuda_races"

FAULTS = {
    "toast_kernels/blended_kl/cuda.py": [
        (
            "alpha in a tensor is read in another dtype",
            "return problem._replace(**tensors) if tensors else problem",
            "return problem",
            "tests/blended_kl/test_blended_kl_cuda.py::test_numbers_in_tensors_of_any_dtype",
        ),
    ],
    "csrc/cuda/block.cuh": [
        (
            "every block counts the lists",
            "const bool lists = rank() == 0;",
            "const bool lists = true;",
            RUN,
        ),
        (
            "the entropy of a row beside masked classes is the stored one",
            "if (k == kPast) row.past_entropy += more;",
            "",
            RUN,
        ),
        (
            "a block gives statistics anew before another has taken the first",
            "    sync_cluster();  // all blocks have taken the statistics\n",
            "",
            RACES,
        ),
        (
            "warps' statistics are read before they are written",
            "shared_.warp[turn][warp()] = mine;\n    __syncthreads();",
            "shared_.warp[turn][warp()] = mine;\n    __syncwarp();",
            RACES,
        ),
        (
            "a block that is late reads what it was given too early",
            "in_block(shared_.block[turn], lane())[rank()] = block;",
            "in_block(shared_.block[(turn + 1) / 2], lane())[rank()] = block;",
            RUN,
        ),
        (
            "the next row is looked up over the one that is worked on",
            "3 - now - next);",
            "now);",
            RUN,
        ),
        (
            "old predictions count at T = 1",
            "Held::has_past(row) ? task_.base_at_t : Base{kLog2e, 1, 1};",
            "Base{kLog2e, 1, 1};",
            RUN,
        ),
        (
            "rows that are ignored get a gradient",
            "held_.clear();",
            "",
            RUN,
        ),
    ],
    "csrc/cuda/row_work.cuh": [
        (
            "the single classes do not count",
            "held_.for_each_single(span_, [&](int j) { add_single(s, j); });",
            "",
            RUN,
        ),
        (
            "the largest logit may be one that is not looked at",
            "held_.for_each_single(span_, [&](int j) { top = fmaxf(top, span_.logit(j)); });",
            "",
            RUN,
        ),
        (
            "0 * -inf is NaN",
            "if (!(fabsf(s.sum[kDot]) < kInf) && row_.used) {",
            "if (false) {",
            RUN,
        ),
        (
            "masses that are read again are added to those that were read first",
            "s.sum[kDot] = s.sum[kClassMass] = s.sum[kPastMass] = 0;",
            "s.sum[kDot] = 0;",
            RUN,
        ),
        (
            "the gradient at masked classes has the tails",
            "if (!row_.masked) return;",
            "return;",
            RUN,
        ),
        (
            "single classes of rows that are ignored get a gradient",
            "round_to(row_.used ? g : 0, ",
            "round_to(g, ",
            RUN,
        ),
        (
            "classes of lists are written before the vectors that they lie in",
            "!row_.has_lists()) return;\n    __syncthreads();",
            "!row_.has_lists()) return;",
            RACES,
        ),
        (
            "a class that two lists have is written by two threads",
            "if (here && !row_.listed_before(k, j))",
            "if (here)",
            RACES,
        ),
        (
            "a class of a list is written by every block",
            "if (here && !row_.listed_before(k, j))",
            "if (!row_.listed_before(k, j))",
            RACES,
        ),
        (
            "the label's class has no mass of its own in the gradient",
            "float mass = row_.hard_at(j);",
            "float mass = 0;",
            RUN,
        ),
        (
            "the gradient of a label that a list has is the list's alone",
            "mass += masses_at(j, lists).both();",
            "mass = (lists ? 0 : mass) + masses_at(j, lists).both();",
            RUN,
        ),
        (
            "T = 3 is T = 2",
            "for (int i = 1; i < base_.power; ++i)",
            "for (int i = 1; i < base_.power && i < 2; ++i)",
            RUN,
        ),
        (
            "vectors of the gradient are one class off",
            "to + span_.first_class(at), aligned);",
            "to + span_.first_class(at) - (at > 0), aligned);",
            RUN,
        ),
    ],
    "csrc/cuda/held_row.cuh": [
        (
            "vectors begin where the row does",
            "const int head = int(",
            "const int head = 0 * int(",
            RUN,
        ),
        (
            "a label is written by a thread that has not written its vector",
            "j - span.vectors * kW) % threads;",
            "j) % threads;",
            RACES,
        ),
        (
            "a vector that the next row lacks keeps the last one's logits",
            "z[v] = load_from(span.logits, true, minus_infinities<T>());",
            "z[v] = load_from(span.logits, true, v == 0 ? minus_infinities<T>() : z[v]);",
            RUN,
        ),
        (
            "a row without a past gets the table's first",
            "row.scaled[kPast].is_full(), {});",
            "row.scaled[kPast].values != nullptr, {});",
            RUN,
        ),
    ],
    "csrc/cuda/blended_kl.cu": [
        (
            "clusters that the GPU has no room for are launched",
            "while (clusters == 0 && (limits.cluster /= 2) > 0);",
            "while (false);",
            RUN,
        ),
    ],
    "csrc/cuda/launch.cuh": [
        (
            "no room for a cluster is an error",
            "if (error == cudaErrorInvalidClusterSize) return cudaGetLastError(), 0;  // which forgets it",
            "",
            RUN,
        ),
        ("a size of cluster that is refused is an error later", "return cudaGetLastError(), 0;", "return 0;", RUN),
    ],
    "csrc/cuda/plan.cpp": [
        (
            "tables are held that do not lie as the logits do",
            "return table.dtype == p.dtype && alike;",
            "return table.dtype == p.dtype;",
            RUN,
        ),
        (
            "tables of another type are held",
            "return table.dtype == p.dtype && alike;",
            "return alike;",
            RUN,
        ),
        (
            "a cluster is planned that is one block too small",
            "std::max(divided_up(units, of_a_thread * most_threads), std::int64_t(1));",
            "std::max(units / (of_a_thread * most_threads), std::int64_t(1));",
            RUN,
        ),
    ],
    "csrc/cuda/row.cuh": [
        (
            "a tail is not spread anew over fewer classes",
            "tail = sharing > 0 ? float(rest / sharing) : 0;",
            "",
            RUN,
        ),
        (
            "masked classes keep their share of a tail",
            "masked && z == -kInf ? 0 : list.tail",
            "list.tail",
            RUN,
        ),
        (
            "a listed class gets what the list leaves to others",
            "const int place = lists ? term.place_of(j) : -1;",
            "const int place = -1;",
            RUN,
        ),
    ],
    "csrc/cuda/look_up.cuh": [
        ("both labels of Mixup have the first's share", "return which == 0 ? lam : 1 - lam;", "return lam;", RUN),
        (
            "what a list leaves is spread over the listed classes too",
            "float(max(classes - table.width, std::int64_t(1)))",
            "float(classes)",
            RUN,
        ),
        (
            "what old logits are less than is rounded to one float",
            "scaled.scale *= exp2_approx(float(double(scaled.shift) - shift));",
            "",
            "tests/blended_kl/test_blended_kl_cuda.py -k far_from_0",
        ),
    ],
    "csrc/cuda/statistics.cuh": [
        (
            "warps' sums are added without rescaling",
            "sum[kSum] *= exp2_approx(d * base.t);",
            "",
            RUN,
        ),
        (
            "warps' products are added without shifting",
            "sum[kDot] += d * (sum[kClassMass] + sum[kPastMass]);",
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
            "const Normalisers mine = lane() < blocks ?",
            "const Normalisers mine = lane() < min(blocks, 8) ?",
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
