"""Faults of the C++ kernel of blended_kl."""

MASKED_TOP_K = "tests/blended_kl/test_blended_kl_masked_top_k.py::"
ROWS_WRITTEN_OUT = MASKED_TOP_K + "test_loss_and_gradient_are_those_of_the_rows_written_out[cpu-float32-140-3]"
CPP = "ctest blended_kl.generic"
PARITY = "tests/blended_kl/test_blended_kl_parity.py::"
WIDTHS = PARITY + "test_widths_around_vectors_and_chunks"
FORMULA = "tests/blended_kl/test_blended_kl_formula.py::"
BY_HAND = FORMULA + "test_loss_and_gradient_by_hand"
AUTOGRAD = "tests/blended_kl/test_blended_kl_autograd.py::"
CROSS_ENTROPY = "tests/blended_kl/test_blended_kl_cross_entropy.py::"
NO_SHARE = (
    "tests/blended_kl/test_blended_kl_hostile_input.py::test_the_weight_of_a_label_that_has_no_share_does_not_count"
)

FAULTS = {
    "csrc/cpu/chunk.h": [
        (
            "the largest logit is not looked for among a row's last lanes",
            "m0 = max(z.load(i, m, lowest), m0);",
            "if (m == lanes) m0 = max(z.load(i, m, lowest), m0);",
            WIDTHS,
        ),
    ],
    "csrc/cpu/blended_kl_chunk.h": [
        (
            "the lanes beyond a row's end count as logits of 0",
            "c.z.load_and_prefetch(j, n, -std::numeric_limits<Real>::infinity())",
            "c.z.load_and_prefetch(j, n)",
            WIDTHS,
        ),
        (
            "the lanes beyond a row's end have mass",
            "if (n < lanes) d = keep_first(d, n, Real(0));",
            "",
            WIDTHS,
        ),
        (
            "the row's last lanes are read whole",
            "c.z.load_and_prefetch(j, n, -std::numeric_limits<Real>::infinity())",
            "c.z.load(j)",
            CPP,
        ),
        (
            "the row's last lanes are stored whole",
            "to.store_and_prefetch(g, j, n);",
            "to.store_and_prefetch(g, j, V::lanes);",
            CPP,
        ),
        ("chunks are merged without rescaling the sum", "low.sum * low.relative_to(high)", "low.sum", CPP),
        (
            "chunks are merged without rescaling the sum at T",
            "low.sum_at_t * low.relative_to(high, temperature)",
            "low.sum_at_t",
            PARITY + "test_temperatures",
        ),
        ("chunks are merged at T = 1", "low.relative_to(high, temperature)", "low.relative_to(high)", CPP),
        (
            "chunks are merged without shifting the dot",
            "(low.max - high.max) * low.mass",
            "0",
            CPP,
        ),
        ("a merged chunk's mass is lost", "dense[k] += next.dense[k];", "", CPP),
        (
            "a chunk of -inf is merged like any other",
            "const bool empty = low.max == -std::numeric_limits<double>::infinity();",
            "const bool empty = false;",
            CPP,
        ),
        (
            "a chunk of -inf has -inf subtracted",
            "V::broadcast(max == -std::numeric_limits<Real>::infinity() ? Real(0) : max)",
            "V::broadcast(max)",
            CPP,
        ),
        ("a NaN among -inf is lost", "(empty ? low.sum :", "(empty ? 0 :", CPP),
        (
            "exp(z) is one power of exp(z / T) too high",
            "p = Power == 0 ? exp(d) : to_the_power<Power>(e);",
            "p = Power == 0 ? exp(d) : to_the_power<Power + 1>(e);",
            PARITY + "test_temperatures",
        ),
        (
            "soft rows are taken to sum to 1",
            "result.dense[k] = double(c.scale[k]) * lane_sum(total.dense[k])",
            "result.dense[k] = double(c.scale[k])",
            BY_HAND,
        ),
        ("uniform mass is not counted", "result.mass = double(c.uniform) * double(c.n);", "result.mass = 0;", CPP),
        (
            "uniform mass has no gradient",
            "uniform = V::broadcast(-coef_t * chunk.uniform);",
            "uniform = V::broadcast(0);",
            CPP,
        ),
        (
            "the second table is read with the first one's scale",
            "t = fma(scale[k], probability, t);",
            "t = fma(scale[0], probability, t);",
            BY_HAND,
        ),
        (
            "a block's sums take the place of those before it",
            "total.p + block.p",
            "block.p",
            CPP,
        ),
        (
            "the past's gradient has softmax(z) for softmax(z / T)",
            "factor = fma(p_factor, to_the_power<Power - 1>(e), e_factor);",
            "factor = both * to_the_power<Power - 1>(e);",
            BY_HAND,
        ),
        (
            "a listed class has softmax(z / T) where softmax(z) belongs",
            "for (int i = 1; i < power; ++i) p *= e;",
            "",
            PARITY + "test_temperatures",
        ),
        ("a listed class misses the dense mass", "if (tables == 2) t = kept.t[j];", "", BY_HAND),
        ("a listed class misses its one table", "c.dense[0].load_one(j);", "c.dense[0].load_one(0);", BY_HAND),
    ],
    "csrc/cpu/blended_kl.cpp": [
        (
            "the largest logit is looked for in a later chunk",
            "by_chunk[k].max != total.max) ++k;",
            "by_chunk[k].max == total.max) ++k;",
            CPP,
        ),
        (
            "the gradient is written with the logits' stride",
            "static_cast<char*>(p_.gradient) + (i * p_.classes + j)",
            "static_cast<char*>(p_.gradient) + (i * p_.stride + j)",
            CPP,
        ),
        (
            "the past term has T for T^2",
            "mass(r, s, true) * t * std::log(s.sum_at_t)",
            "mass(r, s, true) * std::log(s.sum_at_t)",
            BY_HAND,
        ),
        ("the past's entropy is forgotten", "- double(r.scale[kPast]) * t * r.past_entropy", "", BY_HAND),
        (
            "the gradient lacks its hard label",
            "listed[j - begin] += Real(upstream * mass);",
            "listed[j - begin] += Real(0);",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        (
            "a label that is listed too loses one of its masses",
            "listed[j - begin] += Real(upstream * mass);",
            "listed[j - begin] = Real(upstream * mass);",
            CPP,
        ),
        ("listed mass is left for the next row", "std::exchange(here, Real(0))", "here", CPP),
        ("0 * -inf is NaN", "if (dot != dot) dot = guarded_dot(r, s.max, scratch);", "", CPP),
        ("0 * -inf is NaN in the guarded sum", "fma_nonzero(here", "fma(here", CPP),
        ("probabilities are taken to sum to 1 in the stats", "sums.mass * std::log(s.sum)", "std::log(s.sum)", CPP),
        ("no mass times an infinite logarithm is NaN in the stats", "sums.mass == 0 ? 0 :", "false ? 0 :", CPP),
        (
            "a row's maximum is taken from the row before",
            "next_max = max(i + 1, 0);",
            "next_max = max(i, 0);",
            CPP,
        ),
        (
            "every row gets the first row's upstream",
            "upstream_[r.index * p_.upstream_stride]",
            "upstream_[0]",
            AUTOGRAD + "test_each_row_gets_its_own_upstream",
        ),
        (
            "the upstream misses the soft targets",
            "coef_p, coef_e, Real(upstream), to);",
            "coef_p, coef_e, Real(1), to);",
            AUTOGRAD + "test_scalar_upstream",
        ),
        ("an ignored row's gradient is left unwritten", "std::memset(out, 0, bytes);", "", CPP),
        (
            "with all rows ignored the mean is 0",
            "nothing_to_average ?",
            "false ?",
            CROSS_ENTROPY + "test_all_rows_ignored_gives_cross_entropys_loss_and_a_gradient_of_0",
        ),
        (
            "argmax is the last of equals",
            "for (std::int64_t at = j; found && at < end; ++at)",
            "for (std::int64_t at = end - 1; found && at >= j; --at)",
            FORMULA + "test_argmax_is_the_first_of_equals",
        ),
        (
            "the gradient mixes the scales of chunk and row",
            "upstream * mass(r, total, false) / total.sum * chunk.relative_to(total)",
            "upstream * mass(r, total, false) / total.sum",
            CPP,
        ),
        (
            "the last chunk of a row is not merged",
            "for (std::int64_t k = 1; k < chunks_; ++k) merged.merge",
            "for (std::int64_t k = 1; k < chunks_ - 1; ++k) merged.merge",
            CPP,
        ),
    ],
    "csrc/cpu/blended_kl_rows.h": [
        (
            "a label without a share has a share of an infinite weight",
            "if (share == 0) continue;  // whose weight may be infinite",
            "",
            NO_SHARE + "[cpu-sum-inf]",
        ),
        (
            "the mean is divided by the weight of a label without a share",
            " && share_of(i, which) != 0)\n          class_weight_",
            ")\n          class_weight_",
            NO_SHARE + "[cpu-mean-inf]",
        ),
        (
            "masked classes are not looked for",
            "if (masked == 0) return false;",
            "return false;",
            CPP,
        ),
        (
            "a weight that is not finite leads to a soft target that is not there",
            "if (alpha != 0) {",
            "{",
            "tests/blended_kl/test_blended_kl_hostile_input.py",
        ),
        (
            "logits are read as if their rows were contiguous",
            "static_cast<const char*>(p_.logits) + (i * p_.stride + j)",
            "static_cast<const char*>(p_.logits) + (i * p_.classes + j)",
            CPP,
        ),
        ("the past's gradient lacks T", "p_.past_weight * p_.temperature)", "p_.past_weight)", BY_HAND),
        (
            "label smoothing has the wrong sign",
            "smooth += share * (1 - alpha) * eps;",
            "smooth -= share * (1 - alpha) * eps;",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        ("label smoothing ignores alpha", "smooth += share * (1 - alpha) * eps;", "smooth += share * eps;", CPP),
        (
            "label smoothing ignores class weights",
            "mass[j] *= weight_[begin + j];",
            "mass[j] *= 1;",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        (
            "the mean divides by the rows, not by their weights",
            "class_weight_ += share_of(i, which) * weight_of(y);",
            "class_weight_ += share_of(i, which);",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        (
            "the past's mean divides by all rows",
            "past_rows += has_past(i);",
            "past_rows += 1;",
            FORMULA + "test_mean_averages_each_term_over_the_rows_that_have_it",
        ),
        (
            "ignored rows with a past count in the past's mean",
            "p_.past_index[i] < 0 || !used(i)",
            "p_.past_index[i] < 0",
            BY_HAND,
        ),
        (
            "past rows that are not filled are used",
            "return p_.past.filled == nullptr || p_.past.filled[p_.past_index[i]];",
            "return true;",
            FORMULA + "test_past_rows_that_are_not_filled_count_as_none",
        ),
        (
            "classes that are not filled are blended",
            "(p_.soft.filled == nullptr || p_.soft.filled[y])",
            "true",
            BY_HAND,
        ),
        (
            "both labels of a pair get lam",
            "1 - double(lam_[i])",
            "double(lam_[i])",
            FORMULA + "test_mixup_triple_by_hand",
        ),
        ("indices are not checked", "    check_indices();\n", "", CPP),
        (
            "the gradient lacks the hard label of a chunk's last class",
            "if (label[k] >= begin && label[k] < end)",
            "if (label[k] >= begin && label[k] < end - 1)",
            CPP,
        ),
        (
            "class weights are left out where a table is taken in place",
            "const bool weighted = weight_ != nullptr && (p_.target == nullptr || r.smooth != 0);",
            "const bool weighted = false;",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        (
            "a third table is dropped",
            "dense(kSoft) + dense(kSoftB) + dense(kPast) == 3",
            "false",
            CPP,
        ),
        (
            "what is prefetched lies beyond the storage",
            "return {std::min(i + rows, p_.rows - 1), 0};",
            "return {i + rows, 0};",
            CPP,
        ),
    ],
    "csrc/cpu/soft_rows.h": [
        (
            "masked classes keep their share of a tail",
            "if (is_masked(begin + j)) buffer[j] = 0;",
            "",
            ROWS_WRITTEN_OUT,
        ),
        (
            "the entropy of a row beside masked classes is the stored one",
            "return masked == 0 || rest == 0 ? 0 :",
            "return rest >= 0 ? 0 :",
            ROWS_WRITTEN_OUT,
        ),
        (
            "listed classes that are masked count twice",
            "masked -= is_masked(j);",
            "",
            MASKED_TOP_K + "test_listed_mass_on_a_masked_class[cpu-6]",
        ),
        (
            "a top-k row's tail is spread over all classes",
            "double(std::max<std::int64_t>(classes - rows.width, 1))",
            "double(classes)",
            BY_HAND,
        ),
        ("a top-k row of more than 1 leaves a negative tail", "std::max(0.0, 1 - mass_)", "(1 - mass_)", CPP),
        (
            "a top-k row's later chunks read its first probabilities",
            "start_ + (index - indices_), count",
            "start_, count",
            CPP,
        ),
        (
            "a top-k row's last class of a chunk is lost",
            "k < count && index[k] < end; ++k)",
            "k < count && index[k] < end - 1; ++k)",
            CPP,
        ),
        ("soft rows are read as if contiguous", "start_(row * rows.stride)", "start_(row * rows.width)", CPP),
        (
            "logits are softened at T = 1",
            "V::broadcast(Real(1 / rows_->temperature))",
            "V::broadcast(Real(1))",
            BY_HAND,
        ),
    ],
}
