"""Faults of the C++ kernel of blended_kl."""

CPP = "ctest blended_kl.generic"
AVX2 = "ctest blended_kl.avx2"
AVX512 = "ctest blended_kl.avx512"
PARITY = "tests/test_blended_kl_parity.py::"
WIDTHS = PARITY + "test_widths_around_vectors_and_chunks"
FORMULA = "tests/test_blended_kl_formula.py::"
BY_HAND = FORMULA + "test_loss_and_gradient_by_hand"
AUTOGRAD = "tests/test_blended_kl_autograd.py::"
CROSS_ENTROPY = "tests/test_blended_kl_cross_entropy.py::"

FAULTS = {
    "csrc/cpu/blended_kl_chunk.h": [
        (
            "the lanes beyond a row's end count as logits of 0",
            "step(block, load_first(c.z + j, rest, -std::numeric_limits<Real>::infinity()),",
            "step(block, load_first(c.z + j, rest, Real(0)),",
            WIDTHS,
        ),
        (
            "the row's last lanes are read whole",
            "step(block, load_first(c.z + j, rest, -std::numeric_limits<Real>::infinity()),",
            "step(block, V::load(c.z + j),",
            CPP,
        ),
        (
            "the row's last lanes are stored whole",
            "store_first(step(j), out + j, rest);",
            "step(j).store(out + j);",
            CPP,
        ),
        (
            "the largest logit is not looked for among a row's last lanes",
            "if (const int rest = int(n - j)) m1",
            "if (const int rest = 0) m1",
            WIDTHS,
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
            "(low.max - high.max) * (low.class_mass + low.past_mass)",
            "0",
            CPP,
        ),
        ("a merged chunk's mass is lost", "class_mass += next.class_mass;", "", CPP),
        (
            "a chunk of -inf is merged like any other",
            "const bool empty = low.max == -std::numeric_limits<double>::infinity();",
            "const bool empty = false;",
            CPP,
        ),
        (
            "a chunk of -inf has -inf subtracted",
            "V::broadcast(empty ? Real(0) : Real(result.max))",
            "V::broadcast(Real(result.max))",
            CPP,
        ),
        ("a NaN among -inf is lost", "(empty ? low.sum :", "(empty ? 0 :", CPP),
        ("0 * -inf is NaN", "sum.dot = fma_nonzero(t, d, sum.dot)", "sum.dot = fma(t, d, sum.dot)", CPP),
        (
            "exp(z) is one power of exp(z / T) too high",
            "for (int i = 1; i < Power; ++i) p = p * e;\n      sum.e",
            "for (int i = 0; i < Power; ++i) p = p * e;\n      sum.e",
            PARITY + "test_temperatures",
        ),
        ("past rows are taken to sum to 1", "double(c.b) * lane_sum(total.q)", "double(c.b)", BY_HAND),
        ("soft rows are taken to sum to 1", "double(c.a) * lane_sum(total.s)", "double(c.a)", CPP),
        (
            "a block's sums take the place of those before it",
            "total.p + block.p",
            "block.p",
            CPP,
        ),
        (
            "the past's gradient has softmax(z) for softmax(z / T)",
            "fma(by_e, e, by_p * p)",
            "fma(by_e, p, by_p * p)",
            BY_HAND,
        ),
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
            "static_cast<T*>(p_.gradient) + r.index * p_.classes",
            "static_cast<T*>(p_.gradient) + r.index * p_.stride",
            CPP,
        ),
        (
            "the past term has T for T^2",
            "s.past_mass * t * std::log(s.sum_at_t)",
            "s.past_mass * std::log(s.sum_at_t)",
            BY_HAND,
        ),
        ("the past's entropy is forgotten", "- double(r.past_scale) * t * r.past_entropy", "", BY_HAND),
        (
            "the gradient lacks its hard label",
            "-= Real(upstream * r.hard[k]);",
            "-= Real(0);",
            CROSS_ENTROPY + "test_value_and_gradient",
        ),
        (
            "the gradient lacks the hard label of a chunk's last class",
            "r.label[k] < begin + n)",
            "r.label[k] < begin + n - 1)",
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
            "kept, n, coef_p, coef_e, Real(upstream), out",
            "kept, n, coef_p, coef_e, Real(1), out",
            AUTOGRAD + "test_scalar_upstream",
        ),
        ("an ignored row's gradient is left unwritten", "std::fill(out, out + n, T{});", "", CPP),
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
            "upstream * class_mass / total.sum * chunk.relative_to(total)",
            "upstream * class_mass / total.sum",
            CPP,
        ),
        (
            "the last chunk of a row that threads share is not merged",
            "for (std::int64_t k = 1; k < chunks_; ++k) totals[i].merge",
            "for (std::int64_t k = 1; k < chunks_ - 1; ++k) totals[i].merge",
            CPP,
        ),
    ],
    "csrc/cpu/blended_kl_rows.h": [
        (
            "a weight that is not finite leads to a soft target that is not there",
            "if (alpha != 0) {",
            "{",
            "tests/test_blended_kl_hostile_input.py",
        ),
        (
            "logits are read as if their rows were contiguous",
            "as_real(p_.dtype, p_.logits, r.index * p_.stride + begin,",
            "as_real(p_.dtype, p_.logits, r.index * p_.classes + begin,",
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
            "class_rows_ += share_of(i, which) * weight_of(y);",
            "class_rows_ += share_of(i, which);",
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
    ],
    "csrc/cpu/convert.h": [
        ("non-temporal stores forget the end", "std::memcpy(out + i, in + i, bytes - i);", "", CPP),
        ("non-temporal stores miss 64-byte boundaries", "-reinterpret_cast<std::uintptr_t>(out) & 63", "0", AVX512),
        ("bfloat16 is cut off, not rounded", "(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16", CPP),
        ("float16 is cut off, not rounded", "(wide + 0xfff + (wide >> 13 & 1)) >> 13", "wide >> 13", CPP),
        (
            "float16 is cut off by the vector conversion",
            "_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC",
            "_MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC",
            AVX2,
        ),
        ("small float16 are not subnormal", "magnitude < 0x1p-14f", "magnitude < 0x1p-24f", CPP),
    ],
    "csrc/cpu/soft_rows.h": [
        (
            "a top-k row's tail is spread over all classes",
            "double(std::max<std::int64_t>(classes - rows.width, 1))",
            "double(classes)",
            BY_HAND,
        ),
        ("a top-k row of more than 1 leaves a negative tail", "std::max(0.0, 1 - mass)", "(1 - mass)", CPP),
        (
            "a top-k row's later chunks read its first probabilities",
            "start_ + (index - indices_), count",
            "start_, count",
            CPP,
        ),
        (
            "a top-k row's last class of a chunk is lost",
            "std::lower_bound(first, end, begin + n)",
            "std::lower_bound(first, end, begin + n - 1)",
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
    "csrc/cpu/simd.h": [
        ("exp has a wrong coefficient", "1.66665770e-1f", "1.66e-1f", AVX512),
        (
            "exp of NaN is 0",
            "_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ)",
            "_mm512_cmp_ps_mask(x.v, least.v, _CMP_GE_OQ)",
            AVX512,
        ),
        (
            "exp is not 0 far below 0",
            "_mm256_cmp_ps(x, least, _CMP_NLT_UQ)",
            "_mm256_cmp_ps(x, least, _CMP_TRUE_UQ)",
            AVX2,
        ),
        ("the upper half of a maximum is lost", "_mm256_max_ps(a.hi, b.hi)", "a.hi", AVX2),
    ],
}
