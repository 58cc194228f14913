"""Faults of class_medoids: its C++ kernels, and its chunks."""

CPP = "ctest medoids.generic"
COSTS = "ctest medoid_costs_generic"
MEDOIDS = "tests/medoids/test_medoids.py::"
SCIPY = MEDOIDS + "test_equals_scipy"
CERTIFIED = "tests/medoids/test_medoids_certified.py::"
CHUNKS = "tests/medoids/test_medoids_chunks.py::"
AT_ONCE = CHUNKS + "test_equals_all_at_once[sqeuclidean]"
BUDGET = CHUNKS + "test_a_row_is_gathered_once_in_ascending_order_within_the_budget"

FAULTS = {
    "toast_kernels/medoids/chunks.py": [
        ("every chunk's places begin at the first's", "start += len(rows)", "start += 0", AT_ONCE),
        ("chunks know no mask", "used &= mask", "pass", AT_ONCE),
        (
            "classes too large for a chunk are forgotten",
            "if too_large.any():\n        own",
            "if False:\n        own",
            AT_ONCE,
        ),
        (
            "a chunk's rows come by class",
            "chunk_of.argsort(stable=True)",
            "(chunk_of * len(labels) + labels).argsort()",
            BUDGET,
        ),
        ("chunks are too large", "done + most, right=True", "done + 2 * most, right=True", BUDGET),
        (
            "a label out of range counts where its row is not finite",
            "x[rows].isfinite().all(dim=1)",
            "rows >= 0",
            CHUNKS + "test_label_out_of_range_names_the_row_and_the_value",
        ),
        (
            "pinned memory is filled while it is copied",
            "copied[slot].synchronize()",
            "pass",
            CHUNKS + "test_pinned_memory_is_filled_again_only_after_it_was_copied",
        ),
        (
            "packed rows are not reckoned",
            "(x.element_size() + 4) + 256",
            "x.element_size() + 256",
            "tests/medoids/test_medoids_triton_memory.py::test_a_chunk_needs_no_more_than_it_is_reckoned_to[1-torch.bfloat16-cityblock]",
        ),
        (
            "a memory-mapped pool is copied",
            "x = x.detach()",
            "x = x.clone()",
            CHUNKS + "test_a_memory_mapped_pool_is_not_copied[sqeuclidean-chunks-torch.from_file]",
        ),
    ],
    "csrc/cpu/parallel.h": [
        ("what a thread throws ends the process", "catch (...)", "catch (const std::exception_ptr&)", CPP),
        ("what a thread throws is lost", "if (failure) std::rethrow_exception(failure);", "", CPP),
    ],
    "csrc/cpu/medoids/medoids.cpp": [
        ("non-finite rows stay in the pool", "all_finite(x, i);", "true;", MEDOIDS + "test_left_out_rows"),
        (
            "float16 is searched for bfloat16's infinities",
            "Bits(0x7c00u)",
            "Bits(0x7f80u)",
            MEDOIDS + "test_non_finite_values_are_seen_in_every_dtype_and_lane",
        ),
        (
            "the mask is ignored",
            "(labels.mask == nullptr || labels.mask[i * labels.mask_stride])",
            "true",
            MEDOIDS + "test_left_out_rows",
        ),
        ("labels are read as if contiguous", "const int64_t at = i * labels.stride;", "const int64_t at = i;", CPP),
        (
            "a label out of range is not noticed",
            "if (first_wrong < x.rows) return first_wrong;",
            "",
            "tests/medoids/test_medoids_op.py::test_label_out_of_range_names_the_row_and_the_value",
        ),
        (
            "a finer formula's costs go to other rows",
            "some.cost[i] = cost[some.positions[i]];",
            "some.cost[i] = cost[i];",
            CERTIFIED + "test_near_ties_are_decided_in_float64",
        ),
        ("large classes are left out", "if (is_large(rows_of(k), p.metric)) p.med", "if (false) p.med", CPP),
        (
            "a metric without a fast formula gets that of the means (C++)",
            "return Formula::none;",
            "return Formula::means;",
            "tests/medoids/test_medoids_new_metric.py",
        ),
    ],
    "csrc/cpu/medoids/costs.h": [
        (
            "a row's distance to itself counts",
            "if (positions[begin + i] != j) cost",
            "cost",
            MEDOIDS + "test_a_zero_row_is_at_cosine_distance_1_from_every_other",
        ),
        (
            "a zero row is at cosine distance 0.5",
            "a[w] + b[w] > 0 ? 1.0",
            "a[w] + b[w] > 0 ? 0.5",
            CPP,
        ),
        ("euclidean lacks its square root", "return std::sqrt(total);", "return total;", CPP),
        ("cityblock lacks its absolute value", "sum += absolute(difference);", "sum += difference;", CPP),
        (
            "jeffreys is squared",
            "sum += difference * (load(a + w + k) - load(b + w + k));",
            "sum += difference * difference;",
            CPP,
        ),
        (
            "the last of equals wins",
            "return std::find_if(cost, cost + n, [&](double c) { return c <= limit; }) - cost;",
            "while (!(cost[--n] <= limit)) {}\n  return n;",
            CPP,
        ),
        (
            "costs within 1e-12 are no tie",
            "lowest * (1 + 1e-12)",
            "lowest",
            CPP,
        ),
        (
            "the largest cost wins",
            "tie(*std::min_element(cost.begin(), cost.end())",
            "tie(*std::max_element(cost.begin(), cost.end())",
            MEDOIDS + "test_the_smallest_cost_wins_not_the_largest",
        ),
    ],
    "csrc/cpu/medoids/decide.h": [
        (
            "the first candidate wins",
            "if (all.count == 1) return all.positions[0];",
            "return all.positions[0];",
            CERTIFIED + "test_near_ties_are_decided_in_float64",
        ),
        (
            "bounds are not believed",
            "return std::fabs(cost) + reach < INFINITY ? reach : INFINITY;",
            "return 0;",
            CERTIFIED + "test_near_ties_are_decided_in_float64",
        ),
        (
            "duplicates keep the last",
            ": a.i < b.i;",
            ": a.i > b.i;",
            MEDOIDS + "test_duplicates_are_a_tie_and_the_first_one_wins",
        ),
        (
            "duplicates are all scored",
            "drop[hashed[i].i] = row == first;",
            "drop[hashed[i].i] = 0;",
            CERTIFIED + "test_thousands_of_duplicates_take_no_quadratic_time_in_float64",
        ),
    ],
    "csrc/cpu/medoids/rows.h": [
        (
            "rows are read as if contiguous",
            "row * x.row_stride + first * x.column_stride;",
            "row * x.width + first;",
            MEDOIDS + "test_layouts",
        ),
        ("softmax's padding counts", "std::fill(exp_ + matrix_.width, exp_ + w_, 0.0);", "", CPP),
        (
            "softmax does not subtract the largest logit",
            "norm_.top = largest_of(x_, w_);",
            "norm_.top = 0;",
            MEDOIDS + "test_jeffreys_of_large_logits",
        ),
        (
            "a row whose squares overflow is another one in the second pass",
            "if (metric == Metric::cosine && norm.exponent != 0) divide_by_power();",
            "",
            CERTIFIED + "test_cosine_of_rows_of_very_different_lengths",
        ),
    ],
    "csrc/cpu/medoids/means.h": [
        ("the mean counts zero rows", "std::max<int64_t>(1, count);\n  return count;", "c.n;\n  return count;", CPP),
        (
            "rounding of the mean is left out of the bound",
            "(count * (r.f * r.g + r.f * mean_g + r.g * mean_f) + products)",
            "0",
            CPP,
        ),
        (
            "exponentials in float are trusted as double's",
            "count * (off(r) + mean_off) * r.g + off_products",
            "0",
            CERTIFIED + "test_near_ties_are_decided_in_float64",
        ),
        (
            "a zero row costs nothing",
            "zero ? c.n - 1.0",
            "zero ? 0.0",
            MEDOIDS + "test_a_zero_row_is_at_cosine_distance_1_from_every_other",
        ),
        (
            "the sum over the class is left out",
            "half * (count * r.dot + dots) + zeros",
            "half * (count * r.dot - dots) + zeros",
            CPP,
        ),
    ],
    "csrc/cpu/medoids/cityblock.h": [
        ("ranks count half", "double(2 * rank - n_)", "double(rank - n_)", CPP),
        ("buckets leave nothing open", "bound_ += 2 * half * (largest_lane(fullest) - 1);", "", CPP),
        (
            "values above a bucket do not count",
            "2 * count_before + count_here - n_",
            "2 * count_before + count_here",
            CPP,
        ),
        ("a run of buckets knows none before it", "sum_before = before(sum);", "sum_before = 0;", CPP),
    ],
    "csrc/cpu/medoids/products.h": [
        ("the first part of wide rows' products is forgotten", "k == 0, prefetch", "true, prefetch", COSTS),
        (
            "products of the last columns are forgotten",
            "j < columns; j += step",
            "j + block < columns; j += step",
            COSTS,
        ),
        ("rows of a block are one off", "k * block + i % block, right", "k * block + (i + 1) % block, right", COSTS),
        (
            "the diagonal's last products are forgotten",
            "std::min(rows, j + step - diagonal)",
            "std::min(rows, j - diagonal)",
            COSTS,
        ),
        (
            "a last register that is not full is left out",
            "(columns - j + lanes - 1) / lanes",
            "(columns - j) / lanes",
            COSTS,
        ),
        (
            "only the last of some rows has all products",
            "std::max<int64_t>(0, i + diagonal + 1 - j)",
            "std::max<int64_t>(0, i + diagonal + held_rows - j)",
            COSTS,
        ),
        ("rows without columns have old products", "(width == 0 ? rows : 0)", "0", COSTS),
    ],
    "csrc/cpu/medoids/euclidean.h": [
        ("the column sums of a triangle are forgotten", "(triangle ? b.count : 0)", "0", COSTS),
        ("a row's next neighbour is left out", "self + 1), columns", "self + 2), columns", COSTS),
        ("rows of a rectangle lack what is before them", "if (!triangle) add(0", "if (false) add(0", COSTS),
        ("a pair is counted beyond a tile's edge", "if (j < begin || j + lanes > end)", "if (false)", COSTS),
        (
            "the bound leaves out the products' rounding",
            "bound += b;",
            "bound += 0 * b;",
            COSTS,
        ),
        (
            "the bound leaves out the rounding of the sums",
            "return 1.001 * bound + 160 * unit<Real> * cost;",
            "return 0 * bound;",
            COSTS,
        ),
        (
            "the bound stays in the panels' scale",
            "+ total_error) / scale_;",
            "+ total_error);",
            COSTS,
        ),
        (
            "rounding of the rows is not measured",
            "std::sqrt(error[i]) * (1 + 1e-6) + length * DBL_EPSILON;",
            "0;",
            COSTS,
        ),
        ("a panel's last rows are old ones", "Real y[group][chunk] = {};", "static Real y[group][chunk];", COSTS),
        ("all panels are the first", "everyone_.data() + j, std::min", "everyone_.data(), std::min", COSTS),
        (
            "wide rows are packed from their first columns on",
            "positions[first + i]], begin,",
            "positions[first + i]], 0,",
            COSTS,
        ),
        (
            "tiles of one panel lie one strip off",
            "2 * r * padded_columns + column",
            "2 * (r / 2) * padded_columns + column",
            COSTS,
        ),
    ],
}
